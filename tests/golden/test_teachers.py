"""DINOv2 and LPIPS against arrays recorded from the official code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pixelflow_jax.teachers import dinov2_table, lpips
from pixelflow_jax.teachers.dinov2 import DinoV2, Interpolation
from pixelflow_jax.teachers.dinov2_table import Geometry
from pixelflow_jax.teachers.lpips import LpipsNet
from pixelflow_jax.tensors import mapping
from tests.golden import harness
from tests.golden.harness import EXACT, Fixture, close, nchw, nhwc, take

EXACTLY = 1e-5
GRADIENT = 5e-5  # relative to the largest one


def relatively_close(ours, theirs: np.ndarray, name: str) -> None:
    """Values to GRADIENT times max |theirs|, however small that is."""
    scale = float(np.abs(theirs).max())
    assert scale > 0
    close(np.asarray(ours) / scale, theirs / scale, name, GRADIENT)


@functools.cache
def dino(fixture: Fixture) -> tuple[DinoV2, dict]:
    """Our network and parameters of a fixture."""
    known = dict.fromkeys("img_size embed_dim depth num_heads".split())
    known |= {"patch_size": 14, "mlp_ratio": 4, "ffn_layer": "mlp", "block_chunks": 0}
    known |= {"num_register_tokens": 0, "init_values": 1.0}
    known |= {"interpolate_antialias": False, "interpolate_offset": 0.1}
    o = take(fixture.config["model"], known)
    assert o["init_values"] and not o["block_chunks"], "a network of other keys"
    assert o["ffn_layer"] in ("mlp", "swiglu", "swiglufused")
    geometry = Geometry(
        width=o["embed_dim"],
        heads=o["num_heads"],
        depth=o["depth"],
        mlp_ratio=o["mlp_ratio"],
        gated=o["ffn_layer"] != "mlp",
        patch=o["patch_size"],
        grid=o["img_size"] // o["patch_size"],
    )
    net = DinoV2(
        geometry=geometry,
        registers=o["num_register_tokens"],
        base_patch=fixture.config["base_patch_size"],
        precision=EXACT,
    )
    theirs = Interpolation(o["interpolate_offset"], o["interpolate_antialias"])
    assert net.interpolation == theirs
    rows = dinov2_table.table(geometry, net.registers)
    official = fixture.under("params")
    params = mapping.load(rows, official, ignored=dinov2_table.IGNORED)
    return net, jax.tree.map(jnp.asarray, params)


def dino_cases(fixture: Fixture) -> list[str]:
    return fixture.config["cases"]


def images(fixture: Fixture, case: str) -> jax.Array:
    """The raw images of a case, in our range."""
    return jnp.asarray(2 * nhwc(fixture.under("in")[f"{case}/raw_image"]) - 1)


@harness.parametrize("enc_dinov2", None, dino_cases)
def test_dinov2(fixture, case):
    net, params = dino(fixture)
    x, out = images(fixture, case), fixture.under(f"out/{case}")
    assert not net.problems(*x.shape[1:3])
    layers = tuple(fixture.config["layers"])
    found = jax.jit(lambda p, x: net.tokens(p, x, (*layers, -1)))(params, x)
    prepared = net.prepared(x)
    close(nchw(prepared), out["normalized_resized"], "prepared", EXACTLY)
    rows, columns = (n // net.sizes.patch for n in prepared.shape[1:3])
    positions = net.positions(params, rows, columns)
    close(positions[None], out["pos_embed_used"], "positions", EXACTLY)
    if not net.registers:
        embedded = net.embedded(params, prepared)
        close(embedded, out["tokens_plus_pos"], "embedded", EXACTLY)
    for layer in layers:
        name = f"pixelgen_intermediate_layer{layer}"
        close(found[layer].patches, out[name], name, EXACTLY)
    theirs = out["pixnerd_forward_x_norm_patchtokens"]
    close(found[-1].patches, theirs, "pixnerd", EXACTLY)
    last = max(layers)
    close(found[last].cls[:, None], out["pixelgen_cls"], "pixelgen_cls", EXACTLY)


@harness.parametrize("enc_dinov2", None, lambda fixture: dino_cases(fixture)[:1])
def test_dinov2_gradient(fixture, case):
    net, params = dino(fixture)
    cotangent = fixture.under("in")["grad_cotangent"]
    last = max(fixture.config["layers"])

    def total(raw, params):
        return jnp.sum(net.features(params, 2 * raw - 1, (last,))[last] * cotangent)

    raw = (images(fixture, case) + 1) / 2
    ours = jax.jit(jax.grad(total))(raw, params)
    theirs = fixture.under("out")["grad_wrt_raw_image"]
    relatively_close(nchw(ours), theirs, "grad_wrt_raw_image")


def vgg_tensors(seed: int) -> dict[str, np.ndarray]:
    """VGG16's convolutions by the rule that the fixture's metadata state."""
    draws = np.random.RandomState(seed)
    found = {}
    convs = [c for part in lpips.BACKBONES["vgg16"].slices for c in part.convs]
    inputs = [3, *(conv.outputs for conv in convs)]
    for conv, c in zip(convs, inputs, strict=False):
        weight = draws.standard_normal((conv.outputs, c, 3, 3)) * np.sqrt(2 / (9 * c))
        bias = draws.standard_normal(conv.outputs) * 0.05
        found[f"features.{conv.key}.weight"] = weight.astype(np.float32)
        found[f"features.{conv.key}.bias"] = bias.astype(np.float32)
    return found


@functools.cache
def vgg(fixture: Fixture) -> tuple[LpipsNet, dict]:
    """Our network and parameters of a fixture; checks the generated weights."""
    official = vgg_tensors(fixture.config["vgg_seed"])
    keys = sorted({int(key.split(".")[1]) for key in official})
    sums = []
    for key in keys:
        weight, bias = (official[f"features.{key}.{n}"] for n in ("weight", "bias"))
        wide = weight.astype(np.float64)
        sums.append([wide.sum(), np.abs(wide).sum(), bias.astype(np.float64).sum()])
    out = fixture.under("out")
    np.testing.assert_allclose(sums, out["vgg_checksums"], rtol=1e-9, atol=1e-9)
    linear = {k: v for k, v in out.items() if k.startswith("lin")}
    official |= {f"{k.split('_')[0]}.model.1.weight": v for k, v in linear.items()}
    net = LpipsNet(precision=EXACT)
    rows = lpips.table(net.backbone)
    params = mapping.load(rows, official)
    return net, jax.tree.map(jnp.asarray, params)


def pair(fixture: Fixture) -> list[jax.Array]:
    return [jnp.asarray(nhwc(fixture.under("in")[k])) for k in ("img0", "img1")]


@harness.parametrize("enc_lpips", None, lambda fixture: ["forward"])
def test_lpips(fixture, case):
    net, params = vgg(fixture)
    a, b = pair(fixture)
    out = fixture.under("out")
    close(nchw(lpips.scaled(a)), out["scaled_img0"], "scaled_img0", EXACTLY)
    features = jax.jit(net.features)(params, a)
    for i, value in enumerate(features):
        value = nchw(value)
        measures = np.array([value.mean(), value.std(ddof=1), value.max()])
        close(measures, out[f"relu{i}_mean_std"], f"relu{i}_mean_std", EXACTLY)
        part = value[:, :4, :2, :2]
        close(part, out[f"relu{i}_slice"], f"relu{i}_slice", EXACTLY)
    layers = net.compare(params, features, jax.jit(net.features)(params, b))
    relatively_close(layers, out["per_layer"], "per_layer")
    distance = jax.jit(net.distance)(params, a, b)
    relatively_close(distance, out["lpips"].ravel(), "lpips")


@harness.parametrize("enc_lpips", None, lambda fixture: ["gradient"])
def test_lpips_gradient(fixture, case):
    net, params = vgg(fixture)
    a, b = pair(fixture)
    total = lambda a, b, params: net.distance(params, a, b).sum()
    ours = jax.jit(jax.grad(total))(a, b, params)
    relatively_close(nchw(ours), fixture.under("out")["grad_img0"], "grad_img0")
