"""Mapping tables load and export bit for bit, and name every key that is wrong."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from pixelflow_jax.convert import pixnerd
from pixelflow_jax.errors import WeightsError
from pixelflow_jax.models.interface import network
from pixelflow_jax.models.pixnerd import PixNerd
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.tensors import layouts
from pixelflow_jax.tensors import mapping as tables
from pixelflow_jax.tensors.mapping import Row, linear_rows, stacked_rows
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
    with pytest.raises(WeightsError) as raised:
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
    "make", [layouts.patch_inputs, layouts.patch_outputs], ids=["inputs", "outputs"]
)
def test_patch_layouts_by_hand(make):
    """Channel c, row p, column q of a patch: (c, p, q) there, (p, q, c) here."""
    channels, patch, width = 3, 2, 5
    theirs = np.arange(channels * patch**2 * width).reshape(-1, width)
    if make is layouts.patch_inputs:
        theirs = theirs.T
    ours = make(channels, patch).load(theirs)
    c, p, q = 2, 1, 0
    there, here = (c * patch + p) * patch + q, (p * patch + q) * channels + c
    if make is layouts.patch_inputs:
        np.testing.assert_array_equal(ours[here], theirs[:, there])
    else:
        np.testing.assert_array_equal(ours[:, here], theirs[there])
        bias = np.arange(channels * patch**2)
        assert make(channels, patch).load(bias)[here] == there


# A frozen network's table: its rows tell their shapes.
ROWS = [
    *linear_rows("one", "x", shape=(3, 2)),
    *stacked_rows(
        [
            Row("both", ("p", "q"), shape=(1, 2)),
            Row(
                ("gate/kernel", "up/kernel"),
                "g.weight",
                layouts.transpose,
                None,
                (8, 3),
            ),
            Row("scale", "z", shape=(4,)),
        ],
        "blocks/",
        "y.{i}.",
        3,
    ),
]
LAYERS = range(3)


def frozen() -> dict[str, np.ndarray]:
    """Random official tensors of ROWS."""
    draw = np.random.default_rng(0).standard_normal
    shapes = {key: row.shape for row in ROWS for key in row.keys()}
    return {key: draw(shape).astype(np.float32) for key, shape in shapes.items()}


def test_rows_rename_transpose_join_divide_and_stack():
    theirs = frozen()
    own = (f"y.{i}.{name}" for i in LAYERS for name in ("p", "q", "g.weight", "z"))
    assert set(theirs) == {"x.weight", "x.bias", *own}
    ours = tables.load(ROWS, theirs)
    np.testing.assert_array_equal(ours["one"]["kernel"], theirs["x.weight"].T)
    np.testing.assert_array_equal(ours["one"]["bias"], theirs["x.bias"])
    blocks = ours["blocks"]
    joined = np.concatenate([theirs["y.1.p"], theirs["y.1.q"]], 1)
    np.testing.assert_array_equal(blocks["both"][1], joined)
    np.testing.assert_array_equal(blocks["scale"][2], theirs["y.2.z"])
    halves = [blocks[name]["kernel"][0] for name in ("gate", "up")]
    np.testing.assert_array_equal(np.concatenate(halves, 1), theirs["y.0.g.weight"].T)
    shapes = tables.shapes(ROWS)
    assert shapes["one"]["kernel"].shape == (2, 3)
    assert shapes["blocks"]["both"].shape == (3, 1, 4)
    described = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), ours)
    assert described == shapes
    for key, value in tables.export(ROWS, ours).items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64], ids=str)
def test_types_are_kept_or_those_of_a_precision(dtype):
    """Cast once from the file's type, as numpy casts: matrices, and all else."""
    theirs = {key: value.astype(dtype) for key, value in frozen().items()}
    kept = tables.load(ROWS, theirs)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype(dtype)}
    for compute in ("float32", "bfloat16"):
        precision = Precision(compute=compute)
        ours = tables.load(ROWS, theirs, precision=precision)
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), ours, kept
        )
        described = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), ours)
        assert described == tables.shapes(ROWS, precision)
        assert ours["blocks"]["up"]["kernel"].dtype == precision.dtype
        assert ours["blocks"]["both"].dtype == np.float32


def test_every_wrong_tensor_of_a_frozen_network_is_named_at_once():
    theirs = frozen()
    del theirs["x.bias"], theirs["y.1.q"]
    theirs |= {"y.0.z": np.zeros(5), "x.weight": np.zeros((2, 3)), "y.3.z": np.zeros(4)}
    theirs |= {"y.2.g.weight": np.zeros((8, 3), np.int8)}
    theirs |= {"head.weight": np.zeros(1), "known.unused": np.zeros(1)}
    with pytest.raises(WeightsError) as raised:
        tables.load(ROWS, theirs, name="some.pth", ignored=r"known\..*")
    first, *lines = str(raised.value).splitlines()
    assert "some.pth" in first
    assert [line.strip() for line in lines] == [
        "missing: x.bias",
        "missing: y.1.q",
        "unexpected: head.weight",
        "unexpected: y.3.z",
        "misshapen: x.weight: (2, 3), not (3, 2)",
        "mistyped: y.0.g.weight, y.1.g.weight, y.2.g.weight: float32, int8, "
        "not one float type",
        "misshapen: y.0.z: (5,), not (4,)",
    ]
    with pytest.raises(WeightsError, match=r"unexpected: known\.unused"):
        tables.load(ROWS, frozen() | {"known.unused": np.zeros(1)})
