"""What of the loaded rows is trained on: dialogues that the chat template can write, rows as tokens and labels.

A row is lost where the chat template refuses it, or where ``max_length`` leaves nothing of it to learn (`account`).
"""

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.data.account import BEYOND, REFUSED, SILENT, kept_rows, report_unused, splits_of
from pipeline.data.arguments import ChatDataArguments
from pipeline.data.arrow import to_dataset
from pipeline.data.formats import settle_systems
from pipeline.data.images import has_images
from pipeline.data.loading import Data
from pipeline.data.seen import place_of, require_sight, undecoded, within_length, without_images
from pipeline.model.chat import decide, never_trained, sentence, with_system
from pipeline.model.dialogue_tokens import MARKER, check_dialogue, renderer, unused_reasoning
from pipeline.model.tokenizer import ensure_training_chat_template, install_chat_template, require_end_of_turn
from pipeline.model.tokens import ANSWERS, IGNORED, Learned, encode_row
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import answers_of, as_turns, has_system, is_dialogue

if TYPE_CHECKING:
    import datasets
    from transformers import PretrainedConfig, PreTrainedTokenizerBase
    from trl import DPOConfig, RewardConfig, SFTConfig

    from pipeline.runtime.record import Run


# ---------------------------------------------------------------------- dialogues and their template


def templated(
    data: Data,
    tokenizer: "PreTrainedTokenizerBase",
    run: "Run",
    kind: str,
    given: ChatDataArguments,
    path: str | None = None,
    *,
    learned: Learned | None = None,
    name: str = "train",
) -> Data:
    """The data with strings as turns where the model chats, once the tokenizer has the chat template that dialogues
    need and every row can be written by it.

    What came of it is printed, and recorded as ``chat``. SFT's rows are checked where they are tokenized
    (`supervised`); here only where ``learned`` is given.

    Args:
        kind: of the data, as `load_data` was asked for it.
        given: ``as_chat``, ``system``, and ``skip_bad_rows`` for rows that the chat template refuses.
        path: ``chat_template_path``.
        learned: what is to be learned of SFT rows, which are then checked too.
        name: what the run record calls the training rows.

    Raises:
        UserError: ``as_chat`` or ``system`` does not go with the rows; a row that the template refuses or writes in
            part (where it was read, and why); ``tools`` beside prompts that are to be sampled from, which TRL does not
            pass on; images for a model of text.
    """
    if not hasattr(data.train, "__len__"):
        return data
    require_sight(data, tokenizer)
    data = _as_chat(data, tokenizer, run, kind, given, path)
    columns, chat = data.train.column_names, _is_chat(data)
    installed = install_chat_template(tokenizer, path) if chat or path else None
    if installed:
        run.say(installed)
    if chat and kind not in ("sft", "text"):
        _warn_of_untrained_template(run, tokenizer)
    if chat and "prompt" not in columns:
        ensure_training_chat_template(tokenizer)
    if kind == "prompt":
        _refuse_columns(columns, chat)
    if not chat or kind == "text" or (kind == "sft" and learned is None):
        return data
    parts = []
    for rows, places, label in splits_of(data, name):
        words = without_images(rows)
        refused = [_refusal(row, kind, tokenizer, learned or ANSWERS) for row in words]
        written = (row for row, why in zip(words, refused) if not why)
        report_unused(run, label, Counter(key for row in written for key in unused_reasoning(tokenizer, row)))
        lost = [REFUSED if why else "" for why in refused]
        parts.append(kept_rows(rows, lost, run, label, places, refused, skip=given.skip_bad_rows))
    return replace(data, train=parts[0], evaluation=parts[1] if len(parts) > 1 else None)


def _refuse_columns(columns: list[str], chat: bool) -> None:
    """Refuse what a prompt that is sampled from cannot have: what a dialogue would be written with.

    Raises:
        UserError: there is such a column.
    """
    for column in {"tools", "chat_template_kwargs"} & set(columns) if chat else ():
        raise UserError(
            f"column {column}: prompts are sampled from without it; rename it if a reward reads it "
            f"(dataset_map {column}=other_name), else leave it out"
            + ("; grpo.py --tools names functions that the model may call" if column == "tools" else "")
        )


def _is_chat(data: Data) -> bool:
    """Whether the rows are dialogues; beside a prompt, messages are one of the columns for the rewards."""
    columns = data.train.column_names
    return is_dialogue(data.train[0]["prompt"]) if "prompt" in columns else "messages" in columns


def _as_chat(
    data: Data,
    tokenizer: "PreTrainedTokenizerBase",
    run: "Run",
    kind: str,
    given: ChatDataArguments,
    path: str | None,
) -> Data:
    """The data with strings as turns where `decide` says so, and with the system message; printed and recorded.

    Raises:
        UserError: ``as_chat`` or ``system`` does not go with the rows.
    """
    columns, start = data.train.column_names, run.record["arguments"]["model_name_or_path"]
    dialogues = _is_chat(data)
    strings = "prompt" in columns and not dialogues
    if given.as_chat == "true" and not (strings or dialogues):
        raise UserError("as_chat: the rows are running text, which has no turns; leave it out")
    if given.as_chat == "false" and dialogues:
        raise UserError("as_chat: the rows are chat messages, which only a chat template writes; leave it out")
    decision = decide(given.as_chat, tokenizer, start, template=path, trains=True) if strings else None
    chat = decision.as_chat if decision else dialogues
    if given.system and not chat:
        raise UserError("system: the rows are no chats, so there is no place for a system message; see as_chat")
    note = {"as_chat": chat, "system": given.system, "template": path}
    if decision and run.record.get("chat") != note:
        run.say(sentence(decision))
    if decision or dialogues:
        run.note("chat", note)
    if decision and not chat and "system" in columns:
        run.say("the system prompts are put before the prompts as text")
    elif not chat or not (decision or given.system):
        return data

    def turned(rows: "datasets.Dataset | None") -> "datasets.Dataset | None":
        if not rows:
            return rows
        if not chat:
            return to_dataset(settle_systems(list(rows), kind, chat=False), kind)
        rows = undecoded(rows)
        return to_dataset((with_system(as_turns(row, kind), given.system) for row in rows), kind)

    train = turned(data.train)
    if given.system:
        rows = (as_turns(row, kind) for row in data.train)
        own = sum(has_system(row.get("prompt") or row["messages"]) for row in rows)
        run.say(f"system message added to {len(train) - own} of {len(train)} rows: {given.system!r}")
    return replace(data, train=train, evaluation=turned(data.evaluation))


def _warn_of_untrained_template(run: "Run", tokenizer: "PreTrainedTokenizerBase") -> None:
    arguments = run.record["arguments"]
    why = never_trained(tokenizer, arguments["model_name_or_path"], bool(arguments.get("trust_remote_code")))
    if why is None:
        return
    run.note("template_doubt", why)
    run.warn(
        f"the chat template was probably never trained: {why}. Run SFT on chats first, or give plain text (--as_chat "
        "false)"
    )


def without_column(data: Data, name: str) -> Data:
    """The data without a column, where its rows have it."""
    parts = (
        rows.remove_columns(name) if rows and name in rows.column_names else rows
        for rows in (data.train, data.evaluation)
    )
    return replace(data, **dict(zip(("train", "evaluation"), parts)))


def _refusal(row: Json, kind: str, tokenizer: "PreTrainedTokenizerBase", learned: Learned) -> str:
    """Why the chat template does not write a row, or an empty text."""
    try:
        if kind == "sft":
            encode_row(tokenizer, row, learned)
            return ""
        renderer(tokenizer, row)(row["prompt"], generation=True)
        for answer in answers_of(row, kind).values():
            check_dialogue(tokenizer, row, [*row["prompt"], *answer])
    except UserError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------------- rows as tokens and labels


def within_positions(
    run: "Run",
    config: "SFTConfig | DPOConfig | RewardConfig",
    model: "PretrainedConfig",
    effect: str = "rows are cut at",
) -> None:
    """Lowers ``max_length`` to the positions of the model, and says so: behind them nothing it computes is defined.

    Args:
        config: has ``max_length``.
        model: the model's config.
        effect: what happens at ``max_length`` tokens, for the terminal.
    """
    from pipeline.model.loading import position_limit

    limit, given = position_limit(model), config.max_length
    if limit is None or (given is not None and given <= limit):
        return
    config.max_length = limit
    run.note("max_length", limit)
    cause = f"max_length {given} is above the model's" if given else "no max_length is set, and the model has"
    run.say(f"{cause} {limit} positions: {effect} {limit}")


def learned_of(run: "Run", config: "SFTConfig") -> Learned:
    """What is learned by TRL's flags ``assistant_only_loss`` and ``completion_only_loss``, where they were given."""
    given = config.assistant_only_loss if "assistant_only_loss" in run.given else None
    return Learned(given, config.completion_only_loss)


def supervised(
    data: Data,
    tokenizer: "PreTrainedTokenizerBase",
    config: "SFTConfig",
    run: "Run",
    learned: Learned = ANSWERS,
    *,
    skip: bool = False,
    name: str = "train",
) -> Data:
    """The data as ``input_ids`` and ``labels``, ready for SFTTrainer; the share that is learned is reported.

    Args:
        config: TRL's ``SFTConfig``; its ``max_length``, ``truncation_mode`` and ``packing`` decide what is kept. The
            flags that are settled here (losses and chat template) are reset in it: TRL would act on them once more.
        learned: which tokens.
        skip: leave out rows that the chat template refuses, instead of stopping at the first.
        name: what the run record calls the training rows.

    Raises:
        UserError: a row that the template refuses (where it was read, and why); no token ends the assistant's turns
            that are to be learned; or no training row is left.
    """
    config.assistant_only_loss, config.completion_only_loss, config.chat_template_path = False, None, None
    if not hasattr(data.train, "__len__"):
        return data
    what = learned.of(data.train[0])
    if learned.assistant_only and what != "the assistant's turns" and "prompt" not in data.train.column_names:
        raise UserError("assistant_only_loss: the rows are no chat messages; leave the flag out")
    if "messages" in data.train.column_names or is_dialogue(data.train[0].get("prompt")):
        require_end_of_turn(tokenizer, "the chat template")
    if has_images(data.train.column_names):
        return _with_images(data, tokenizer, config, run, learned, name)
    parts = []
    for rows, places, label in splits_of(data, name):
        coded = encode(rows, tokenizer, config, learned)
        report_unused(run, label, Counter(key for keys in coded["unused"] for key in keys.split()))
        needed = rows is data.train or config.eval_strategy != "no"
        parts.append(kept_rows(coded, coded["lost"], run, label, places, coded["refused"], skip=skip, needed=needed))
    figures = {column: sum(parts[0][column]) for column in ("learned", "kept")}
    cut = sum(kept < length for kept, length in zip(parts[0]["kept"], parts[0]["length"]))
    share = figures["learned"] / figures["kept"]
    run.note("learned", {"share": round(share, 4), "of": what, "rows_cut": cut}, entry=name)
    run.add_metrics({"learned_share": share})
    ends = f"; {cut} of {len(parts[0])} rows are cut to max_length {config.max_length}" if cut else ""
    run.say(f"learning {share:.0%} of the tokens: {what}{ends}")
    train, *held_out = (part.select_columns(["input_ids", "labels"]) for part in parts)
    return replace(data, train=train, evaluation=held_out[0] if held_out and len(held_out[0]) else None)


def _with_images(
    data: Data, tokenizer: "PreTrainedTokenizerBase", config: "SFTConfig", run: "Run", learned: Learned, name: str
) -> Data:
    """Rows with images as TRL's trainer takes them, untokenised: it prepares images batch by batch.

    Raises:
        UserError: packing, a template without markers for dialogues, a row that it refuses, or one that is longer
            than ``max_length``, which would cut an image's places off.
    """
    if config.packing:
        raise UserError("packing: rows with images are not packed; leave it out")
    config.assistant_only_loss = "messages" in data.train.column_names and learned.assistant_only is not False
    config.completion_only_loss = "prompt" in data.train.column_names and learned.completion_only is not False
    if config.assistant_only_loss and not MARKER.search(tokenizer.get_chat_template()):
        raise UserError(
            "the chat template has no {% generation %} markers, by which TRL finds the assistant's turns beside "
            "images: give one with markers (--chat_template_path), rows of prompt and completion, or "
            "--assistant_only_loss false"
        )
    coded = encode(without_images(data.train), tokenizer, config, learned)
    if REFUSED in coded["lost"]:
        first = coded["lost"].index(REFUSED)
        raise UserError(place_of(data.train_places, first) + coded["refused"][first])
    within_length(data, config.max_length, [coded["length"]])
    share = sum(coded["learned"]) / sum(coded["length"])
    run.note("learned", {"share": round(share, 4), "of": learned.of(data.train[0]), "rows_cut": 0}, entry=name)
    run.add_metrics({"learned_share": share})
    if run.is_main:
        print(f"{run.stage}: learning {share:.0%} of the tokens: {learned.of(data.train[0])}", flush=True)
    config.max_length = None
    return data


def encode(
    rows: "datasets.Dataset", tokenizer: "PreTrainedTokenizerBase", config: "SFTConfig", learned: Learned = ANSWERS
) -> "datasets.Dataset":
    """Rows as ``input_ids`` and ``labels``, uncut, and what becomes of them.

    Further columns: ``length`` in tokens, of which ``kept`` stay within ``max_length`` and ``learned`` of these are
    learned; ``lost``, the cause where the row cannot be trained on (else empty); ``refused``, the template's reason;
    ``unused``, the keys of reasoning that the template does not write.
    """
    return rows.map(
        _encoded,
        fn_kwargs={"tokenizer": tokenizer, "learned": learned, "kept": kept_part(config)},
        remove_columns=rows.column_names,
        num_proc=config.dataset_num_proc,
        desc="Tokenizing",
    )


def _encoded(row: Json, tokenizer: "PreTrainedTokenizerBase", learned: Learned, kept: slice) -> Json:
    try:
        ids, marks = encode_row(tokenizer, row, learned)
    except UserError as error:
        nothing = {"length": 0, "kept": 0, "learned": 0}
        return {"input_ids": [], "labels": [], **nothing, "lost": REFUSED, "refused": str(error), "unused": ""}
    count = sum(marks[kept])
    return {
        "input_ids": ids,
        "labels": [i if mark else IGNORED for i, mark in zip(ids, marks, strict=True)],
        "length": len(ids),
        "kept": len(ids[kept]),
        "learned": count,
        "lost": "" if count else BEYOND if any(marks) else SILENT,
        "refused": "",
        "unused": " ".join(unused_reasoning(tokenizer, row)),
    }


def kept_part(config: "SFTConfig") -> slice:
    """What SFTTrainer keeps of a row's tokens."""
    if config.max_length is None or (config.packing and config.packing_strategy != "bfd"):
        return slice(None)
    if config.packing or config.truncation_mode == "keep_start":
        return slice(config.max_length)
    return slice(-config.max_length, None)
