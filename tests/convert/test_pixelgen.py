"""PixelGen's mapping table: names, layouts, fused matrices, bit for bit both ways."""

import jax
import numpy as np
import pytest

from pixelflow_jax.convert import pixelgen
from pixelflow_jax.models.interface import network
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.tensors import mapping as tables


def config(**fields) -> PixelGen:
    sizes = {"num_classes": 5, "patch": 4, "image_size": 12, "width": 24, "heads": 3}
    rest = {"depth": 4, "context_length": 2, "context_start": 1, "feature_layer": 2}
    return PixelGen(**(sizes | rest | fields))


def official(config: PixelGen) -> tuple[list[tables.Row], dict, dict]:
    """A table, our shapes and random official weights."""
    shapes = network(config, Precision()).shapes()
    table = pixelgen.table(config)
    empty = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes)
    draw = np.random.default_rng(0).standard_normal
    names = tables.export(table, empty).items()
    return table, shapes, {k: draw(v.shape).astype(np.float32) for k, v in names}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bottleneck": 7},
        {"context_length": 0},
        {"feature_layer": 0},
        {"feature_layer": 4},
        {"feature_layer": 1},
    ],
    ids=str,
)
def test_load_and_export_are_inverse_bit_for_bit(fields):
    table, shapes, theirs = official(config(**fields))
    ours = tables.load(table, theirs, shapes)
    sizes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    assert sizes(ours) == sizes(shapes)
    assert all(a.flags.c_contiguous for a in jax.tree.leaves(ours))
    again = tables.export(table, ours)
    assert again.keys() == theirs.keys()
    for key, value in theirs.items():
        assert again[key].flags.c_contiguous
        np.testing.assert_array_equal(again[key], value, err_msg=key)
    jax.tree.map(np.testing.assert_array_equal, tables.load(table, again), ours)


def test_official_names_and_shapes():
    _, _, theirs = official(config(bottleneck=7))
    found = {key: value.shape for key, value in theirs.items()}
    assert (
        found.items()
        >= {
            "x_embedder.proj1.weight": (7, 3, 4, 4),
            "x_embedder.proj2.weight": (24, 7, 1, 1),
            "x_embedder.proj2.bias": (24,),
            "pos_embed": (1, 9, 24),
            "in_context_posemb": (1, 2, 24),
            "blocks.3.attn.qkv.bias": (72,),
            "blocks.0.mlp.w12.weight": (128, 24),
            "blocks.0.mlp.w12.bias": (128,),
            "blocks.0.mlp.w3.weight": (24, 64),
            "blocks.0.adaLN_modulation.1.weight": (144, 24),
            "final_layer.norm_final.weight": (24,),
            "final_layer.adaLN_modulation.1.bias": (48,),
            "final_layer.linear.weight": (48, 24),
        }.items()
    )
    assert "x_embedder.proj1.bias" not in theirs and len(theirs) == 4 * 14 + 15
    _, _, theirs = official(config(context_length=0))
    assert theirs["x_embedder.proj1.weight"].shape == (24, 3, 4, 4)
    assert theirs["x_embedder.proj1.bias"].shape == (24,)
    absent = {"x_embedder.proj2.weight", "x_embedder.proj2.bias", "in_context_posemb"}
    assert not absent & set(theirs)


def test_layouts_by_hand():
    table, shapes, theirs = official(config(bottleneck=7))
    ours = tables.load(table, theirs, shapes)
    c, p, q = 2, 1, 3
    first = theirs["x_embedder.proj1.weight"]
    pixel = (p * 4 + q) * 3 + c
    np.testing.assert_array_equal(
        ours["patch_embed"]["kernel"][pixel], first[:, c, p, q]
    )
    last = theirs["final_layer.linear.weight"]
    np.testing.assert_array_equal(ours["decoder"]["linear"]["kernel"], last.T)
    # Layer 2 is the first of the late stack; gate is the first half of w12.
    mlp = jax.tree.map(lambda a: a[0], ours["late"]["blocks"]["mlp"])
    for name, half in (("gate", slice(0, 64)), ("up", slice(64, None))):
        weight = theirs["blocks.2.mlp.w12.weight"][half]
        np.testing.assert_array_equal(mlp[name]["kernel"], weight.T)
        bias = theirs["blocks.2.mlp.w12.bias"][half]
        np.testing.assert_array_equal(mlp[name]["bias"], bias)


def test_wrong_keys_are_named():
    table, shapes, theirs = official(config())
    del theirs["blocks.1.mlp.w12.bias"]
    theirs["blocks.2.mlp.w12.weight"] = np.zeros((127, 24))
    theirs["pos_embed"] = np.zeros((1, 16, 24))
    with pytest.raises(ValueError) as raised:
        tables.load(table, theirs, shapes)
    lines = str(raised.value).splitlines()[1:]
    assert sorted(line.strip() for line in lines) == [
        "misshapen: blocks.2.mlp.w12.weight: (127, 24), not (128, 24)",
        "misshapen: pos_embed: (1, 16, 24), not (1, 9, 24)",
        "missing: blocks.1.mlp.w12.bias",
    ]
