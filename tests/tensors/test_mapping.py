"""Mapping tables load and export bit for bit, and name every key that is wrong."""

import dataclasses

import jax
import numpy as np
import pytest

from pixelflow_jax.convert import pixnerd
from pixelflow_jax.models.interface import network
from pixelflow_jax.models.pixnerd import PixNerd
from pixelflow_jax.tensors import mapping as tables
from tests.golden import record


def official(config: PixNerd) -> tuple[list[tables.Row], dict, dict]:
    """A table, our shapes and official weights by formula."""
    shapes = network(config, record.EXACT).shapes()
    table = pixnerd.table(config)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes)
    names = tables.export(table, zeros).items()
    return table, shapes, {k: record.weight(k, v.shape) for k, v in names}


CONFIGS = {
    "field": record.MODEL,
    "linear": record.BASELINE,
    "tap 0": dataclasses.replace(record.MODEL, feature_layer=0),
    "tap depth": dataclasses.replace(record.MODEL, feature_layer=2),
    "no norm": dataclasses.replace(
        record.MODEL,
        decoder=dataclasses.replace(record.MODEL.decoder, output_norm=False),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_load_and_export_are_inverse_bit_for_bit(name):
    table, shapes, theirs = official(CONFIGS[name])
    ours = tables.load(table, theirs, shapes)
    found = jax.tree.map(lambda a: a.shape, ours)
    assert found == jax.tree.map(lambda a: a.shape, shapes)
    again = tables.export(table, ours)
    assert again.keys() == theirs.keys()
    for key, value in theirs.items():
        assert again[key].flags.c_contiguous
        np.testing.assert_array_equal(again[key], value, err_msg=key)
    jax.tree.map(np.testing.assert_array_equal, tables.load(table, again), ours)


def test_official_names_and_layouts():
    _, _, theirs = official(record.MODEL)
    assert {key: value.shape for key, value in theirs.items()}.items() >= {
        "s_embedder.proj.weight": (24, 48),
        "blocks.1.attn.qkv.weight": (72, 24),
        "blocks.1.mlp.w3.weight": (64, 24),
        "blocks.3.param_generator1.0.weight": (144, 24),
        "x_embedder.embedder.0.weight": (6, 67),
        "final_layer.linear.weight": (3, 6),
    }.items()
    _, _, theirs = official(record.BASELINE)
    assert "s_embedder.proj.weight" not in theirs
    assert theirs["x_embedder.proj.weight"].shape == (24, 48)
    assert theirs["final_layer.linear.weight"].shape == (48, 24)


def test_every_wrong_key_is_named_at_once():
    table, shapes, theirs = official(record.MODEL)
    del theirs["blocks.1.norm2.weight"], theirs["s_embedder.proj.bias"]
    theirs["ema.decay"] = np.zeros(1)
    theirs["y_embedder.extra"] = np.zeros(1)
    theirs["blocks.0.attn.proj.bias"] = np.zeros(25)
    theirs["s_embedder.proj.weight"] = np.zeros((24, 12))
    with pytest.raises(ValueError) as raised:
        tables.load(table, theirs, shapes)
    lines = str(raised.value).splitlines()[1:]
    assert sorted(line.strip() for line in lines) == [
        "misshapen: blocks.0.attn.proj.bias: (25,), not (24,)",
        "misshapen: s_embedder.proj.weight: (24, 12), not (24, 48)",
        "missing: blocks.1.norm2.weight",
        "missing: s_embedder.proj.bias",
        "unexpected: ema.decay",
        "unexpected: y_embedder.extra",
    ]


@pytest.mark.parametrize(
    "make", [tables.patch_inputs, tables.patch_outputs], ids=["inputs", "outputs"]
)
def test_patch_layouts_by_hand(make):
    """Channel c, row p, column q of a patch: (c, p, q) there, (p, q, c) here."""
    channels, patch, width = 3, 2, 5
    theirs = np.arange(channels * patch**2 * width).reshape(-1, width)
    if make is tables.patch_inputs:
        theirs = theirs.T
    ours = make(channels, patch).load(theirs)
    c, p, q = 2, 1, 0
    there, here = (c * patch + p) * patch + q, (p * patch + q) * channels + c
    if make is tables.patch_inputs:
        np.testing.assert_array_equal(ours[here], theirs[:, there])
    else:
        np.testing.assert_array_equal(ours[:, here], theirs[there])
        bias = np.arange(channels * patch**2)
        assert make(channels, patch).load(bias)[here] == there
