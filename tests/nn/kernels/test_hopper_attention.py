"""Attention on Hopper GPUs by our own kernels: when it is taken, and that it lowers.

What it computes is compared on a GPU: by `python -m benchmarks.kernels --only
'attention *'`, which says how far it is from cuDNN's, and by `pixelflow doctor`.
"""

import functools
import itertools
import os

import jax
import jax.numpy as jnp
import pytest

from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.nn import hopper
from pixelflow_jax.nn.attention import (
    _best,
    _reads_values,
    attend,
    attend_projection,
)
from pixelflow_jax.nn.kernels import backends
from pixelflow_jax.nn.kernels.choice import Kernels, choose
from pixelflow_jax.nn.kernels.mosaic_gpu import few_heads_attention
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import MOST_BYTES
from pixelflow_jax.nn.kernels.mosaic_gpu.short_attention import (
    backward_slots,
    forward_shares,
    supports,
    turns,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.short_attention_backward import shares
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import Sizes
from pixelflow_jax.nn.kernels.qkv_norm_rope import Arrays, Spec
from pixelflow_jax.nn.packing import Packing

HALF = jnp.dtype("bfloat16")
HOPPER, OTHER = "NVIDIA H200", "NVIDIA A100-SXM4-80GB"
NEW = jax.__version_info__ >= backends.OLDEST
wants_triton = pytest.mark.skipif(
    "PIXELFLOW_WITHOUT_TRITON" in os.environ, reason="wants Triton"
)
needs_new = pytest.mark.skipif(not NEW, reason="needs a newer jax")


def on(kind: str, cores: int | None = None):
    """As if the program ran on a GPU of that kind."""
    device = jax.sharding.AbstractDevice(kind, cores, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def array(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("tiles", range(2, 8))
def test_two_warpgroups_share_all_tiles_evenly(tiles):
    keys, queries = shares(tiles)
    assert sum(keys) == sum(queries) == tiles
    assert min(*keys, *queries) > 0  # what is fetched ahead is somebody's
    costs = [4 * a + 3 * b for a, b in zip(keys, queries, strict=True)]
    assert abs(costs[0] - costs[1]) <= 4


@pytest.mark.parametrize(
    ("n", "width", "known"),
    [
        *((256, 72, True), (288, 72, True), (272, 64, True), (128, 128, True)),
        *((1024, 72, False), (64, 72, False), (257, 64, False), (256, 76, False)),
        *((256, 136, False), (336, 72, False)),
    ],
)
def test_the_sizes_it_knows(n, width, known):
    assert supports(n, width, HALF) == known
    assert not supports(n, width, jnp.dtype("float32"))


def pieces(*sizes: int) -> int:
    """Bytes of shared memory that arrays take, each in whole pieces."""
    return sum(-(-size // 1024) * 1024 for size in sizes)


@pytest.mark.parametrize("width", range(8, 136, 8))
def test_what_it_knows_fits_into_shared_memory(width):
    for n in range(128, 1600, 16):
        if not supports(n, width, HALF):
            continue
        sizes = Sizes(n, n, width)
        array, tile, vector = 2 * n * sizes.wide, 2 * 64 * width, 4 * sizes.numbers
        assert sizes.numbers % 32 == 0 and sizes.numbers >= n
        slots = 2 * backward_slots(sizes) * tile
        others = 2048  # for sums across warps and barriers
        assert pieces(*[array] * 4, *[2 * vector] * 2, slots) + others <= MOST_BYTES
        for turned in (False, True):
            if turned and not turns(sizes):
                continue
            warpgroups, count = forward_shares(sizes, turned)
            angles, slots = 2 * n * width * turned, warpgroups * count * tile
            sums = 4 * 64 * warpgroups
            used = pieces(array, array, sums, slots, angles) + others
            assert used <= MOST_BYTES and count >= 3


# Of heads of 80, as JiT-H's, and others that miss it by little.
@pytest.mark.parametrize(("n", "width"), [(288, 80), (784, 32), (1568, 8), (1552, 8)])
def test_what_does_not_fit_by_little_is_left_to_others(n, width):
    assert not supports(n, width, HALF)


@pytest.fixture
def any_jax(monkeypatch):
    """The choice is the same with every jax, as if all could run the kernels."""
    monkeypatch.setattr(backends, "OLDEST", (0, 0))


@pytest.mark.parametrize(
    ("kind", "shape", "word"),
    [
        (HOPPER, (32, 256, 16, 72), "hopper"),
        (HOPPER, (32, 288, 16, 72), "hopper"),
        (HOPPER, (2, 256, 16, 72), "cudnn"),  # fewer heads than multiprocessors
        (HOPPER, (4, 1024, 16, 72), "hopper"),  # whose tiles are divided
        (HOPPER, (2, 4096, 16, 72), "hopper"),
        (HOPPER, (2, 1024, 16, 72), "cudnn"),  # a second round of few tiles
        (HOPPER, (32, 512, 16, 72), "cudnn"),  # not timed
        (HOPPER, (32, 1024, 16, 56), "cudnn"),
        (HOPPER, (32, 256, 16, 128), "cudnn"),
        (HOPPER, (32, 288, 16, 80), "cudnn"),  # no room
        (HOPPER, (32, 1024, 16, 64), "cudnn"),  # no place for ones
        (HOPPER, (32, 1000, 16, 72), "cudnn"),
        (HOPPER, (32, 250, 16, 72), "cudnn"),
        (OTHER, (32, 256, 16, 72), "cudnn"),
    ],
)
def test_auto_takes_it_where_it_gains(any_jax, kind, shape, word):
    with on(kind):
        assert _best(array(*shape), array(*shape), None, None) == word


def test_auto_takes_it_in_bfloat16_without_masks_and_dropout(any_jax):
    q = array(32, 256, 16, 72)
    exact = array(32, 256, 16, 72, dtype="float32")
    other = array(32, 256, 16, 72, dtype="float16")
    longer = array(32, 288, 16, 72)
    with on(HOPPER):
        assert _best(exact, exact, None, None) == "xla"
        assert _best(other, other, None, None) == "cudnn"
        assert _best(q, longer, None, None) == "cudnn"
        assert _best(q, q, array(32, 256, dtype="bool"), None) == "xla"
        assert _best(q, q, None, lambda p: p) == "xla"


def test_a_gpu_of_fewer_multiprocessors_is_filled_sooner(any_jax):
    q = array(5, 256, 16, 72)
    with on(HOPPER, cores=132):
        assert _best(q, q, None, None) == "cudnn"
    with on("NVIDIA H20", cores=78):
        assert _best(q, q, None, None) == "hopper"


def gradients(layers: int, length: int | None, q, k, v):
    def loss(q, k, v):
        for number in range(layers):
            q = attend(q, k, (number + 1) * v, None, "hopper", length=length)
        return q.astype(jnp.float32).sum()

    return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)


def lowered(function, *arrays) -> str:
    traced = jax.jit(function).trace(*arrays)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@needs_new
@pytest.mark.parametrize(
    ("n", "width", "length"),
    [
        *((256, 72, None), (288, 72, None), (272, 64, 257), (144, 40, None)),
        *((208, 88, None), (496, 40, None)),  # that just fit
    ],
)
def test_short_ones_lower_for_a_gpu_with_gradients(n, width, length):
    """Whole tiles or not, two slots or three, zeros in lanes, hidden keys."""
    with on(HOPPER):
        text = lowered(
            functools.partial(gradients, 1, length), *[array(16, n, 12, width)] * 3
        )
    assert "short_attention_forward" in text and "short_attention_backward" in text


@needs_new
@pytest.mark.parametrize(("n", "width"), [(512, 88), (1024, 72), (640, 56)])
def test_long_ones_lower_for_a_gpu_with_gradients(n, width):
    with on(HOPPER):
        run = functools.partial(gradients, 1, None)
        text = lowered(run, *[array(16, n, 12, width)] * 3)
    names = "forward", "backward_of_queries", "backward_of_keys"
    assert all(f"long_attention_{name}" in text for name in names)


def projected(packing: Packing, length: int, heads: int, qkv):
    ones = jnp.ones(72, jnp.float32)
    rope = (jnp.ones((length, 36)), jnp.zeros((length, 36)))

    def loss(qkv):
        given = {"heads": heads, "gains": (ones, ones), "rope": rope}
        return attend_projection(qkv, packing, **given).astype(jnp.float32).sum()

    return jax.value_and_grad(loss)(qkv)


@wants_triton
@needs_new
@pytest.mark.parametrize("length", [256, 1024])
def test_values_are_read_from_the_projection(monkeypatch, length):
    monkeypatch.setattr(backends, "platform", lambda: "gpu")
    packing = Packing((16,), (length,))
    with on(HOPPER):
        text = lowered(
            functools.partial(projected, packing, length, 12),
            array(16, length, 3 * 12 * 72),
        )
    calls = [line for line in text.splitlines() if "custom_call @mosaic_gpu" in line]
    one, all_three = (f"tensor<16x{length}x{heads}x72xbf16>" for heads in (12, 36))
    assert len(calls) == (2 if length == 256 else 3)
    # Forward pass, and what of the backward pass looks at values.
    assert sum(f"{one}, {one}, {all_three}" in call for call in calls) >= 2


@wants_triton
@needs_new
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "none"])
@pytest.mark.parametrize(("length", "turns"), [(256, True), (288, True), (1024, False)])
def test_sampling_leaves_norm_rotation_and_biases_to_kernels(
    monkeypatch, length, turns, biased
):
    monkeypatch.setattr(backends, "platform", lambda: "gpu")
    packing, ones, width = Packing((16,), (length,)), jnp.ones(72), 3 * 12 * 72
    rope = (jnp.ones((length, 36)), jnp.zeros((length, 36)))
    attention = functools.partial(
        attend_projection,
        packing=packing,
        heads=12,
        gains=(ones, ones),
        rope=rope,
        bias=jnp.ones(width) if biased else None,
    )
    with on(HOPPER):
        text = lowered(attention, array(16, length, width))
    assert ("qkv_norm_rope" not in text) == turns
    assert text.count("custom_call @mosaic_gpu") == 1
    wide = f"tensor<16x{length}x{width}xbf16>"
    assert f"stablehlo.add {wide}" not in text and f"-> {wide}" not in text


def one_image(n: int, images: int = 2, **changed):
    """Attention from a projection on, with all that lies between; and a projection."""
    ones, rope = jnp.ones(72), (jnp.ones((n, 36)), jnp.zeros((n, 36)))
    given = {"heads": 16, "gains": (ones, ones), "rope": rope} | changed
    packing = Packing((images,), (n,))
    attention = functools.partial(attend_projection, packing=packing, **given)
    return attention, array(images, n, 3 * 16 * 72)


@pytest.fixture
def without_cudnn(monkeypatch):
    """On a GPU; where our kernels leave it to others, XLA attends."""
    monkeypatch.setattr(backends, "platform", lambda: "gpu")
    monkeypatch.setattr("pixelflow_jax.nn.attention.cudnn_fits", lambda q: False)


@needs_new
@pytest.mark.parametrize(
    ("n", "images", "changed", "few"),
    [
        *((256, 2, {}, True), (288, 2, {"bias": jnp.ones(3 * 16 * 72)}, True)),
        *((256, 4, {}, True), (288, 8, {}, False)),  # a program for each head
        *((320, 2, {}, False), (192, 2, {}, False)),  # not timed
        (256, 2, {"rope": None}, False),
        (256, 2, {"gains": (jnp.ones(16 * 72),) * 2}, False),  # of all heads together
    ],
)
def test_few_heads_have_a_kernel_of_their_own(without_cudnn, n, images, changed, few):
    attention, qkv = one_image(n, images, **changed)
    gains_few = functools.partial(
        hopper.gains_few, 16, attention.keywords | {"qkv": qkv}
    )
    with on(HOPPER):
        assert gains_few() == few
        assert not few or "few_heads_attention" in lowered(attention, qkv)
        for kernels in (Kernels(attention="cudnn"), Kernels(blocks="xla")):
            with choose(kernels):
                assert not gains_few()


@needs_new
def test_gradients_of_few_heads_are_left_to_others(without_cudnn):
    attention, qkv = one_image(256)
    loss = lambda qkv: attention(qkv).astype(jnp.float32).sum()
    with on(HOPPER):
        text = lowered(jax.grad(loss), qkv)
    assert "few_heads_attention" not in text and "stablehlo.dot_general" in text


@needs_new
def test_each_device_has_few_heads_of_its_own_images(monkeypatch, without_cudnn):
    monkeypatch.setattr(backends, "is_hopper", lambda: True)
    attention, qkv = one_image(256, 8)
    with jax.set_mesh(MeshShape(data=2, fsdp=2).build(jax.devices()[:4])):
        text = lowered(attention, qkv)
    calls = [line for line in text.splitlines() if "custom_call @mosaic_gpu" in line]
    assert len(calls) == 1 and "tensor<2x256x48x72xbf16>" in calls[0]


@pytest.mark.parametrize("width", [8, 40, 64, 72])
def test_what_few_heads_take_fits_into_shared_memory(width):
    for n in range(128, 336, 16):
        assert few_heads_attention.supports(n, width, HALF) == (n <= 320)
        sizes = Sizes(n, n, width)
        array, found = 2 * n * sizes.wide, 2 * 64 * width * 4
        assert pieces(array, array, 512, 512, found) + 2048 <= MOST_BYTES


@pytest.mark.parametrize("heads", [1, 16, 32, 44, 66, 132, 1024])
def test_all_queries_have_a_program_and_all_keys_a_warpgroup(any_jax, heads):
    for n, width in itertools.product((128, 208, 256, 272, 288), (64, 72)):
        with on(HOPPER, 132):
            share = few_heads_attention.shares(Sizes(n, n, width), heads)
        assert 1 <= share.programs <= -(-n // 64)
        assert share.programs == 1 or heads * share.programs <= 132
        assert share.keys < n <= 2 * share.keys and share.keys % 16 == 0
        assert share.windows * share.columns == width and share.columns % 8 == 0


def test_norms_of_all_heads_together_are_not_the_kernel_s():
    table, one, all_heads = array(256, 36), array(1, 72), array(12, 72)
    arrays = Arrays(array(16, 256, 36, 72), None, one, one, table, table)
    assert hopper._turns(Spec(12, False, "triton"), arrays)
    assert not hopper._turns(Spec(12, True, "triton"), arrays)
    of_each = arrays._replace(q_gain=all_heads, k_gain=all_heads)
    assert not hopper._turns(Spec(12, False, "triton"), of_each)


def test_where_norm_and_rotation_have_room():
    """Beside keys, values and tiles of two warpgroups or more, in shared memory."""
    for n, width in ((256, 72), (288, 72), (128, 72), (272, 64)):
        sizes = Sizes(n, n, width)
        warpgroups, slots = forward_shares(sizes, turned=True)
        assert turns(sizes) and -(-sizes.tiles // warpgroups) == -(-sizes.tiles // 4)
        angles, tiles = 2 * n * width, 2 * 64 * width * slots * warpgroups
        assert 4 * n * sizes.wide + angles + tiles < MOST_BYTES
    assert not turns(Sizes(256, 256, 88))


@wants_triton
@needs_new
@pytest.mark.parametrize(
    ("shape", "packing", "shares"),
    [
        ((16, 256, 36 * 72), Packing((16,), (256,)), True),
        ((4, 1280, 36 * 72), Packing((4, 4), (256, 1024)), False),  # two sizes
        ((2, 256, 36 * 72), Packing((2,), (256,)), False),  # too few heads
    ],
)
def test_who_reads_values_from_the_projection(monkeypatch, shape, packing, shares):
    monkeypatch.setattr(backends, "platform", lambda: "gpu")
    with on(HOPPER):
        assert _reads_values(array(*shape), packing, 12) == shares
        with choose(Kernels(attention="cudnn")):
            assert not _reads_values(array(*shape), packing, 12)


@needs_new
def test_many_layers_share_one_program():
    with on(HOPPER):
        text = lowered(
            functools.partial(gradients, 6, None), *[array(16, 256, 12, 72)] * 3
        )
    assert text.count("custom_call @mosaic_gpu") < 6


@needs_new
def test_each_device_attends_for_its_own_images(monkeypatch):
    monkeypatch.setattr(backends, "platform", lambda: "gpu")
    monkeypatch.setattr(backends, "is_hopper", lambda: True)
    with jax.set_mesh(MeshShape(data=2, fsdp=2).build(jax.devices()[:4])):
        text = lowered(
            functools.partial(gradients, 1, None), *[array(64, 256, 12, 72)] * 3
        )
    calls = [line for line in text.splitlines() if "custom_call @mosaic_gpu" in line]
    assert calls and all("tensor<16x256x12x72xbf16>" in call for call in calls)


def test_who_insists_is_told_what_is_missing():
    q = jnp.zeros((1, 256, 2, 64), HALF)
    with pytest.raises(ValueError, match="no Hopper GPU"):
        attend(q, q, q, implementation="hopper")
    with pytest.raises(ValueError, match="neither masks nor dropout"):
        attend(q, q, q, jnp.ones((1, 256), bool), "hopper")


@pytest.mark.skipif(NEW, reason="older jax alone")
def test_an_older_jax_leaves_it_to_cudnn():
    q = array(32, 256, 16, 72)
    with on(HOPPER):
        assert "older than 0.11.2" in backends.missing_hopper()
        assert _best(q, q, None, None) == "cudnn"


def test_who_insists_is_told_which_sizes_it_knows(any_jax):
    q = array(1, 24, 2, 64)
    with on(HOPPER), pytest.raises(ValueError, match="128 tokens or more"):
        hopper.check(q, q, None, None)
