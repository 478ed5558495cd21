"""The lines of a model card that load the model and use it, as they run for whoever copies them."""

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from pipeline.runtime.adapter_kinds import NARLM_PEFT_TYPE
from pipeline.runtime.files import Json
from pipeline.runtime.messages import user_turn

PROMPT, ANSWERS, TEXT = "What is 2 plus 3?", ("5.", "I do not know."), "The sun rises in"


def snippet(folder: Path, record: Json, name: str, base: str | None) -> str:
    """Python code that loads ``name``, which is what ``folder`` holds, and lets it answer or score.

    Args:
        folder: the folder of the weights.
        record: its run record.
        name: what the code calls it: a repository, or a folder.
        base: Hub id of an adapter's base, where it is known.
    """
    adapter = _read(folder / "adapter_config.json")
    load = _load(adapter, name, base, scores(folder, record), runs_code(folder, record))
    from pipeline.model.chat import last_note  # heavy: `narlm push --help` is quick

    note, pretrained = last_note(folder)
    note = note or {"as_chat": not pretrained, "system": None}
    chat, system = _has_chat_template(folder) and note["as_chat"], note["system"]
    if scores(folder, record):
        return f"{load}\n\n{_use_scores(chat, system, adapter)}"
    by_peft = bool(adapter) and adapter.get("peft_type") != NARLM_PEFT_TYPE
    generation = by_peft and (folder / "generation_config.json").is_file()
    if generation:
        load = load.replace("import AutoTokenizer", "import AutoTokenizer, GenerationConfig")
    options = f"generation_config=GenerationConfig.from_pretrained({name!r}), " if generation else ""
    return f"{load}\n\n{_use_text(chat, system, options)}"


def scores(folder: Path, record: Json) -> bool:
    """Whether a saved model is a reward model, whichever stage wrote it."""
    adapter, config = _read(folder / "adapter_config.json"), _read(folder / "config.json")
    kinds = [adapter["task_type"]] if adapter.get("task_type") else config.get("architectures")
    if not kinds:
        return record["stage"] == "reward_model"
    return any(kind == "SEQ_CLS" or kind.endswith("ForSequenceClassification") for kind in kinds)


def runs_code(folder: Path, record: Json) -> bool:
    """Whether a model, or an adapter's base, needs the code in its repository; True if no config is available."""
    places = [folder, *(Path(parent["path"]) for parent in record["parents"][:1] if "path" in parent)]
    bases = [_read(place / "adapter_config.json").get("base_model_name_or_path") for place in places]
    for config in (*(place / "config.json" for place in places), *map(_config_of, filter(None, bases))):
        if config is not None and config.is_file():
            return "auto_map" in _read(config)
    return True


def _config_of(name: str) -> Path | None:
    """The configuration of a model folder, or of a repository in the local cache."""
    if Path(name).is_dir():
        return Path(name) / "config.json"
    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _load(adapter: Json, name: str, base: str | None, is_reward: bool, code: bool) -> str:
    kind = "AutoModelForSequenceClassification" if is_reward else "AutoModelForCausalLM"
    options = (", num_labels=1" if is_reward and adapter else "") + (", trust_remote_code=True" if code else "")
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({name!r})\n"
    if adapter.get("method") == "routed":
        return (
            f"from peft import PeftConfig, PeftModel\nfrom transformers import AutoTokenizer, {kind}\n\n{tokenizer}"
            f"config = PeftConfig.from_pretrained({name!r}, subfolder='routes/1')  # one route of several\n"
            f"base = {kind}.from_pretrained(config.base_model_name_or_path{options})\n"
            f"model = PeftModel.from_pretrained(base, {name!r}, subfolder='routes/1')"
        )
    if adapter.get("peft_type") == NARLM_PEFT_TYPE:
        return (
            "from pipeline.model.loading import load_model, load_tokenizer  # PEFT has no such kind of adapter\n\n"
            f"tokenizer = load_tokenizer({name!r})\nmodel = load_model({name!r})"
        )
    if adapter:
        peft_kind = kind.replace("Auto", "AutoPeft")
        return (
            f"from peft import {peft_kind}\nfrom transformers import AutoTokenizer\n\n{tokenizer}"
            f"# The base ({base or 'see the lineage below'}) is found through adapter_config.json.\n"
            + ("# A load report names score.weight as missing: it comes with the adapter.\n" if is_reward else "")
            + f"model = {peft_kind}.from_pretrained({name!r}{options})"
        )
    return (
        f"from transformers import {kind}, AutoTokenizer\n\n{tokenizer}"
        f"model = {kind}.from_pretrained({name!r}{options})"
    )


def _use_text(chat: bool, system: str | None, options: str) -> str:
    if not chat:
        return (
            f"inputs = tokenizer({TEXT!r}, return_tensors='pt')\n"
            f"output = model.generate(**inputs, {options}max_new_tokens=64)\n"
            "print(tokenizer.decode(output[0], skip_special_tokens=True))"
        )
    from pipeline.model.chat import with_system

    return (
        f"messages = {with_system({'messages': user_turn(PROMPT)}, system)['messages']!r}\n"
        "inputs = tokenizer.apply_chat_template(\n"
        "    messages, add_generation_prompt=True, return_tensors='pt', return_dict=True\n)\n"
        f"output = model.generate(**inputs, {options}max_new_tokens=64)\n"
        "print(tokenizer.decode(output[0, inputs['input_ids'].shape[1]:], skip_special_tokens=True))"
    )


def _use_scores(chat: bool, system: str | None, adapter: Json) -> str:
    pad = "model.config.pad_token_id = tokenizer.pad_token_id  # the base may have none\n" if adapter else ""
    question = f"question = {PROMPT!r}\nanswers = {list(ANSWERS)!r}\n"
    if chat:
        said = f"{{'role': 'system', 'content': {system!r}}}, " if system else ""
        texts = (
            f"asked = [{said}{{'role': 'user', 'content': question}}]\n"
            "dialogues = [[*asked, {'role': 'assistant', 'content': answer}] for answer in answers]\n"
            "inputs = tokenizer.apply_chat_template(dialogues, padding=True, return_tensors='pt', return_dict=True)\n"
        )
    else:
        texts = (
            "texts = [f'{question} {answer}{tokenizer.eos_token}' for answer in answers]\n"
            "inputs = tokenizer(texts, padding=True, return_tensors='pt')\n"
        )
    use = "scores = model(**inputs).logits[:, 0].tolist()  # the higher, the better\nprint(scores)"
    return f"{pad}{question}{texts}{use}"


def _has_chat_template(folder: Path) -> bool:
    return (folder / "chat_template.jinja").is_file() or "chat_template" in _read(folder / "tokenizer_config.json")


def _read(file: Path) -> Json:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
