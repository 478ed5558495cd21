"""What a user says about retrieved passages. Imports nothing heavy."""

from dataclasses import dataclass, field

from pipeline.runtime.errors import UserError


@dataclass
class RetrievalArguments:
    """Which passages are put in front of a prompt."""

    retrieve: str | None = field(
        default=None,
        metadata={
            "help": "Retrieve passages for every prompt from this index (a folder of python -m "
            "pipeline.inference.retrieval build) or from these documents (file, folder, Hub id, world/<name>), "
            "each of which is one passage for BM25."
        },
    )
    top_passages: int = field(default=3, metadata={"help": "Passages put in front of a prompt."})
    retrieval_hops: int = field(
        default=1,
        metadata={
            "help": "Number of searches, 1 or 2; with 2, half of the passages are found by what the first ones name."
        },
    )
    passage_template: str = field(
        default="{text}\n",
        metadata={"help": "How a passage is written; {text}, {id} and {number} (from 1) are filled in."},
    )
    context_template: str = field(
        default="{passages}\n{prompt}",
        metadata={"help": "How the passages and the user's last message become one message."},
    )


def check_arguments(arguments: RetrievalArguments) -> None:
    """Raises UserError where an option of retrieval cannot be."""
    if arguments.top_passages < 1:
        raise UserError(f"top_passages is {arguments.top_passages}: give 1 or more")
    if arguments.retrieval_hops not in (1, 2):
        raise UserError(f"retrieval_hops is {arguments.retrieval_hops}: choose one of 1, 2")
    for name, needed in (("passage_template", ["{text}"]), ("context_template", ["{passages}", "{prompt}"])):
        missing = [word for word in needed if word not in getattr(arguments, name)]
        if missing:
            raise UserError(f"{name} {getattr(arguments, name)!r} has no {missing[0]} in it")
