"""Loading a model: what is said of weights that its files lack."""

import shutil

from safetensors.torch import load_file, save_file

from pipeline.model.loading import load_model


def test_weights_that_the_files_lack_are_named(tiny_model, tmp_path, capsys):
    """They are random: a cut folder must not pass for the model. A complete one, with its tied head, says nothing."""
    shutil.copytree(tiny_model, tmp_path / "cut")
    weights = load_file(tiny_model / "model.safetensors")
    lost = next(name for name in weights if "mlp" in name or "ffn" in name or "layers.0" in name)
    save_file(
        {name: w for name, w in weights.items() if name != lost},
        tmp_path / "cut" / "model.safetensors",
        {"format": "pt"},
    )
    load_model(str(tmp_path / "cut"))
    assert f"lacks 1 weights, which are random now: {lost}" in capsys.readouterr().out
    load_model(str(tiny_model))
    assert capsys.readouterr().out == ""
