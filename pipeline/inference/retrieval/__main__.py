"""Build an index of documents, search it, and make RAFT rows from it.

    narlm retrieval build --documents notes/ --output_dir runs/index
    narlm retrieval search --index runs/index --query "Where does Anna live?"
    narlm retrieval raft --dataset_name qa.jsonl --retrieve runs/index --output_file raft.jsonl

Documents are .md and .txt files (each one a document), or any data that the stages read as text: jsonl, json, csv,
parquet, a Hub id or world/<name>, with the column `id` as a document's name. Each command takes --config with a YAML
of its flags; python -m pipeline.inference.retrieval is the same without the console script.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.runtime.arguments import parse
from pipeline.runtime.entry import run_and_exit, short_help
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.files import write_rows
from pipeline.runtime.messages import Turn, user_text


@dataclass
class BuildArguments:
    """What is indexed, in which chunks, and how it will be searched."""

    documents: str = field(metadata={"help": "File, folder, Hub id or world/<name>."})
    output_dir: str = field(metadata={"help": "Folder of the index."})
    documents_split: str = field(default="train", metadata={"help": "Split of the documents; a slice is allowed."})
    dataset_map: str | None = field(default=None, metadata={"help": "Renames columns: body=text,url=id."})
    skip_bad_rows: bool = field(default=False, metadata={"help": "Skip and count rows that do not fit."})
    chunk_by: str = field(
        default="sentences",
        metadata={"help": "What chunk_size counts.", "choices": ["sentences", "words", "tokens"]},
    )
    chunk_size: int = field(default=5, metadata={"help": "Sentences, words or tokens per chunk."})
    chunk_overlap: int = field(default=1, metadata={"help": "How many of them a chunk shares with the one before it."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Model or tokenizer whose tokens are counted, with chunk_by tokens."}
    )
    retrievers: list[str] = field(
        default_factory=lambda: ["bm25"],
        metadata={"help": "bm25, dense, or package.module:Class; several are fused by reciprocal rank."},
    )
    encoder: str | None = field(
        default=None,
        metadata={"help": "Model of the dense retriever: a sentence encoder, or a causal model (its hidden states)."},
    )
    query_prefix: str = field(default="", metadata={"help": "Text in front of a query, for encoders that want one."})
    passage_prefix: str = field(default="", metadata={"help": "Text in front of a passage."})
    force: bool = field(default=False, metadata={"help": "Replace an index that is already there."})


@dataclass
class SearchArguments:
    """What is looked for."""

    index: str = field(metadata={"help": "Folder of an index."})
    query: list[str] = field(metadata={"help": "One or more queries."})
    top_passages: int = field(default=5, metadata={"help": "Passages printed for each query."})
    retrieval_hops: int = field(
        default=1,
        metadata={
            "help": "Number of searches; with 2, half of the passages are found by what the first ones name.",
            "choices": [1, 2],
        },
    )


@dataclass
class RaftArguments:
    """Questions with their answers and documents, and what is put beside the documents."""

    dataset_name: str = field(
        metadata={"help": "Rows of prompt, answer (or completion) and document (a text or a list of them)."}
    )
    output_file: str = field(metadata={"help": "JSONL file of prompt + completion rows, for sft.py."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the rows; a slice is allowed."})
    dataset_map: str | None = field(
        default=None, metadata={"help": "Renames columns: question=prompt,context=document."}
    )
    skip_bad_rows: bool = field(default=False, metadata={"help": "Skip and count rows that do not fit."})
    distractors: int = field(default=4, metadata={"help": "Passages beside the document that holds the answer."})
    oracle_share: float = field(default=0.8, metadata={"help": "Share of the rows that hold that document."})
    no_oracle_answer: str | None = field(
        default=None, metadata={"help": "Answer of the rows without it [the row's answer, as in RAFT]."}
    )
    retrieve: str | None = field(
        default=None,
        metadata={"help": "Index whose passages for the question are the distractors [a draw of the documents]."},
    )
    passage_template: str = field(default="{text}\n", metadata={"help": "How a passage is written."})
    context_template: str = field(
        default="{passages}\n{prompt}", metadata={"help": "How passages and the user's message become one."}
    )
    seed: int = field(default=42, metadata={"help": "Random seed of what is drawn."})


def build(args: BuildArguments) -> None:
    """Read documents, cut them into chunks, index these and save the index."""
    from pipeline.data.columns import parse_map
    from pipeline.data.sources import Source
    from pipeline.inference.retrieval.documents import check_chunking, chunks_of, read_documents
    from pipeline.inference.retrieval.index import INDEX, Index, IndexOptions, retriever_class

    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {folder} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (args.force and (folder / INDEX).is_file()):
        known = (folder / INDEX).is_file()
        raise UserError(
            f"{folder} already holds an index: pass --force to replace it, or name another folder"
            if known
            else f"output_dir {folder} is not empty and holds no index: name another folder"
        )
    check_chunking(args.chunk_by, args.chunk_size, args.chunk_overlap, bool(args.tokenizer_name))
    for name in args.retrievers:
        retriever_class(name)
    options = IndexOptions(list(args.retrievers), args.encoder, args.query_prefix, args.passage_prefix)
    source = Source(name=args.documents, split=args.documents_split, dataset_map=parse_map(args.dataset_map))
    documents, record = read_documents(source, args.skip_bad_rows)
    tokenizer = None
    if args.tokenizer_name and args.chunk_by == "tokens":
        from pipeline.model.loading import load_tokenizer

        tokenizer = load_tokenizer(args.tokenizer_name)
    cut = {"unit": args.chunk_by, "size": args.chunk_size, "overlap": args.chunk_overlap}
    chunks = chunks_of(documents, **cut, tokenizer=tokenizer)
    Index.build(chunks, options).save(folder, {"documents": record, "chunking": cut})
    print(f"{folder}: {len(chunks)} chunks of {len(documents)} documents, searched by {' + '.join(args.retrievers)}")


def search(args: SearchArguments) -> None:
    """Print the passages that an index has for each query: rank, score, id, text."""
    from pipeline.inference.retrieval.index import Index

    found = Index.load(Path(args.index)).search(args.query, args.top_passages, args.retrieval_hops)
    for query, passages in zip(args.query, found):
        print(f"> {query}")
        for rank, passage in enumerate(passages, 1):
            print(f"{rank:3}  {passage.score:.4f}  {passage.id}  {' '.join(passage.text.split())}")
        if not passages:
            print("     nothing found")


def raft(args: RaftArguments) -> None:
    """Make RAFT rows: questions beside their documents and distractors, or distractors alone."""
    from pipeline.data.columns import parse_map
    from pipeline.data.loading import read_source
    from pipeline.data.raft import grounded, raft_rows
    from pipeline.data.rows import RowError
    from pipeline.data.sources import Source
    from pipeline.inference.retrieval.arguments import RetrievalArguments, check_arguments
    from pipeline.inference.retrieval.context import augment
    from pipeline.inference.retrieval.index import Passage, open_index

    written = RetrievalArguments(passage_template=args.passage_template, context_template=args.context_template)
    check_arguments(written)
    source = Source(name=args.dataset_name, split=args.dataset_split, dataset_map=parse_map(args.dataset_map))
    part = read_source(source, "prompt", args.skip_bad_rows)
    rows, bad = [], []
    for row, (place, number) in zip(part.rows, part.places):
        try:
            rows.append(grounded(row))
        except RowError as error:
            if not args.skip_bad_rows:
                raise UserError(f"{place}, row {number}: {error} (fix the row, or pass --skip_bad_rows)") from None
            bad.append(number)
    if not rows:
        raise UserError(f"{args.dataset_name}: every row is bad: prompt, answer and document are needed")
    candidates = None
    if args.retrieve is not None:
        most = args.distractors + 2 * max(len(row.oracles) for row in rows)
        found = open_index(args.retrieve)[0].search([user_text(row.prompt) for row in rows], most)
        candidates = [[passage.text for passage in passages] for passages in found]

    def write(prompt: Turn, texts: Sequence[str]) -> Turn:
        return augment(prompt, [Passage(str(number), text, 0.0) for number, text in enumerate(texts, 1)], written)

    made = raft_rows(
        rows, write, distractors=args.distractors, oracle_share=args.oracle_share, seed=args.seed,
        no_oracle_answer=args.no_oracle_answer, candidates=candidates,
    )  # fmt: skip
    write_rows(Path(args.output_file), made)
    lost = len(bad) + part.counts["bad_rows"]
    without = sum(not row["oracle"] for row in made)
    skipped = f"; {lost} bad rows skipped" if lost else ""
    print(f"{args.output_file}: {len(made)} rows, {without} of them without the document that answers{skipped}")


COMMANDS: dict[str, tuple[type, Callable[..., None]]] = {
    "build": (BuildArguments, build),
    "search": (SearchArguments, search),
    "raft": (RaftArguments, raft),
}


def _help(name: str) -> str:
    arguments, run = COMMANDS[name]
    return short_help(f"{name}: {run.__doc__}", arguments, {}, None).replace("This stage's own fields:", "Its flags:")


def main(argv: list[str] | None = None) -> None:
    """Run one of the commands; see the module's docstring.

    Raises:
        UserError: an unknown command or flag, or whatever the command finds wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("--help", "-h"):
        print("\n\n".join([__doc__.strip(), *(_help(each) for each in COMMANDS)]))
        return
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; choose one of {', '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}")
    arguments, run = COMMANDS[name]
    if "--help" in rest or "-h" in rest:
        print(_help(name))
        return
    (given,) = parse(rest, arguments, prog=f"python -m pipeline.inference.retrieval {name}")
    run(given)


if __name__ == "__main__":
    run_and_exit(main)
