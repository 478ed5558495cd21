"""Load saved NarLMs with nothing but torch and transformers, and compare with what the pinned versions computed.

Run by `tests.versions.saved` in an environment of its own: ``python -I load_saved.py FOLDER``, where FOLDER holds one
saved model per subfolder and ``expected.pt``. Prints one line; a failed check raises.
"""

import importlib.util
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache

GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
TOLERANCE = 5e-5  # logits here are of order 10


def check_model(folder: Path, expected: dict) -> float:
    """The largest difference of a logit; raises where a check fails."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids, mask = expected["ids"], expected["mask"]  # two rows, the second padded on the left
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    difference = (logits - expected["logits"])[mask.bool()].abs().max().item()
    assert difference < TOLERANCE, f"{folder.name}: a logit differs by {difference}"

    for use_cache in (True, False):
        tokens = model.generate(ids, attention_mask=mask, use_cache=use_cache, **GREEDY)
        assert torch.equal(tokens, expected["tokens"]), f"{folder.name}: other greedy tokens, use_cache={use_cache}"

    row, full = ids[:1], expected["logits"][:1]
    for name in ("cache", "past_key_values"):
        given = DynamicCache(config=model.config)
        with torch.no_grad():
            model(row[:, :5], use_cache=True, **{name: given})
            rest = model(row[:, 5:], use_cache=True, **{name: given})
        assert (rest.logits - full[:, 5:]).abs().max() < TOLERANCE, f"{folder.name}: {name} is not read"
        assert rest.past_key_values is given, f"{folder.name}: the cache does not come back"
    try:
        model(row, unheard_of=DynamicCache())
    except TypeError as error:
        assert "unheard_of" in str(error)  # noqa: PT017  (pytest is not in this environment)
    else:
        raise AssertionError(f"{folder.name}: a cache under an unknown name was swallowed")

    model.train()
    model.gradient_checkpointing_enable()
    model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    return difference


def check_classifier(folder: Path, expected: dict) -> float:
    """The same of a sequence-classification head, and the other heads from its folder."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        scores = model(expected["ids"], attention_mask=expected["mask"]).logits
    difference = (scores - expected["logits"]).abs().max().item()
    assert difference < TOLERANCE, f"{folder.name}: a score differs by {difference}"
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "NarLMModel"
    return difference


def main(root: Path) -> None:
    """Check every folder that ``expected.pt`` names."""
    assert importlib.util.find_spec("pipeline") is None, "narlm is importable here: nothing would be shown"
    expected = torch.load(root / "expected.pt")
    differences = [
        (check_classifier if name == "classifier" else check_model)(root / name, found)
        for name, found in expected.items()
    ]
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}: {len(differences)} saved models load, "
        f"logits within {max(differences):.0e}, generation with a cache equals generation without"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
