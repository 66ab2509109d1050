"""T5 against plain numpy and transformers, padding, buckets, its loader, its sizes."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from pixelflow_jax import sharding
from pixelflow_jax.encoders.t5 import (
    EMBEDDINGS,
    T5,
    VARIANTS,
    T5Geometry,
    buckets,
    table,
)
from pixelflow_jax.errors import WeightsError
from pixelflow_jax.models.interface import count
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.tensors.mapping import load
from tests.teachers import official
from tests.teachers.official import EXACT

# The heads together are wider than the states; distances reach the last bucket.
TINY = T5Geometry(width=24, hidden=40, depth=3, heads=4, head_width=8)
TINY = dataclasses.replace(TINY, vocabulary=30, buckets=8, max_distance=6)
NET = T5(geometry=TINY, precision=EXACT)


@functools.cache
def hub() -> dict[str, np.ndarray]:
    """Random official tensors whose attention logits and MLP inputs are not small."""
    found = official.tensors(table(TINY))
    larger = {"SelfAttention.q": 2, "SelfAttention.k": 1.5, "wi_0": 2, "bias": 3}
    for key in found:
        for part, factor in larger.items():
            if part in key:
                found[key] = found[key] * np.float32(factor)
    return found


@functools.cache
def parameters() -> dict:
    return jax.tree.map(jnp.asarray, load(table(TINY), hub()))


def prompts(batch: int = 3, length: int = 11, seed: int = 0) -> tuple:
    """Token numbers and a mask: rows of different lengths, the last one full."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(2, TINY.vocabulary, (batch, length)).astype(np.int32)
    lengths = np.linspace(1, length, batch).astype(int)
    mask = np.arange(length)[None] < lengths[:, None]
    return np.where(mask, tokens, 0), mask


encode = jax.jit(NET.states)


@functools.cache
def default() -> np.ndarray:
    return np.asarray(encode(parameters(), *prompts()))


def plain_bucket(offset: int, count: int, furthest: int) -> int:
    """The bucket of an offset, by walking through the ranges' ends."""
    half, distance = count // 2, abs(offset)
    single = half // 2
    found = min(distance, single)
    ends = [
        single * (furthest / single) ** (i / (half - single))
        for i in range(1, half - single)
    ]
    found += sum(distance >= end * (1 - 1e-9) for end in ends)
    return found + (half if offset > 0 else 0)


def plain(tokens: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The encoder in float64."""
    p = {key: value.astype(np.float64) for key, value in hub().items()}
    numbers = [
        [plain_bucket(k - q, TINY.buckets, TINY.max_distance) for k in range(n)]
        for n in tokens.shape[1:]
        for q in range(n)
    ]
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    x = p["shared.weight"][tokens]
    for i in range(TINY.depth):
        block = f"encoder.block.{i}.layer"
        part, dense = f"{block}.0.SelfAttention", f"{block}.1.DenseReluDense"
        z = rms(x, p[f"{block}.0.layer_norm.weight"])
        heads = (*z.shape[:2], TINY.heads, TINY.head_width)
        q, k, v = ((z @ p[f"{part}.{name}.weight"].T).reshape(heads) for name in "qkv")
        logits = np.einsum("bqhd,bkhd->bqkh", q, k) + p[first][numbers]
        weights = np.exp(logits - logits.max(2, keepdims=True))
        if mask is not None:
            weights = weights * mask[:, None, :, None]
        weights = weights / weights.sum(2, keepdims=True)
        mixed = np.einsum("bqkh,bkhd->bqhd", weights, v).reshape(*z.shape[:2], -1)
        x = x + mixed @ p[f"{part}.o.weight"].T
        z = rms(x, p[f"{block}.1.layer_norm.weight"])
        gate, up = (z @ p[f"{dense}.wi_{j}.weight"].T for j in (0, 1))
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        x = x + (0.5 * gate * (1 + np.tanh(inner)) * up) @ p[f"{dense}.wo.weight"].T
    return rms(x, p["encoder.final_layer_norm.weight"])


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def test_states_are_those_of_plain_numpy():
    tokens, mask = prompts()
    np.testing.assert_allclose(default(), plain(tokens, mask), atol=2e-5)
    ours = encode(parameters(), tokens, None)
    np.testing.assert_allclose(ours, plain(tokens, None), atol=2e-5)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, encode(parameters(), tokens, mask | True))
    assert np.abs(ours - default())[mask].max() > 0.1


def test_real_tokens_do_not_depend_on_padding():
    """Neither on what stands there nor on how much of it, on either side."""
    tokens, mask = prompts()
    other = np.where(mask, tokens, 7)
    found = np.asarray(encode(parameters(), other, mask))
    np.testing.assert_array_equal(found[mask], default()[mask])
    assert np.abs(found - default())[~mask].max() > 0.1
    for front, back in ((0, 5), (5, 0)):
        pad = ((0, 0), (front, back))
        longer = np.asarray(
            encode(parameters(), *(np.pad(a, pad) for a in (tokens, mask)))
        )
        inside = longer[:, front : front + tokens.shape[1]]
        np.testing.assert_allclose(inside[mask], default()[mask], atol=1e-5)
    cut = encode(parameters(), tokens[:1, :1], None)  # the first prompt is one token
    np.testing.assert_allclose(cut[0, 0], default()[0, 0], atol=1e-5)


def test_a_prompt_does_not_depend_on_its_batch():
    tokens, mask = prompts()
    for row in range(len(tokens)):
        alone = encode(parameters(), tokens[row : row + 1], mask[row : row + 1])
        np.testing.assert_allclose(alone[0], default()[row], atol=1e-5)


def test_a_prompt_of_nothing_but_padding_is_finite_and_attends_to_all_alike():
    tokens, mask = prompts()
    found = np.asarray(encode(parameters(), tokens, mask & False))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, encode(parameters(), tokens, mask & False))
    # Equal weights: the order of the other tokens does not matter.
    order = np.r_[0, 1 + np.random.default_rng(0).permutation(tokens.shape[1] - 1)]
    again = encode(parameters(), tokens[:, order], mask & False)
    np.testing.assert_allclose(again[:, 0], found[:, 0], atol=1e-5)


def test_buckets():
    offsets = np.arange(-1000, 1001)
    for number, furthest in ((32, 128), (8, 6), (4, 2), (10, 40), (16, 20)):
        found = buckets(offsets, number, furthest)
        expected = [plain_bucket(int(o), number, furthest) for o in offsets]
        np.testing.assert_array_equal(found, expected)
        before, after = found[offsets <= 0][::-1], found[offsets >= 0]
        assert before[0] == after[0] == 0 and (np.diff(before) >= 0).all()
        np.testing.assert_array_equal(before[1:] + number // 2, after[1:])
        assert (before[furthest:] == number // 2 - 1).all()
        single = np.arange(number // 4)
        np.testing.assert_array_equal(before[: len(single)], single)


def test_the_bias_is_of_key_minus_query_and_of_any_length():
    params = parameters()
    found = np.asarray(NET.bias(params, 9))
    assert found.shape == (1, TINY.heads, 9, 9)
    learned = np.asarray(params["relative_bias"])
    np.testing.assert_array_equal(found[0, :, 3, 4], learned[TINY.buckets // 2 + 1])
    np.testing.assert_array_equal(found[0, :, 4, 3], learned[1])
    np.testing.assert_array_equal(found[0, :, 5, 5], learned[0])
    np.testing.assert_array_equal(found[..., 1:, 1:], found[..., :-1, :-1])
    np.testing.assert_array_equal(NET.bias(params, 4), found[..., :4, :4])


@pytest.mark.parametrize("how", [{"scan": False}, {"unroll": 2}, {"unroll": 9}])
def test_the_loop_changes_nothing(how):
    net = dataclasses.replace(NET, stack=StackConfig(remat="none", **how))
    found = jax.jit(net.states)(parameters(), *prompts())
    np.testing.assert_allclose(found, default(), atol=1e-5)


def test_no_gradient_reaches_the_parameters():
    def total(params):
        return jnp.sum(NET.states(params, *prompts()) ** 2)

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(parameters())):
        assert not np.any(leaf)


def test_half_precision_is_close_and_ends_in_float32():
    net = T5(geometry=TINY)
    found = np.asarray(jax.jit(net.states)(parameters(), *prompts()))
    assert found.dtype == np.float32
    cosine = np.sum(found * default(), -1)
    cosine /= np.linalg.norm(found, axis=-1) * np.linalg.norm(default(), axis=-1)
    assert 0.995 < cosine.min() and np.abs(found - default()).max() > 1e-4
    traced = str(jax.make_jaxpr(net.states)(parameters(), *prompts()))
    products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", traced)
    # Of one block: five matrices and the mixing of values; the logits.
    assert sorted(products) == ["bf16"] * 6 + ["f32"]


def test_residuals_keep_what_half_precision_would_lose():
    """Embeddings much larger than what blocks add to them do not swallow it."""
    (tokens, mask), table = prompts(), 10_000 * parameters()["embedding"]
    large = {**parameters(), "embedding": table}
    nothing = rms(np.asarray(table)[tokens], np.asarray(large["norm"]["weight"]))
    nets = NET, T5(geometry=TINY)
    exact, half = (jax.jit(net.states)(large, tokens, mask) - nothing for net in nets)
    assert 1e-3 < np.abs(exact).max() < 0.1
    assert np.linalg.norm(half - exact) < 0.05 * np.linalg.norm(exact)


def test_no_parameter_or_large_constant_is_baked_in():
    tokens, mask = prompts()
    traced = jax.make_jaxpr(NET.states)(parameters(), tokens, mask)
    offsets = 2 * tokens.shape[1] - 1  # one bucket each, not one a pair of tokens
    assert sum(np.size(const) for const in traced.consts) <= 2 * offsets
    other = jax.tree.map(lambda a: a * 0.9, parameters())
    assert np.abs(encode(other, tokens, mask) - default()).max() > 1e-2


def test_a_batch_over_devices_gives_the_same():
    tokens, mask = (np.concatenate([a[1:]] * 4) for a in prompts())
    mesh = sharding.MeshShape(data=4, fsdp=2).build()
    with jax.set_mesh(mesh):
        layout = sharding.batch_sharding(mesh)
        given = (jax.device_put(a, layout) for a in (tokens, mask))
        together = jax.jit(NET.states)(parameters(), *given)
    assert together.sharding.is_equivalent_to(layout, 3)
    np.testing.assert_allclose(together[:2], default()[1:], atol=1e-5)


def written(folder, tensors: dict[str, np.ndarray]) -> T5:
    """The network with a file of these tensors."""
    net = dataclasses.replace(NET, weights=str(folder / "model.safetensors"))
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, net.weights)
    return net


DECODER = {
    "decoder.embed_tokens.weight": np.zeros((30, 24), np.float32),
    "decoder.block.0.layer.1.EncDecAttention.q.weight": np.zeros(3, np.float32),
    "lm_head.weight": np.zeros((30, 24), np.float32),
}


@pytest.mark.parametrize("names", [EMBEDDINGS[:1], EMBEDDINGS[1:], EMBEDDINGS])
def test_either_name_of_the_embeddings_loads_with_or_without_a_decoder(names, tmp_path):
    rest = {k: v for k, v in hub().items() if k != "shared.weight"}
    given = rest | {name: hub()["shared.weight"] for name in names}
    net = written(tmp_path, given | (DECODER if len(names) == 2 else {}))
    loaded = net.load()
    assert jax.tree.structure(loaded) == jax.tree.structure(parameters())
    jax.tree.map(np.testing.assert_array_equal, loaded, parameters())
    kinds = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert kinds(loaded) == kinds(net.shapes())


def test_two_different_embeddings_are_refused(tmp_path):
    other = {"encoder.embed_tokens.weight": hub()["shared.weight"] + 1}
    net = written(tmp_path, hub() | other)
    with pytest.raises(WeightsError, match=r"two different .*shared\.weight and enc"):
        net.load()


def test_shards_load_in_the_compute_type(tmp_path):
    names = sorted(hub())
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: hub()[name] for name in names if files[name] == file}
        save_file(part, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}), "utf-8")
    net = T5(geometry=TINY, weights=str(tmp_path))
    loaded = net.load()
    assert loaded["blocks"]["attention"]["qkv"]["kernel"].dtype == jnp.bfloat16
    for name in ("embedding", "relative_bias"):
        np.testing.assert_array_equal(loaded[name], parameters()[name])
    kinds = lambda tree: jax.tree.map(lambda a: a.dtype, tree)
    assert kinds(loaded) == kinds(net.shapes())


def test_the_weights_of_another_network_are_refused_with_every_key(tmp_path):
    theirs = dict(hub())
    gone = ("encoder.block.1.layer.0.SelfAttention.q.weight", "shared.weight")
    for key in gone:
        del theirs[key]
    # The first T5's MLP, which is not gated.
    theirs["encoder.block.0.layer.1.DenseReluDense.wi.weight"] = np.zeros((40, 24))
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    theirs[bias] = np.zeros((32, 4), np.float32)
    net = written(tmp_path, theirs)
    with pytest.raises(WeightsError) as raised:
        net.load()
    first, *lines = str(raised.value).splitlines()
    assert net.weights in first and "T5 encoder of the given geometry" in first
    assert [line.strip() for line in lines] == [
        *(f"missing: {key}" for key in gone),
        "unexpected: encoder.block.0.layer.1.DenseReluDense.wi.weight",
        f"misshapen: {bias}: (32, 4), not (8, 4)",
    ]


def test_absent_weights_are_asked_for_by_file_and_field():
    for net, parts in (
        (T5(), ["empty", "hf://google/flan-t5-xl"]),
        (
            T5(variant="flan-t5-base", weights="gone.bin"),
            ["no file gone.bin", "t5-base"],
        ),
        (NET, ["the given geometry"]),
    ):
        with pytest.raises(WeightsError) as raised:
            net.load()
        for part in [*parts, "--config.conditioner.encoder.weights=PATH"]:
            assert part in str(raised.value)
    with pytest.raises(WeightsError, match="--config.other.weights=PATH"):
        NET.load("other.weights")


# Parameters of the published networks' encoders, embeddings included.
PUBLISHED = {
    "flan-t5-small": 35_332_800,
    "flan-t5-base": 109_628_544,
    "flan-t5-large": 341_231_104,
    "flan-t5-xl": 1_223_527_424,
    "flan-t5-xxl": 4_762_310_656,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_sizes(variant):
    net = T5(variant=variant)
    shapes = net.shapes()
    assert count(shapes) == PUBLISHED[variant]
    assert not net.problems()
    tokens = jax.ShapeDtypeStruct((2, 512), jnp.int32)
    mask = jax.ShapeDtypeStruct((2, 512), jnp.bool_)
    found = jax.eval_shape(net.states, shapes, tokens, mask)
    assert (found.shape, found.dtype) == ((2, 512, net.width), jnp.float32)


def sized(**changes: int) -> dict:
    return {"geometry": dataclasses.replace(TINY, **changes)}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"geometry": None, "variant": "t5"}, "variant='t5' is not one of flan-t5-s"),
        (sized(depth=0), "geometry.depth=0"),
        (sized(buckets=7), "geometry.buckets=7"),
        (sized(buckets=2), "geometry.buckets=2"),
        (sized(max_distance=2), "geometry.max_distance=2 must be larger than a"),
        ({"precision": dataclasses.replace(EXACT, compute="int8")}, "int8"),
        ({"stack": StackConfig(unroll=-1)}, "stack.unroll"),
    ],
)
def test_problems_are_named(changes, part):
    assert not NET.problems()
    found = dataclasses.replace(NET, **changes).problems()
    assert len(found) == 1 and part in found[0], found


def test_wrong_calls_are_refused():
    tokens, mask = prompts()
    with pytest.raises(ValueError, match=r"integers \[b, n\], not float32 \(3, 11\)"):
        NET.states(parameters(), jnp.asarray(tokens, jnp.float32), mask)
    with pytest.raises(ValueError, match=r"integers .*\(11,\)"):
        NET.states(parameters(), tokens[0])
    with pytest.raises(ValueError, match=r"mask \(3, 10\) must have"):
        NET.states(parameters(), tokens, mask[:, 1:])
    tokens = np.where(mask, TINY.vocabulary, 0)
    assert np.isnan(encode(parameters(), tokens, mask)).any(-1)[mask].all()


@pytest.fixture(scope="module")
def theirs():
    """transformers' encoder of our sizes, of random weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=TINY.vocabulary,
        d_model=TINY.width,
        d_kv=TINY.head_width,
        d_ff=TINY.hidden,
        num_layers=TINY.depth,
        num_heads=TINY.heads,
        relative_attention_num_buckets=TINY.buckets,
        relative_attention_max_distance=TINY.max_distance,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.4 if "bias" in name or "shared" in name else 0.15
            parameter.add_(size * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_transformers_agrees(theirs, kind, tmp_path):
    import torch

    if kind == "bin":
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        theirs.save_pretrained(tmp_path)
    net = dataclasses.replace(NET, weights=str(tmp_path))
    params = net.load()
    assert count(params) == sum(p.numel() for p in theirs.parameters())
    tokens, mask = prompts()
    ids = torch.from_numpy(tokens).long()
    with torch.no_grad():
        for ours, other in ((mask, torch.from_numpy(mask).long()), (None, None)):
            expected = theirs(input_ids=ids, attention_mask=other)[0].numpy()
            found = encode(params, tokens, ours)
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_buckets_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    offsets = np.arange(-1000, 1001)
    for number, furthest in ((32, 128), (8, 6), (10, 40), (16, 20)):
        expected = modeling.T5Attention._relative_position_bucket(
            torch.from_numpy(offsets), True, number, furthest
        )
        found = buckets(offsets, number, furthest)
        np.testing.assert_array_equal(found, expected.numpy())
