"""Attention of short sequences on Hopper GPUs, interpreted on the CPU by Pallas.

Copies, barriers, tiles, and who computes what are the kernels' own, and races are
looked for where tokens are whole tiles; the products of the matrix units and the
turning of lanes, which the interpreter does not know, are formulas here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.doctor.kernels import deviation
from pixelflow_jax.nn.kernels import backends
from pixelflow_jax.nn.kernels.launch import EPS
from pixelflow_jax.nn.kernels.mosaic_gpu import (
    few_heads_attention,
    short_attention_backward,
    short_attention_forward,
    steps,
    turn,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import Courier
from pixelflow_jax.nn.kernels.mosaic_gpu.short_attention import turns
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import Sizes

NEW = jax.__version_info__ >= backends.OLDEST
RACE = "RACE DETECTED"  # in what is printed; newer jax raises it
needs_new = pytest.mark.skipif(not NEW, reason="needs a newer jax")


@pytest.fixture
def interpreted(monkeypatch):
    """`interpreted(cores, n)`: kernels run on the CPU, as if on so many cores.

    Races are looked for where `n` tokens are whole tiles: in others the last two tiles
    share rows, and two warpgroups write the same numbers there.
    """
    from jax.experimental.pallas import mosaic_gpu

    fetch = Courier.fetch
    product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    across = lambda rows, block: product(rows, block[...].T)
    formulas = {
        "logits_of": across,
        "_two_products": lambda *pairs: tuple(across(*pair) for pair in pairs),
        "add": lambda sums, pairs: [
            a + product(rows, block[...])
            for a, (rows, block) in zip(sums, pairs, strict=True)
        ],
    }

    def fenced(self, *args) -> None:
        # A slot is fetched again behind its reader. The interpreter wants a fence of
        # memory between the two, where Pallas has a barrier of the warpgroup.
        mosaic_gpu.commit_smem()
        fetch(self, *args)

    def use(cores: int, n: int) -> None:
        interpret = mosaic_gpu.InterpretGPUParams(detect_races=n % steps.ROWS == 0)
        run = functools.partial(mosaic_gpu.kernel, interpret=interpret)
        monkeypatch.setattr(mosaic_gpu, "kernel", run)
        monkeypatch.setattr(Courier, "fetch", fenced)
        for name, formula in formulas.items():
            monkeypatch.setattr(steps, name, formula)
        monkeypatch.setattr(turn, "_turned", turned)
        own = few_heads_attention, short_attention_forward, short_attention_backward
        for module in own:
            monkeypatch.setattr(module, "multiprocessors", lambda: cores)

    return use


def turned(x, angles):
    """Pairs of lanes turned by their angles, cosine and sine side by side."""
    pairs = (y.reshape(*y.shape[:-1], -1, 2) for y in (x, angles))
    (a, b), (cos, sin) = (jnp.moveaxis(y, -1, 0) for y in pairs)
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)


def normal(*shapes: tuple[int, ...]):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes]


def attention(q, k, v, length: int):
    """The formula in float32."""
    q, k, v = (a.astype(jnp.float32) for a in (q, k, v))
    return jax.nn.dot_product_attention(q, k[:, :length], v[:, :length])


@needs_new
@pytest.mark.parametrize(
    ("images", "heads", "n", "length", "width", "cores"),
    [
        (2, 2, 128, 128, 72, 3),
        (2, 1, 256, 200, 16, 9),
        (1, 2, 640, 640, 16, 1),
        (1, 2, 320, 320, 72, 1),  # results leave by the slot of queries
    ],
)
def test_forward(interpreted, capfd, images, heads, n, length, width, cores):
    interpreted(cores, n)
    q, k, v, bias = normal(*[(images, n, heads, width)] * 3, (heads, width))
    forward = short_attention_forward.forward.__wrapped__
    found, sums = forward(q, k, v, length, bias)
    assert deviation(found, attention(q, k, v + bias, length)) <= 0.01
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k[:, :length]).astype(jnp.float32)
    expected = jax.nn.logsumexp(logits * width**-0.5, -1) / jnp.log(2.0)
    np.testing.assert_allclose(sums, expected, atol=0.05)
    assert RACE not in capfd.readouterr().out


@needs_new
@pytest.mark.parametrize(
    ("n", "width", "bias", "cores"),
    [
        *((288, 40, True, 1), (320, 40, False, 2)),
        *((320, 64, False, 1), (320, 64, True, 132)),
    ],
)
def test_from_a_projection_on(interpreted, capfd, n, width, bias, cores):
    interpreted(cores, n)
    assert turns(Sizes(n, n, width))
    check_from_a_projection_on(
        short_attention_forward.forward_projected, n, width, bias
    )
    assert RACE not in capfd.readouterr().out


@needs_new
@pytest.mark.parametrize(
    ("n", "width", "bias", "cores"),
    [
        *((256, 72, False, 8), (256, 64, True, 4), (256, 40, True, 6)),
        *((128, 16, True, 4), (192, 24, False, 2), (320, 72, True, 9)),
        *((288, 72, True, 8), (272, 64, False, 132)),  # the latter: shared unevenly
    ],
)
def test_few_heads(interpreted, capfd, n, width, bias, cores):
    """A program for each tile or for some, warpgroups that share keys evenly or not."""
    interpreted(cores, n)
    check_from_a_projection_on(few_heads_attention.attend, n, width, bias)
    assert RACE not in capfd.readouterr().out


def check_from_a_projection_on(attend, n: int, width: int, bias: bool) -> None:
    """`attend` against the formulas, for two heads of an image."""
    heads = 2
    shapes = (1, n, 3 * heads, width), (3 * heads, width), (width,), (width,)
    qkv, b, *gains = normal(*shapes)
    gains = tuple(1 + 0.1 * gain.astype(jnp.float32) for gain in gains)
    phases = jnp.linspace(0, 9, n * width // 2).reshape(n, -1)
    angles = jnp.stack([jnp.cos(phases), jnp.sin(phases)], -1).reshape(n, width)
    found = attend.__wrapped__(heads, qkv, gains, angles, b if bias else None)
    q, k, v = jnp.split(qkv.astype(jnp.float32) + (b if bias else 0), 3, axis=2)

    def on_its_way(x, gain):
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS) * gain
        return turned(x, angles[:, None])

    q, k = (on_its_way(*pair) for pair in zip((q, k), gains, strict=True))
    assert deviation(found, attention(q, k, v, n)) <= 0.01


@needs_new
@pytest.mark.parametrize(("n", "length", "cores"), [(192, 192, 2), (128, 100, 4)])
def test_backward(interpreted, capfd, n, length, cores):
    interpreted(cores, n)
    q, k, v, cotangent = normal(*[(2, n, 2, 24)] * 4)
    cotangent = cotangent.at[:, length:].set(0)  # nobody looks at these results
    out, sums = short_attention_forward.forward.__wrapped__(q, k, v, length)
    backward = short_attention_backward.backward.__wrapped__
    found = backward((q, k, v), out, sums, cotangent, length)
    _, pull = jax.vjp(functools.partial(attention, length=length), q, k, v)
    expected = pull(cotangent.astype(jnp.float32))
    assert deviation(found, expected) <= 0.01
    assert RACE not in capfd.readouterr().out
