"""A training run's weights as an official checkpoint."""

import numpy as np
from safetensors.numpy import load_file

from pixelflow_jax.convert import tables, variants
from pixelflow_jax.training.loop import train
from tests.convert import checkpoints
from tests.training import tiny


def test_any_average_of_a_run_is_exported(tmp_path, capsys):
    images = tiny.write_images(tmp_path / "images")
    state = train(tiny.run(images, steps=2), tmp_path / "run")
    table = variants.table_of(tiny.model())
    out = tmp_path / "out.safetensors"
    chosen = {"0.5": state.ema["0.5"], "raw": state.params["denoiser"]}
    for name, params in chosen.items():
        command = ("to-torch", tmp_path / "run", out, "--overwrite", f"--ema={name}")
        checkpoints.run(*command)
        found, wanted = load_file(out), tables.export(table, params)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)
    message = checkpoints.refused(capsys, *command[:-1], "--ema=0.7")
    assert "no average '0.7'" in message
    # And back, as a model of its own.
    checkpoints.run("from-torch", out, tmp_path / "ours", "--image-size=16")
    config, _ = checkpoints.read(tmp_path / "ours")
    assert config.model.width == tiny.model().width
