"""The stages on models that see: NarLM and a Llava of others. What is learned, what stays, what is refused."""

import json

import pytest
import torch
from PIL import Image

from pipeline import dpo, generate, grpo, pretrain, reward_model, sft
from pipeline.inference.likelihood import answer_log_likelihoods
from pipeline.model.adapters import backbone_sha256
from pipeline.model.loading import load_model, load_tokenizer
from pipeline.model.tokens import encode_answer
from pipeline.model.vision import pixels_of, processor_of
from pipeline.runtime.errors import UserError
from tests.stages.conftest import flags, read_metrics, write_rows

SEEING = ["seeing_model", "foreign_seeing_model"]
SHORT = {"max_steps": 2, "eval_rows": 2, "gradient_checkpointing": False, "save_strategy": "no"}


def tower(folder) -> torch.nn.Module:
    return load_model(str(folder)).model.vision_tower


@pytest.mark.parametrize("model", SEEING)
def test_sft_learns_the_answer_and_no_place_of_an_image(model, trainer_of, picture_rows, request):
    """A batch of TRL's collator: the labels decode to the answer and its end; 4 places per image, no label there; the
    trainer's loss is the mean of -log p over the labels, by a forward pass with the pixels.
    """
    trainer = trainer_of(sft, model, picture_rows["ask"], **SHORT)
    processor = trainer.processing_class
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert ((batch["input_ids"] == processor.image_token_id).sum(1) == 4).all()
    assert not (batch["labels"] == processor.image_token_id).any()
    for ids in batch["labels"]:
        text = processor.tokenizer.decode(ids[ids != -100])
        assert text.strip().startswith(("It is red.", "It is blue."))
        assert text.rstrip().endswith("<|eos|>" if model == "seeing_model" else "<|im_end|>")
    loss = trainer.compute_loss(trainer.model, {**batch})
    with torch.no_grad():
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        log_probs = trainer.model(**given).logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    mean = -log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100].mean()
    torch.testing.assert_close(loss, mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", SEEING)
def test_a_whole_dialogue_learns_no_place_either(model, trainer_of, tmp_path, picture_rows, request):
    """messages and assistant_only_loss false: every token of the text is a label, none of the places."""
    rows = [json.loads(line) for line in picture_rows["ask"].read_text().splitlines()]
    rows = [
        {
            "images": [str(picture_rows["ask"].parent / row["image"])],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": row["prompt"]}, {"type": "image"}]},
                {"role": "assistant", "content": row["completion"]},
            ],
        }
        for row in rows
    ]
    if model == "foreign_seeing_model":  # its template has no markers to learn the answers alone by
        options = {"assistant_only_loss": False}
    else:
        options = {}
    file = write_rows(tmp_path / "m.jsonl", rows)
    if options:
        with pytest.raises(UserError, match=r"has no .% generation %. markers"):
            sft.main(
                flags(model_name_or_path=request.getfixturevalue(model), dataset_name=file, output_dir=tmp_path / "x")
            )
    trainer = trainer_of(sft, model, file, **SHORT, **options)
    batch = next(iter(trainer.get_train_dataloader()))
    image = batch["input_ids"] == trainer.processing_class.image_token_id
    assert (batch["labels"][image] == -100).all()
    learned = (batch["labels"] != -100).sum(1)
    words = batch["attention_mask"].sum(1) - 4
    assert (learned == words).all() if options else (learned < words).all()


def run(stage, model, out, **options) -> dict[str, float]:
    stage.main(flags(model_name_or_path=model, output_dir=out, **SHORT, **options))
    return read_metrics(out)


@pytest.mark.parametrize("model", SEEING)
def test_sft_dpo_grpo_and_generate(model, request, picture_rows, tmp_path, capsys):
    """Two steps of each on the output of the one before: the language side moves, the frozen encoder of NarLM does not
    (Llava's is trained, as it comes), the folders load with their processor, DPO's first loss is log 2, GRPO's first
    rollout is its own policy's, and an image changes what is generated.
    """
    start = request.getfixturevalue(model)
    run(sft, start, tmp_path / "sft", dataset_name=picture_rows["ask"])
    run(dpo, tmp_path / "sft", tmp_path / "dpo", dataset_name=picture_rows["pair"], logging_steps=1)
    metrics = run(
        grpo, tmp_path / "dpo", tmp_path / "grpo", dataset_name=picture_rows["ask"], reward="exact", beta=0.1,
        num_generations=2, max_completion_length=6, temperature=1.0,
    )  # fmt: skip
    log = json.loads((tmp_path / "dpo" / "trainer_state.json").read_text())["log_history"]
    assert log[0]["loss"] == pytest.approx(0.6931, abs=2e-3)
    assert 0 <= metrics["held_out_reward"] <= 1
    before, after = load_model(str(start)), load_model(str(tmp_path / "grpo"))
    frozen = getattr(before.config, "freeze_vision", False)
    same = backbone_sha256(before.model.vision_tower) == backbone_sha256(after.model.vision_tower)
    assert same or not frozen
    assert backbone_sha256(before.model.language_model) != backbone_sha256(after.model.language_model)
    assert processor_of(load_tokenizer(str(tmp_path / "grpo"))).image_token
    capsys.readouterr()
    model, tokenizer = load_model(str(tmp_path / "sft")), load_tokenizer(str(tmp_path / "sft"))
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is 1 plus it?"}]}]
    pair, seen = encode_answer(tokenizer, prompt, [{"role": "assistant", "content": "It is red."}]), []
    for colour in ("red", "blue"):
        image = str(picture_rows["ask"].parent / f"{colour}.png")
        words = ["--prompt", "What is 1 plus it?", "--image", image, "--max_new_tokens", "8"]
        generate.main(["--model_name_or_path", str(tmp_path / "sft"), *words])
        assert capsys.readouterr().out.startswith("> What is 1 plus it?\n")
        pixels = [pixels_of(tokenizer, [Image.open(image)])]
        seen += answer_log_likelihoods(model, [pair], pixels=pixels)
    assert abs(seen[0] - seen[1]) > 1e-4


def test_captions_train_the_projector_alone(tiny_model, tmp_path, picture_rows):
    """pretrain with a new encoder and projector_only: projector moves, text model and encoder stay; no row is cut."""
    rows = [
        {"image": str(picture_rows["ask"].parent / f"{c}.png"), "text": f"It is {c}."} for c in ("red", "blue")
    ] * 6
    file = write_rows(tmp_path / "captions.jsonl", rows)
    given = {
        "model_name_or_path": tiny_model, "vision_model_name_or_path": "vit", "vision_hidden_size": 16,
        "dataset_name": file, "deduplicate": False, "max_length": 64, "max_steps": 2, "eval_rows": 0,
        "projector_only": True, "save_strategy": "no",
    }  # fmt: skip
    pretrain.main(flags(output_dir=tmp_path / "out", **given))
    read_metrics(tmp_path / "out")
    text, seeing = load_model(str(tiny_model)), load_model(str(tmp_path / "out"))
    rows_of = text.get_input_embeddings().num_embeddings
    theirs = seeing.model.language_model.state_dict()
    for name, tensor in text.model.state_dict().items():
        assert torch.equal(theirs[name][:rows_of] if "embed_tokens" in name else theirs[name], tensor)
    other = tmp_path / "again"
    pretrain.main(flags(output_dir=other, **given | {"learning_rate": "0"}))
    untrained = load_model(str(other))
    assert backbone_sha256(untrained.model.vision_tower) == backbone_sha256(seeing.model.vision_tower)
    moved = (untrained.model.multi_modal_projector, seeing.model.multi_modal_projector)
    assert backbone_sha256(moved[0]) != backbone_sha256(moved[1])
    with pytest.raises(
        UserError, match=r"captions.jsonl, row 1: has \d+ tokens with its images, and max_length is 16"
    ):
        pretrain.main(flags(output_dir=tmp_path / "cut", **given | {"max_length": 16}))


@pytest.mark.parametrize(
    ("stage", "name", "options"),
    [(sft, "ask", {}), (dpo, "pair", {}), (grpo, "ask", {"reward": "exact", "num_generations": 2})],
)
def test_a_text_model_is_not_given_images(stage, name, options, tiny_model, picture_rows, tmp_path):
    with pytest.raises(UserError, match=rf"{name}.jsonl, row \d+: has an image, but the model reads text only"):
        run(stage, tiny_model, tmp_path / "out", dataset_name=picture_rows[name], **options)


@pytest.mark.parametrize("stage", [sft, dpo])
def test_no_image_is_cut(stage, seeing_model, picture_rows, tmp_path):
    """max_length 12 is less than an image's 4 places and the words: the row is named, nothing is trained."""
    name = "ask" if stage is sft else "pair"
    with pytest.raises(
        UserError, match=rf"{name}.jsonl, row \d+: has \d+ tokens with its images, and max_length is 12"
    ):
        run(stage, seeing_model, tmp_path / "out", dataset_name=picture_rows[name], max_length=12)


def test_generate_refuses(tiny_model, seeing_model, picture_rows):
    image = str(picture_rows["ask"].parent / "red.png")
    words = ["--prompt", "What?", "--image"]
    with pytest.raises(UserError, match="the model reads text only"):
        generate.main(["--model_name_or_path", str(tiny_model), *words, image])
    with pytest.raises(UserError, match="is a URL: images are not fetched"):
        generate.main(["--model_name_or_path", str(seeing_model), *words, "https://example.org/a.png"])
    with pytest.raises(UserError, match="--image goes with --prompt"):
        generate.main(["--model_name_or_path", str(seeing_model), "--chat", "--image", image])


def test_reward_model_sees(seeing_model, trainer_of, picture_rows):
    """Chosen answers first, then rejected ones, each with its own image: the loss is -log sigmoid of the margins that
    the model gives the rows one by one.
    """
    trainer = trainer_of(reward_model, seeing_model, picture_rows["pair"], max_steps=2, eval_rows=2)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (8, 3, 32, 32)
    assert torch.equal(batch["pixel_values"][:4], batch["pixel_values"][4:])
    model = trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(model, {**batch})
        scores = []
        for ids, mask, pixels in zip(batch["input_ids"], batch["attention_mask"], batch["pixel_values"]):
            given = ids[mask.bool()][None], pixels[None]
            scores.append(model(given[0], pixel_values=given[1]).logits.item())
    margins = torch.tensor(scores[:4]) - torch.tensor(scores[4:])
    torch.testing.assert_close(loss.float(), -margins.sigmoid().log().mean(), atol=1e-4, rtol=1e-4)


def test_a_saved_reward_model_judges_by_the_image(seeing_model, picture_rows, tmp_path):
    """Trained for two steps and loaded anew: the same words about a red and a blue picture have two scores."""
    out = tmp_path / "reward"
    reward_model.main(
        flags(
            model_name_or_path=seeing_model, output_dir=out, dataset_name=picture_rows["pair"], max_steps=2,
            eval_rows=4, deduplicate=False, gradient_checkpointing=False, save_strategy="no",
        )
    )  # fmt: skip
    assert "held_out_accuracy" in read_metrics(out)
    from pipeline.rewards.resolve import resolve

    prompts = [
        [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (32, 32), colour)}]}]
        for colour in ("red", "blue")
    ]
    red, blue = resolve(str(out))(prompts, ["It is red."] * 2)
    assert red != blue
