"""What holds for every text encoder: padding, batches, devices, files, identity."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from pixelflow_jax import sharding
from pixelflow_jax.encoders.bert import VARIANTS as BERTS
from pixelflow_jax.encoders.bert import Bert
from pixelflow_jax.encoders.qwen3 import VARIANTS as QWENS
from pixelflow_jax.encoders.qwen3 import Qwen3
from pixelflow_jax.errors import WeightsError
from pixelflow_jax.models.interface import count
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from tests.encoders.tiny_text import (
    GEOMETRIES,
    KINDS,
    VOCABULARY,
    compiled,
    encoder,
    parameters,
    prompts,
    tensors,
)

each = pytest.mark.parametrize("kind", KINDS)


def states(kind: str, tokens, mask) -> np.ndarray:
    return np.asarray(compiled(kind)(parameters(kind), tokens, mask))


@each
def test_real_tokens_do_not_depend_on_padding(kind):
    """Neither on what stands there nor on how much of it."""
    tokens, mask = prompts()
    found = states(kind, tokens, mask)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    other = states(kind, np.where(mask, tokens, 7), mask)
    np.testing.assert_array_equal(other[mask], found[mask])
    assert np.abs(other - found)[~mask].max() > 0.1
    longer = states(kind, *(np.pad(a, ((0, 0), (0, 9))) for a in (tokens, mask)))
    np.testing.assert_allclose(longer[:, : mask.shape[1]], found, atol=1e-5)
    assert np.abs(states(kind, tokens, None) - found)[~mask].max() > 0.1


@each
def test_a_text_does_not_depend_on_its_batch(kind):
    tokens, mask = prompts()
    found = states(kind, tokens, mask)
    for row in range(len(tokens)):
        alone = states(kind, tokens[row : row + 1], mask[row : row + 1])
        np.testing.assert_allclose(alone[0], found[row], atol=1e-5)
    twice = states(kind, np.r_[tokens[::-1], tokens], np.r_[mask[::-1], mask])
    np.testing.assert_allclose(twice[: len(tokens)][::-1], found, atol=1e-5)


@each
def test_tokens_matter_and_their_order_too(kind):
    tokens, mask = prompts()
    found = states(kind, tokens, mask)
    assert np.abs(states(kind, (tokens + 1) % 30, mask) - found)[mask].max() > 0.1
    tokens = np.r_[tokens[2:], tokens[2:]]
    tokens[1, :2] = tokens[1, 1::-1]
    first, second = states(kind, tokens, mask[[2, 2]])
    assert np.abs(first - second)[3:].max() > 1e-3
    assert np.isnan(states(kind, np.full_like(tokens, VOCABULARY), None)).all()


@each
def test_the_empty_text_has_states(kind):
    net = encoder(kind)
    tokens, mask = net.empty(11)
    assert tokens.shape == mask.shape == (11,)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)
    found = states(kind, tokens[None], mask[None])
    assert found.shape == (1, 11, net.width) and np.isfinite(found).all()


@each
def test_the_loop_changes_nothing(kind):
    tokens, mask = prompts()
    net = encoder(kind, stack=StackConfig(remat="none", scan=False))
    found = jax.jit(net.states)(parameters(kind), tokens, mask)
    np.testing.assert_allclose(found, states(kind, tokens, mask), atol=1e-5)


@each
def test_half_precision_is_close_and_no_gradient_reaches_the_parameters(kind):
    tokens, mask = prompts()
    net = encoder(kind, precision=Precision())
    total = lambda p: (jnp.sum(s := net.states(p, tokens, mask)), s)
    gradient, found = jax.jit(jax.grad(total, has_aux=True))(parameters(kind))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    exact = states(kind, tokens, mask)
    assert found.dtype == jnp.float32
    off = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 1e-4 < off < 0.05


def on_first_device(tree) -> int:
    """Bytes of a pytree that lie on one device."""
    first = jax.devices()[0]
    shards = [s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == first)


@each
@pytest.mark.parametrize(
    ("shape", "share"), [({"fsdp": 4}, 1 / 4), ({"fsdp": 2, "tensor": 2}, 1 / 3)]
)
def test_parameters_are_split_over_the_mesh(kind, shape, share):
    """By the denoiser's rule; the states are the same, and lie where the batch does."""
    tokens, mask = (np.concatenate([a, a[1:]] * 2)[:8] for a in prompts())
    host = jax.tree.map(np.asarray, parameters(kind))
    mesh = sharding.MeshShape(**shape).build()
    with jax.set_mesh(mesh):
        params = sharding.place(host, mesh)
        layout = sharding.batch_sharding(mesh)
        given = (jax.device_put(a, layout) for a in (tokens, mask))
        found = jax.jit(encoder(kind).states)(params, *given)
    jax.tree.map(np.testing.assert_array_equal, params, host)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(host))
    assert on_first_device(params) < 1.2 * share * total
    assert found.sharding.is_equivalent_to(layout, 3)
    np.testing.assert_allclose(found, states(kind, tokens, mask), atol=2e-5)


def written(kind: str, folder, given: dict, **fields):
    """The encoder with a folder of these tensors."""
    folder.mkdir(exist_ok=True)
    given = {key: np.ascontiguousarray(value) for key, value in given.items()}
    save_file(given, folder / "model.safetensors")
    return encoder(kind, weights=str(folder), **fields)


# What other files hold besides, and how they call the same tensors.
OTHERS = {
    "t5": ("", ["decoder.block.0.layer.0.SelfAttention.q.weight", "lm_head.weight"]),
    "qwen3": ("model.", ["lm_head.weight"]),
    "bert": ("bert.", ["bert.pooler.dense.weight", "cls.predictions.bias"]),
}


@each
def test_files_with_heads_and_prefixes_load(kind, tmp_path):
    prefix, besides = OTHERS[kind]
    theirs = {prefix + key: value for key, value in tensors(kind).items()}
    theirs |= dict.fromkeys(besides, np.zeros(2, np.float32))
    for number, given in enumerate((tensors(kind), theirs)):
        net = written(kind, tmp_path / str(number), given)
        jax.tree.map(np.testing.assert_array_equal, net.load(), parameters(kind))
    half = encoder(kind, weights=net.weights, precision=Precision())
    types = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert types(half.load()) == types(half.shapes())
    kernel = half.load()["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == jnp.bfloat16


@each
def test_other_weights_are_refused_with_every_key(kind, tmp_path):
    key = next(key for key in tensors(kind) if ".1." in key)
    given = {k: v for k, v in tensors(kind).items() if k != key}
    with pytest.raises(WeightsError) as raised:
        written(kind, tmp_path, given | {"other": np.zeros(1, np.float32)}).load()
    first, *lines = str(raised.value).splitlines()
    assert str(tmp_path) in first and "of the given geometry" in first
    assert [line.strip() for line in lines] == [f"missing: {key}", "unexpected: other"]


@each
def test_identity_is_json_and_tells_states_apart(kind):
    net = encoder(kind, weights="/somewhere/net/model.safetensors")
    same = [
        {"weights": "/elsewhere/net"},
        {"stack": StackConfig(remat="none", scan=False)},
        {"attention": "xla"},
    ]
    larger = dataclasses.replace(GEOMETRIES[kind], hidden=41)
    other = [
        {"weights": "/somewhere/other"},
        {"tokenizer": "/other"},
        {"geometry": larger},
        {"precision": Precision()},
    ]
    if kind == "qwen3":
        other += [{"empty_text": "zero"}, {"embed_width": 7}]
    read = lambda **fields: json.loads(
        json.dumps(dataclasses.replace(net, **fields).identity())
    )
    assert read()["class"] == type(net).__name__
    assert all(read(**fields) == read() for fields in same)
    assert all(read(**fields) != read() for fields in other)


@each
def test_wrong_calls_are_refused(kind):
    (tokens, mask), net = prompts(), encoder(kind)
    with pytest.raises(ValueError, match=r"integers \[b, n\], not float32 \(3, 11\)"):
        net.states(parameters(kind), jnp.asarray(tokens, jnp.float32), mask)
    with pytest.raises(ValueError, match=r"mask \(3, 10\) must have"):
        net.states(parameters(kind), tokens, mask[:, 1:])
    with pytest.raises(ValueError, match=r"65 tokens are more than the 64"):
        encoder("bert").states(parameters("bert"), np.zeros((1, 65), np.int32))


@each
@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("variant", "gpt", "variant='gpt' is not one of"),
        ("attention", "flash", "attention='flash' is not one of auto, xla, cudnn"),
        ("precision", Precision(compute="int8"), "int8"),
        ("stack", StackConfig(unroll=-1), "stack.unroll"),
    ],
)
def test_problems_are_named(kind, field, value, part):
    assert not encoder(kind).problems()
    sizes = None if field == "variant" else GEOMETRIES[kind]
    found = encoder(kind, **{"geometry": sizes, field: value}).problems()
    assert len(found) == 1 and part in found[0], found


@pytest.mark.parametrize(
    ("kind", "changes", "part"),
    [
        ("bert", {"depth": 0, "hidden": -1}, "hidden=-1, depth=0 must be at least 1"),
        ("bert", {"heads": 5}, "geometry.heads=5"),
        ("bert", {"end": 32}, "geometry.end=32 must be at least 0 and below"),
        ("qwen3", {"kv_heads": 3}, "multiple of geometry.kv_heads=3"),
        ("qwen3", {"head_width": 7}, "geometry.head_width=7 must be even"),
        ("qwen3", {"padding": 32}, "geometry.padding=32 must be at least 0"),
    ],
)
def test_impossible_sizes_are_named(kind, changes, part):
    geometry = dataclasses.replace(GEOMETRIES[kind], **changes)
    found = encoder(kind, geometry=geometry).problems()
    assert len(found) == 1 and part in found[0], found


# Parameters of the published networks, each embedding once and without heads.
PUBLISHED = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 7_568_405_504,
    "minilm-l6": 22_713_216 - 147_840,  # without the pooler
    "bert-base": 109_482_240 - 590_592,
    "bert-large": 335_141_888 - 1_049_600,
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_sizes(variant):
    assert {*QWENS, *BERTS} == set(PUBLISHED)
    net = (Qwen3 if variant in QWENS else Bert)(variant=variant)
    shapes = net.shapes()
    assert count(shapes) == PUBLISHED[variant] and not net.problems()
    tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    mask = jax.ShapeDtypeStruct((2, 128), jnp.bool_)
    found = jax.eval_shape(net.states, shapes, tokens, mask)
    assert (found.shape, found.dtype) == ((2, 128, net.width), jnp.float32)


def test_absent_weights_are_asked_for_by_repository_and_field():
    for net, parts in (
        (Qwen3(), ["hf://Qwen/Qwen3-1.7B"]),
        (Qwen3(variant="qwen3-0.6b"), ["hf://Qwen/Qwen3-0.6B"]),
        (Bert(variant="bert-base"), ["hf://google-bert/bert-base-uncased"]),
        (encoder("qwen3"), ["a Qwen3 of the given geometry"]),
    ):
        with pytest.raises(WeightsError) as raised:
            net.load()
        for part in [*parts, "--config.conditioner.encoder.weights=PATH"]:
            assert part in str(raised.value)
