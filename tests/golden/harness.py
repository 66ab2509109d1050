"""Reference arrays of the official code: finding, loading and comparing them.

A fixture is a safetensors file whose metadata entry `meta` (JSON) says what it holds:
its kind and its config. Every file of the golden folder whose kind and variant a test
handles becomes a test; nothing here knows file names, sizes or cases.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from pixelflow_jax.convert import (
    deco,
    pixelflow,
    pixelgen,
    pixnerd,
)
from pixelflow_jax.models.deco import DeCo, PixelMLPs
from pixelflow_jax.models.interface import Condition, DenoiserConfig, Network, network
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd import LinearDecoder, NeuralField, PixNerd
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack, StackConfig
from pixelflow_jax.tensors import mapping as tables
from tests.conftest import golden_dir

EXACT = Precision(compute="float32", matmul="highest")
FORWARD = 5e-5  # of forward passes, float32 to float32


@dataclasses.dataclass(frozen=True)
class Fixture:
    """One file; tensors are read when asked for."""

    path: pathlib.Path
    kind: str
    config: dict = dataclasses.field(hash=False)

    @property
    def stem(self) -> str:
        return self.path.stem

    @functools.cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        with safe_open(self.path, "np") as file:
            return {key: file.get_tensor(key) for key in file.keys()}

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Tensors below `prefix/`, without it."""
        cut = f"{prefix}/"
        found = {k[len(cut) :]: v for k, v in self.tensors.items() if k.startswith(cut)}
        assert found, f"{self.path.name} holds nothing under {cut}"
        return found


@functools.cache
def fixtures() -> tuple[Fixture, ...]:
    folder = golden_dir()
    if folder is None:
        return ()
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
        if "kind" in meta:
            found.append(Fixture(path, meta["kind"], meta["config"]))
    return tuple(found)


def parametrize(
    kind: str, variant: str | None, cases: callable
) -> pytest.MarkDecorator:
    """One test for every case of every fixture of a kind; skipped where none is found.

    `cases(fixture)` gives the names; a test takes `fixture` and `case`.
    """

    def collected() -> Iterator:
        for fixture in fixtures():
            if fixture.kind == kind and fixture.config.get("variant") == variant:
                for case in cases(fixture):
                    yield pytest.param(
                        fixture, case, id=f"golden-{fixture.stem}-{case}"
                    )

    found = list(collected())
    if not found:
        reason = f"no reference arrays of kind {kind}: see PIXELFLOW_GOLDEN_DIR"
        skip = pytest.mark.skip(reason=reason)
        found = [pytest.param(None, None, id="golden-absent", marks=skip)]
    return pytest.mark.parametrize(("fixture", "case"), found)


def close(ours, theirs: np.ndarray, name: str, tolerance: float = FORWARD) -> None:
    """Equal shapes; values to `tolerance` times the larger of 1 and max |theirs|."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, f"{name}: {ours.shape}, not {theirs.shape}"
    assert np.isfinite(theirs).all() and np.isfinite(ours).all(), f"{name}: not finite"
    scale = max(1.0, float(np.abs(theirs).max(initial=0)))
    off = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0))
    assert off <= tolerance * scale, (
        f"{name}: off by {off:.2e} (largest value {scale:.3g}, tolerance {tolerance:g})"
    )


def nhwc(images: np.ndarray) -> np.ndarray:
    """[..., c, h, w] to [..., h, w, c]."""
    return np.moveaxis(images, -3, -1)


def nchw(images) -> np.ndarray:
    """[..., h, w, c] to [..., c, h, w]."""
    return np.moveaxis(np.asarray(images), -1, -3)


def take(options: dict, known: dict) -> dict:
    """The options over their defaults; an option that is not known is an error."""
    unknown = sorted(set(options) - set(known))
    assert not unknown, f"options that this test does not understand: {unknown}"
    return {**known, **options}


def pixnerd_config(
    kwargs: dict, *, baseline: bool = False, feature_layer=None, **more
) -> PixNerd:
    """Our config from the official constructor's arguments.

    The baseline (FlattenDiT) has `num_blocks` transformer blocks and no field.
    """
    names = (
        "in_channels num_groups hidden_size num_blocks patch_size num_classes"
    ).split()
    if not baseline:
        names += ["hidden_size_x", "nerf_mlpratio", "num_cond_blocks"]
    missing = sorted(set(names) - set(kwargs))
    assert not missing, f"the official arguments lack {missing}"
    o = take(kwargs, dict.fromkeys(names))
    depth = o["num_blocks"] if baseline else o["num_cond_blocks"]
    decoder = LinearDecoder()
    if not baseline:
        decoder = NeuralField(
            width=o["hidden_size_x"],
            ratio=o["nerf_mlpratio"],
            depth=o["num_blocks"] - depth,
        )
    return PixNerd(
        num_classes=o["num_classes"],
        channels=o["in_channels"],
        patch=o["patch_size"],
        width=o["hidden_size"],
        heads=o["num_groups"],
        depth=depth,
        feature_layer=depth // 2 if feature_layer is None else feature_layer,
        decoder=decoder,
        **more,
    )


class Loaded:
    """Our network with a fixture's weights, as a function and as a module."""

    def __init__(
        self,
        config: DenoiserConfig,
        official: dict[str, np.ndarray],
        table: list[tables.Row],
    ):
        size = getattr(config, "canvas", ()) or (config.patch, config.patch)
        assert not config.problems(*size)
        self.config = config
        self.network: Network = network(config, EXACT)
        self.table = table
        shapes = self.network.shapes()
        loaded = tables.load(self.table, official, shapes)
        assert jax.tree.structure(loaded) == jax.tree.structure(shapes)
        self.params = jax.tree.map(jax.numpy.asarray, loaded)

    def module(self, params: dict) -> nnx.Module:
        build = lambda: self.config.build(nnx.Rngs(params=0), EXACT)
        return nnx.merge(nnx.graphdef(nnx.eval_shape(build)), params)


def blocks(stack: Stack | None) -> list[nnx.Module]:
    """The blocks of a stack as modules of their own."""
    if stack is None:
        return []
    graph, params = nnx.split(stack.blocks)
    slice_of = lambda i: jax.tree.map(lambda a: a[i], params)
    return [nnx.merge(graph, slice_of(i)) for i in range(stack.depth)]


def biased(layer: nnx.Linear, branch: jax.Array) -> jax.Array:
    """An attention's or MLP's result with its last bias, which a block adds."""
    return branch if layer.bias is None else branch + layer.bias[...]


@functools.cache
def pixnerd_model(
    fixture: Fixture,
    baseline: bool = False,
    feature_layer: int | None = None,
    remat="none",
) -> Loaded:
    config = pixnerd_config(
        fixture.config["model"],
        baseline=baseline,
        feature_layer=feature_layer,
        stack=StackConfig(remat=remat),
    )
    return Loaded(config, fixture.under("params"), pixnerd.table(config))


def deco_config(kwargs: dict, *, feature_layer=None, **more) -> DeCo:
    """Our config from the official constructor's arguments."""
    names = (
        "in_channels num_groups hidden_size hidden_size_x nerf_mlpratio num_blocks "
        "num_cond_blocks patch_size num_classes"
    ).split()
    o = take(kwargs, dict.fromkeys(names))  # nerf_mlpratio means nothing there
    depth = o["num_cond_blocks"]
    decoder = PixelMLPs(width=o["hidden_size_x"], depth=o["num_blocks"] - depth)
    return DeCo(
        num_classes=o["num_classes"],
        channels=o["in_channels"],
        patch=o["patch_size"],
        width=o["hidden_size"],
        heads=o["num_groups"],
        depth=depth,
        feature_layer=depth // 2 if feature_layer is None else feature_layer,
        decoder=decoder,
        **more,
    )


@functools.cache
def deco_model(fixture: Fixture, feature_layer: int | None = None) -> Loaded:
    config = deco_config(fixture.config["model"], feature_layer=feature_layer)
    return Loaded(config, fixture.under("params"), deco.table(config))


def pixelflow_config(kwargs: dict, *, feature_layer=None, **more) -> PixelFlow:
    """Our config from the official constructor's arguments."""
    o = take(kwargs, {"dropout": 0.0, "cross_attention_dim": None, **PIXELFLOW})
    missing = sorted(name for name in PIXELFLOW if o[name] is None)
    assert not missing, f"the official arguments lack {missing}"
    assert o["dropout"] == 0 and o["in_channels"] == o["out_channels"]
    return PixelFlow(
        num_classes=o["num_classes"],
        channels=o["in_channels"],
        patch=o["patch_size"],
        width=o["num_attention_heads"] * o["attention_head_dim"],
        heads=o["num_attention_heads"],
        depth=o["depth"],
        feature_layer=o["depth"] // 2 if feature_layer is None else feature_layer,
        text_width=o["cross_attention_dim"] or 0,
        attention_bias=o["attention_bias"],
        **more,
    )


PIXELFLOW = dict.fromkeys(
    (
        "in_channels out_channels num_attention_heads attention_head_dim depth "
        "patch_size attention_bias num_classes"
    ).split()
)


@functools.cache
def pixelflow_model(
    fixture: Fixture, feature_layer: int | None = None, remat="none"
) -> Loaded:
    config = pixelflow_config(
        fixture.config["model"],
        feature_layer=feature_layer,
        stack=StackConfig(remat=remat),
    )
    return Loaded(config, fixture.under("params"), pixelflow.table(config))


PIXELGEN = dict.fromkeys(
    (
        "input_size patch_size in_channels hidden_size depth num_heads num_classes "
        "use_bottleneck bottleneck_dim in_context_len in_context_start"
    ).split()
)


def pixelgen_config(kwargs: dict, *, feature_layer=None, **more) -> PixelGen:
    """Our config from the official constructor's arguments."""
    known = {"mlp_ratio": 4.0, "attn_drop": 0.0, "proj_drop": 0.0}
    o = take(kwargs, known | PIXELGEN)
    missing = sorted(name for name in PIXELGEN if o[name] is None)
    assert not missing, f"the official arguments lack {missing}"
    return PixelGen(
        num_classes=o["num_classes"],
        channels=o["in_channels"],
        patch=o["patch_size"],
        image_size=o["input_size"],
        width=o["hidden_size"],
        heads=o["num_heads"],
        depth=o["depth"],
        mlp_ratio=o["mlp_ratio"],
        bottleneck=o["bottleneck_dim"] if o["use_bottleneck"] else 0,
        context_length=o["in_context_len"],
        context_start=o["in_context_start"],
        feature_layer=o["depth"] // 2 if feature_layer is None else feature_layer,
        dropout=o["proj_drop"],
        attention_dropout=o["attn_drop"],
        **more,
    )


@functools.cache
def pixelgen_model(
    fixture: Fixture,
    feature_layer: int | None = None,
    remat="none",
    group: str = "params",
) -> Loaded:
    config = pixelgen_config(
        fixture.config["model"],
        feature_layer=feature_layer,
        stack=StackConfig(remat=remat),
    )
    return Loaded(config, fixture.under(group), pixelgen.table(config))


TEXT = (
    "in_channels num_groups hidden_size num_text_blocks patch_size txt_embed_dim "
    "txt_max_length"
).split()


def text_arguments(kwargs: dict, *names: str) -> tuple[dict, dict]:
    """The official arguments, and the fields that the text models have in common."""
    o = take(kwargs, dict.fromkeys([*TEXT, *names]))
    missing = sorted(name for name in o if o[name] is None)
    assert not missing, f"the official arguments lack {missing}"
    fields = {
        "channels": o["in_channels"],
        "patch": o["patch_size"],
        "width": o["hidden_size"],
        "heads": o["num_groups"],
        "text_depth": o["num_text_blocks"],
        "text_width": o["txt_embed_dim"],
        "text_length": o["txt_max_length"],
    }
    return o, fields


def pixelgen_text_config(kwargs: dict, *, feature_layer=None, **more) -> PixelGenText:
    """Our config from the official constructor's arguments."""
    own = ("input_size", "num_blocks", "bottleneck_dim")
    o, fields = text_arguments(kwargs, *own)
    return PixelGenText(
        image_size=o["input_size"],
        depth=o["num_blocks"],
        bottleneck=o["bottleneck_dim"],
        feature_layer=o["num_blocks"] // 2 if feature_layer is None else feature_layer,
        **fields,
        **more,
    )


def pixnerd_text_config(kwargs: dict, *, feature_layer=None, **more) -> PixNerdText:
    """Our config from the official constructor's arguments."""
    own = ("decoder_hidden_size", "num_encoder_blocks", "num_decoder_blocks")
    o, fields = text_arguments(kwargs, *own)
    decoder = dataclasses.replace(
        PixNerdText().decoder,
        width=o["decoder_hidden_size"],
        depth=o["num_decoder_blocks"],
    )
    return PixNerdText(
        depth=o["num_encoder_blocks"],
        feature_layer=o["num_encoder_blocks"] // 2
        if feature_layer is None
        else feature_layer,
        decoder=decoder,
        **fields,
        **more,
    )


@functools.cache
def text_model(
    fixture: Fixture,
    feature_layer: int | None = None,
    remat="none",
    canvas: tuple[int, ...] = (),
) -> Loaded:
    """PixelGen's or PixNerd's text model, as the file's variant says."""
    pixelgens = fixture.config["variant"] == "jit_t2i"
    make = pixelgen_text_config if pixelgens else pixnerd_text_config
    table = pixelgen.text_table if pixelgens else pixnerd.text_table
    more = {"canvas": canvas} if canvas else {}
    config = make(
        fixture.config["model"],
        feature_layer=feature_layer,
        stack=StackConfig(remat=remat),
        **more,
    )
    return Loaded(config, fixture.under("params"), table(config))


def canvas_of(fixture: Fixture, case: str) -> tuple[int, ...]:
    """What the official heavy decoder's encoder sees; nothing for the other models."""
    scaling = fixture.config.get("scaling")
    if scaling is None:
        return ()
    size = fixture.tensors[f"in/{case}/x"].shape[-2:]
    pairs = zip(size, scaling[case], strict=True)
    return tuple(int(side / scale) for side, scale in pairs)


def condition(values: np.ndarray) -> Condition:
    """A recorded condition: labels where each image has one number, text otherwise."""
    if values.ndim == 1:
        return Condition(labels=jax.numpy.asarray(values, jax.numpy.int32))
    return Condition(text=jax.numpy.asarray(values))


def projector(fixture: Fixture) -> dict:
    """REPA's projector in our layout, as `params["projectors"]`."""
    return repa_layers(fixture.under("params_proj"), "0")


def official_projector(heads: dict) -> dict[str, np.ndarray]:
    """The inverse of `projector`."""
    return official_repa(heads, "0")


def repa_layers(official: dict[str, np.ndarray], prefix: str, dot: str = ".") -> dict:
    """The same of layers called `prefix`.0, .2 and .4."""
    return {
        "Repa": {
            f"linear{i}": {
                "kernel": jax.numpy.asarray(official[f"{prefix}{dot}{2 * i}.weight"].T),
                "bias": jax.numpy.asarray(official[f"{prefix}{dot}{2 * i}.bias"]),
            }
            for i in range(3)
        }
    }


def official_repa(heads: dict, prefix: str, dot: str = ".") -> dict[str, np.ndarray]:
    """The inverse of `repa_layers`."""
    return {
        f"{prefix}{dot}{2 * i}.{theirs}": np.asarray(
            heads["Repa"][f"linear{i}"][ours]
        ).T
        for i in range(3)
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    }


def close_gradients(ours: dict, recorded: dict[str, np.ndarray]) -> None:
    """Gradients to `FORWARD`, of 1 and of their own largest value: they are small."""
    for name, theirs in recorded.items():
        size = max(np.abs(theirs).max(), 1e-12)
        close(ours[name], theirs, name)
        close(np.asarray(ours[name]) / size, theirs / size, f"{name} (relative)")


def stub_tokens(images: np.ndarray, matrix: np.ndarray, patch: int) -> np.ndarray:
    """The stand-in for DINOv2, of images [b, h, w, c] in [0, 1]: [b, n, width]."""
    b, h, w, c = images.shape
    z = ((images - 0.5) / 0.25).reshape(b, h // patch, patch, w // patch, patch, c)
    tokens = z.transpose(0, 1, 3, 5, 2, 4).reshape(b, -1, c * patch**2)
    return np.tanh(tokens @ matrix)
