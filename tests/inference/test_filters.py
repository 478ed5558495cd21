"""Each filter against transformers' own logits processor, alone and all of them in a row."""

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipeline.inference.filters import check_options, filtered_probabilities, penalised
from pipeline.runtime.errors import UserError

CONTEXTS = [[3, 3, 17, 40], [0, 1, 2, 5], [49, 48, 3, 3]]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 0.8},
        {"repetition_penalty": 1.3, "temperature": 1.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
        {"repetition_penalty": 1.3, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.3},
    ],
)
def test_the_law_is_that_of_transformers_processors(options):
    """Random logits of 50 tokens, three rows; normalised, ours are transformers' in its order."""
    logits = 3 * torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = dict(options)
    penalty = given.pop("repetition_penalty", 1.0)
    ours = filtered_probabilities(penalised(logits, CONTEXTS, penalty), **{"temperature": 1.0, **given})
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    makers = {
        "temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }  # fmt: skip
    processors.extend(make(given[name]) for name, make in makers.items() if name in given)
    theirs = processors(torch.tensor(CONTEXTS), logits.clone()).softmax(-1)
    torch.testing.assert_close(ours / ours.sum(-1, keepdim=True), theirs, rtol=1e-9, atol=1e-12)
    if given.keys() - {"temperature"}:
        assert (ours == 0).any(-1).all()


@pytest.mark.parametrize(
    ("option", "value"), [("min_p", -0.1), ("min_p", 1.1), ("repetition_penalty", 0.0), ("batch_size", 0)]
)
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(UserError, match=f"{option} is {value}"):
        check_options(**{option: value})
