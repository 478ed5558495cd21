"""Retrieval: chunks, BM25, dense search and fusion by hand, what fits into a context, an index on disk."""

import json
import math

import numpy as np
import pytest
import torch

from pipeline.data.sources import Source
from pipeline.inference.retrieval.__main__ import main
from pipeline.inference.retrieval.arguments import RetrievalArguments
from pipeline.inference.retrieval.bm25 import BM25
from pipeline.inference.retrieval.context import augment, context_limit, fit
from pipeline.inference.retrieval.dense import Encoder
from pipeline.inference.retrieval.documents import Document, chunks_of, read_documents
from pipeline.inference.retrieval.hits import best, fuse
from pipeline.inference.retrieval.index import Index, IndexOptions, Passage, open_index, reformulated
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import user_turn
from tests.tiny_models import tiny_model, tiny_tokenizer

DOCUMENTS = [{"id": "one", "text": "Red red cat."}, {"id": "two", "text": "cat, dog"}, {"id": "three", "text": "Dog"}]


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    return path


def test_bm25_is_the_formula():
    """N = 3, lengths 3, 2, 1, mean 2. idf(red) = log(1 + 2.5/1.5), idf(cat) = log(1 + 1.5/2.5). With k1 = 1.5 and
    b = 0.75 the denominators add 1.5 (0.25 + 0.75 * 3/2) = 2.0625 in the first text and 1.5 in the second. The third
    shares no word and is not found, though three were asked for, nor is anything for words that no text has.
    """
    retriever = BM25.build([row["text"] for row in DOCUMENTS])
    red, cat = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)
    first = red * 2 / (2 + 2.0625) + cat / (1 + 2.0625)
    found, nothing, empty = retriever.search(["RED cat?", "zebra", ""], 3)
    assert [place for place, _ in found] == [0, 1]
    assert [score for _, score in found] == pytest.approx([first, cat / 2.5], rel=1e-5)
    assert nothing == empty == []
    assert [place for place, _ in retriever.search(["red cat"], 100)[0]] == [0, 1]


def test_ranks_are_fused_as_by_hand():
    """0: 1/61 + 1/62, 2: 1/63 + 1/61, 1: 1/62; scores do not count. Of equal scores the earlier text is first."""
    fused = fuse([[(0, 9.0), (1, 8.0), (2, 7.0)], [(2, 0.2), (0, 0.1)]], 3)
    assert [place for place, _ in fused] == [0, 2, 1]
    assert [score for _, score in fused] == pytest.approx([1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62])
    assert [place for place, _ in best(np.array([1.0, 3.0, 1.0, 3.0]), 3)] == [1, 3, 0]


@pytest.mark.parametrize(
    ("unit", "size", "overlap", "expected"),
    [
        ("sentences", 2, 1, ["One cat. Two dogs!", "Two dogs! Is 3.5 more?", "Is 3.5 more?\n\nYes"]),
        ("sentences", 9, 1, ["One cat. Two dogs! Is 3.5 more?\n\nYes"]),
        ("words", 4, 2, ["One cat. Two dogs!", "Two dogs! Is 3.5", "Is 3.5 more?\n\nYes"]),
        ("words", 5, 0, ["One cat. Two dogs! Is", "3.5 more?\n\nYes"]),
    ],
)
def test_chunks_are_windows_of_the_text(unit, size, overlap, expected):
    """The document is cut and never rewritten; white space between the units of a chunk stays as it was."""
    text = " One cat. Two dogs! Is 3.5 more?\n\nYes\n"
    found = chunks_of([Document("d", text), Document("blank", " \n")], unit=unit, size=size, overlap=overlap)
    assert [chunk.text for chunk in found] == expected
    names = ["d"] if len(expected) == 1 else [f"d#{n}" for n in range(1, len(expected) + 1)]
    assert [chunk.id for chunk in found] == names
    assert {chunk.document for chunk in found} == {"d"}


def test_chunks_of_tokens_are_the_tokenizer_s():
    """One token a word: 3 tokens, sharing 1."""
    found = chunks_of([Document("d", "a b c d e")], unit="tokens", size=3, overlap=1, tokenizer=tiny_tokenizer())
    assert [chunk.text for chunk in found] == ["a b c", "c d e"]


def test_a_second_query_asks_for_what_is_new():
    """What question and passage share is answered; the name that only the passage has is looked up."""
    assert reformulated("Where does the friend of Bo live?", ["The friend of Bo is Al."]) == "where does live is al"


def test_the_second_hop_finds_what_the_first_cannot(tmp_path):
    texts = ["The friend of Bo Lim is Al Tan.", "Al Tan lives in Rome.", "Bo Lim lives in Oslo.", "Bo Lim has a cat."]
    index = Index.build(chunks_of([Document(str(i), t) for i, t in enumerate(texts)]), IndexOptions())
    question = ["Where does the friend of Bo Lim live?"]
    assert "1" not in [passage.id for passage in index.search(question, 2)[0]]
    assert [passage.id for passage in index.search(question, 2, hops=2)[0]] == ["0", "1"]


@pytest.mark.parametrize("kind", ["narlm", "llama"])
def test_a_dense_vector_is_the_mean_of_the_text_s_own_states(kind):
    """Whatever else is in the batch; of length 1, so that the product of two is their cosine."""
    import pipeline.model  # noqa: F401

    model, tokenizer = tiny_model(kind), tiny_tokenizer()
    encoder = Encoder(model, tokenizer, query_prefix="a ")
    vectors = encoder.embed(["a b", "c d e a b", "d"])
    with torch.no_grad():
        ids = torch.tensor([tokenizer("a b")["input_ids"]])
        state = model(ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
    assert vectors[0] == pytest.approx((state / state.norm()).numpy(), abs=1e-5)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_a_dense_index_and_a_fused_one_come_back_from_disk(tmp_path, documents):
    """The same passages in the same order with the same scores, from a folder and a fresh load."""
    encoder = tmp_path / "encoder"
    tiny_model("bert").save_pretrained(encoder)
    tiny_tokenizer().save_pretrained(encoder)
    for retrievers in (["bm25"], ["bm25", "dense"]):
        folder = tmp_path / "-".join(retrievers)
        words = ["--retrievers", *retrievers, "--encoder", str(encoder)]
        main(["build", "--documents", str(documents), "--output_dir", str(folder), *words])
        options = IndexOptions(retrievers, str(encoder))
        kept, made = open_index(str(folder))[0], open_index(str(documents), options)[0]
        queries = ["red", "a dog"]
        assert kept.search(queries, 2) == made.search(queries, 2)
        assert kept.search(queries, 2)[0][0].id == "one"
        assert [chunk.id for chunk in kept.chunks] == ["one", "two", "three"]
    notes = json.loads((folder / "index.json").read_text())
    assert notes["retrievers"] == ["bm25", "dense"]
    assert notes["documents"]["rows"] == notes["chunks"] == 3


def test_text_files_are_documents_as_a_whole(tmp_path):
    """Markdown and text files of a folder, named by their paths; other data is read row by row."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("# Title\n\nText.\n")
    (tmp_path / "a.txt").write_text("One.\n\nTwo.")
    documents, record = read_documents(Source(name=str(tmp_path)))
    assert [document.id for document in documents] == ["a.txt", "deep/b.md"]
    assert documents[1].text == "# Title\n\nText.\n"
    assert record["rows"] == 2


WRITTEN = RetrievalArguments(passage_template="{text} ", context_template="{passages}{prompt}")


def test_passages_go_before_the_question_of_the_last_user_turn():
    passages = [Passage("x", "c {prompt}", 1.0), Passage("y", "d", 0.5)]
    numbered = RetrievalArguments(
        passage_template="[{number}] {id}: {text}\n", context_template="{passages}\nQ: {prompt}"
    )
    dialogue = [*user_turn("a"), {"role": "assistant", "content": "b"}, *user_turn("{passages}?")]
    written = augment(dialogue, passages, numbered)
    assert written[:2] == dialogue[:2]
    assert written[2]["content"] == "[1] x: c {prompt}\n[2] y: d\n\nQ: {passages}?"
    assert augment("a", passages[1:], WRITTEN) == "d a"
    assert augment(dialogue, [], numbered) is dialogue


def test_the_last_passages_are_dropped_until_the_rest_fits():
    """The chat has bos, user and assistant besides its words: 2 of the question and 2 per passage make 5 + 2 m. In 9
    tokens there is room for two passages, in 5 for none, and 4 is not enough for the question, which is never cut.
    """
    found = [[Passage(str(i), "c d", 1.0) for i in range(3)]] * 4
    prompts = [user_turn("a b")] * 4
    fitted = fit(tiny_tokenizer(), prompts, found, WRITTEN, [9, 5, 4, None])
    assert [len(each.passages) for each in fitted] == [2, 0, 0, 3]
    assert [each.dropped for each in fitted] == [1, 3, 3, 0]
    assert fitted[0].prompt == user_turn("c d c d a b")
    assert [passage.id for passage in fitted[0].passages] == ["0", "1"]


def test_a_context_is_within_positions_and_window():
    """64 positions less 4 new tokens; a window of 16 in every layer is Delta; full layers see all."""
    assert context_limit(tiny_model("llama", max_position_embeddings=64).config, 4) == 60
    assert context_limit(tiny_model("mistral", max_position_embeddings=64, sliding_window=16).config, 4) == 16
    mixed = {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}
    assert context_limit(tiny_model("qwen2", max_position_embeddings=64, **mixed).config, 4) == 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serch"], "unknown command 'serch'.* did you mean search"),
        (["build", "--document", "x"], "did you mean --documents"),
        (["build", "--documents", "no/where.jsonl", "--output_dir", "{new}"], "does not exist"),
        (["build", "--documents", "{rows}", "--output_dir", "{rows}"], "is a file: name a folder"),
        (["build", "--documents", "{rows}", "--output_dir", "{full}"], "not empty and holds no index"),
        (["build", "--documents", "{rows}", "--output_dir", "{new}", "--chunk_overlap", "5"], "less than chunk_size"),
        (["build", "--documents", "{rows}", "--output_dir", "{new}", "--chunk_by", "tokens"], "needs tokenizer_name"),
        (["build", "--documents", "{rows}", "--output_dir", "{new}", "--retrievers", "bm52"], "did you mean bm25"),
        (["build", "--documents", "{rows}", "--output_dir", "{new}", "--retrievers", "dense"], "give an encoder"),
        (["build", "--documents", "{twice}", "--output_dir", "{new}"], "row 2: the id 'a' is that of .*row 1 too"),
        (["build", "--documents", "{rows}", "--output_dir", "{new}", "--dataset_map", "txt=text"], "no column 'txt'"),
        (["search", "--index", "{full}", "--query", "x"], "is no index, or a damaged one"),
        (["raft", "--dataset_name", "{rows}", "--output_file", "{new}", "--dataset_map", "text=prompt"], "answer: is"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, documents):
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n')
    places = {"new": tmp_path / "new", "rows": documents, "full": tmp_path, "twice": twice}
    with pytest.raises(UserError, match=message) as error:
        main([word.format(**places) for word in words])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_an_index_is_replaced_only_when_asked(tmp_path, documents, capsys):
    words = ["build", "--documents", str(documents), "--output_dir", str(tmp_path / "index")]
    main(words)
    with pytest.raises(UserError, match="already holds an index: pass --force"):
        main(words)
    main([*words, "--force"])
    main(["search", "--index", str(tmp_path / "index"), "--query", "dog", "zebra"])
    shown = capsys.readouterr().out
    assert "  three  Dog" in shown
    assert "nothing found" in shown
