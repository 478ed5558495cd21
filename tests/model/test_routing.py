"""The router by hand in two dimensions, and adapters of which every row gets the one its prompt asks for."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pipeline.model.adapters import backbone_sha256
from pipeline.model.loading import load_model
from pipeline.model.routing import Router, load_routed, on_route, prompt_features, routed, save_routed
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model

# Two routes that differ along the second feature by 2, while the first varies by 10 within each.
FIRST = torch.tensor([[-10.0, 0.1], [10.0, -0.1], [-10.0, -0.1], [10.0, 0.1]])
SECOND = FIRST + torch.tensor([3.0, 2.0])


def two_routes() -> Router:
    router = Router.empty(2)
    router.add(0, FIRST)
    router.add(4, SECOND)
    return router


def test_the_metric_is_the_covariance_within_routes():
    """Means (0, 0) and (3, 2). (9, 0.2) is nearer to (3, 2) by Euclid, 6.3 against 9.0; but the first feature varies
    by 10 within a route and the second by 0.1, so it is route 0's. (-9, 1.8) is the other way round.
    """
    router = two_routes()
    assert torch.allclose(router.means, torch.tensor([[0.0, 0.0], [3.0, 2.0]], dtype=torch.float64))
    assert torch.allclose(router.scatter, torch.diag(torch.tensor([800.0, 0.08], dtype=torch.float64)))
    assert router.choose(torch.tensor([[9.0, 0.2], [-9.0, 1.8]])) == [0, 4]


def test_a_route_that_joins_leaves_the_others_as_they_were(tmp_path):
    """Saved and loaded between the two: bit for bit the router that saw both at once."""
    router = Router.empty(2)
    router.add(0, FIRST)
    router.save(tmp_path)
    router = Router.load(tmp_path)
    router.add(4, SECOND)
    whole = two_routes()
    assert router.routes == [0, 4]
    assert all(torch.equal(getattr(router, n), getattr(whole, n)) for n in ("counts", "means", "scatter"))


def test_features_are_means_over_the_prompt_alone():
    """A batch with padding gives what each prompt gives alone: the mean of the first and of the last hidden states."""
    model = tiny_model().eval()
    prompts = [[3, 4, 5, 6, 7], [8, 9]]
    found = prompt_features(model, prompts, batch_size=2)
    for row, ids in zip(found, prompts, strict=True):
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = torch.cat([states[0][0].mean(0), states[-1][0].mean(0)])
        assert torch.allclose(row, expected, atol=1e-5)


def test_every_row_goes_through_the_adapter_of_its_prompt(tmp_path):
    """Two adapters, their B matrices set by hand. The logits are of the row's adapter, of the backbone for route 0,
    whatever else is in the batch and whatever its answer; all of it after saving and loading.
    """
    base = tiny_model().eval()
    base.save_pretrained(tmp_path / "base")
    prompts = {0: [[3, 4, 5], [3, 5, 4]], 1: [[10, 11, 12], [11, 10, 12]], 2: [[17, 18, 19], [19, 18, 17]]}
    router, earlier = Router.empty(prompt_features(base, prompts[0]).shape[1]), None
    router.add(0, prompt_features(base, prompts[0]))
    for route in (1, 2):
        model = get_peft_model(
            load_model(str(tmp_path / "base")), LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
        )
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.data.fill_(0.1 * route)
        folder = tmp_path / f"corpus-{route}"
        model.save_pretrained(folder)
        router.add(route, prompt_features(base, prompts[route]))
        save_routed(folder, earlier, route, str(tmp_path / "base"), router)
        earlier = folder
    model, loaded = load_routed(folder)
    assert backbone_sha256(model) == backbone_sha256(base)

    def last_logits(model, rows, batch_size):
        return [model(input_ids=torch.tensor([row])).logits[0, -1].detach() for row in rows]

    rows = [[*prompt, 23] for pair in zip(*prompts.values(), strict=True) for prompt in pair]  # 0 1 2 0 1 2
    found = routed(loaded, last_logits, lambda row: row[:-1])(model, rows)
    for place, (row, logits) in enumerate(zip(rows, found, strict=True)):
        alone = load_model(str(folder / "routes" / str(place % 3))) if place % 3 else base
        assert torch.allclose(logits, last_logits(alone, [row], 1)[0], atol=1e-4)
    with on_route(model, 0):
        assert not torch.allclose(found[1], last_logits(model, [rows[1]], 1)[0], atol=1e-2)


def test_a_routed_folder_is_not_one_model(tmp_path):
    """Any stage that is given the folder says which to give instead; a plain folder is no routed one."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    peft = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    peft.save_pretrained(tmp_path / "run")
    with pytest.raises(UserError, match="not a folder of routed adapters"):
        load_routed(tmp_path / "run")
    save_routed(tmp_path / "run", None, 1, str(tmp_path / "base"), two_routes())
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["method"] == "routed"
    with pytest.raises(UserError, match="several adapters: name one of them"):
        load_model(str(tmp_path / "run"))
