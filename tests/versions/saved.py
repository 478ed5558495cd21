"""``make test-versions``: saved NarLMs load without this package on the last minor versions of transformers.

Builds one environment per version in ``build/versions`` (torch is this environment's own) and runs `load_saved` in
it. Prints one line per version; the exit status is 1 if any failed.

    python -m tests.versions.saved              the newest minor version and the six before it
    python -m tests.versions.saved 5.18.0       these versions
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from pipeline.model import NarLMForSequenceClassification
from tests.model.conftest import KINDS, SIZES, build
from tests.versions.environments import newest_minors, overlay
from tests.versions.load_saved import GREEDY

MINORS = 7


def save_examples(root: Path) -> None:
    """One small NarLM of each kind and a classifier, with what this environment computes on a left-padded batch."""
    ids = torch.randint(3, SIZES["vocab_size"], (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, :5], mask[1, :5] = SIZES["pad_token_id"], 0
    batch = {"ids": ids, "mask": mask}
    expected = {}
    for kind in KINDS:
        model = build(kind, "sdpa")
        model.save_pretrained(root / kind)
        tokens = model.generate(ids, attention_mask=mask, use_cache=False, **GREEDY)
        expected[kind] = {**batch, "logits": model(ids, attention_mask=mask).logits.detach(), "tokens": tokens}
    classifier = NarLMForSequenceClassification(build("llama", "sdpa", num_labels=1).config).eval()
    classifier.save_pretrained(root / "classifier")
    expected["classifier"] = {**batch, "logits": classifier(ids, attention_mask=mask).logits.detach()}
    torch.save(expected, root / "expected.pt")


def main(versions: list[str]) -> int:
    """Check each version; the number of failures."""
    failed = 0
    script = Path(__file__).with_name("load_saved.py")
    with tempfile.TemporaryDirectory() as root:
        save_examples(Path(root))
        for version in versions or newest_minors("transformers", MINORS):
            python = overlay(f"transformers-{version}", [f"transformers=={version}"])
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{root}/modules-{version}"}
            # -I: neither the checkout nor PYTHONPATH is on the path
            command = [python, "-I", "-W", "ignore", script, root]
            done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
            if done.returncode:
                failed += 1
                print(f"transformers {version}: FAILED\n{done.stderr[-3000:]}", flush=True)
            else:
                print(done.stdout.strip().splitlines()[-1], flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
