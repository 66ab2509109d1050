"""Each operation that has a kernel, against its formula in float32, with gradients.

Inputs are of the type that a run computes in. On GPUs the kernels are Triton's, cuDNN's
and, of attention on Hopper GPUs, Mosaic's, on TPUs Mosaic's; on CPUs they are
interpreted. What is left to the compiler is compared all the same.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.attention import attend, attend_projection, cudnn_fits
from pixelflow_jax.nn.block import CHUNKS, GATE1, SCALE2, SHIFT2
from pixelflow_jax.nn.kernels.activate_and_project import Kind, activate_and_project
from pixelflow_jax.nn.kernels.adaln_residual import AdaLN, Residual, adaln_residual
from pixelflow_jax.nn.kernels.backends import (
    BACKENDS,
    is_interpreted,
    missing,
    missing_hopper,
    platform,
)
from pixelflow_jax.nn.kernels.choice import Kernels, choose, is_half_on_gpu
from pixelflow_jax.nn.kernels.mlp import Layers, mlp
from pixelflow_jax.nn.kernels.neural_field import GeneratedMLP, neural_field
from pixelflow_jax.nn.kernels.qkv_norm_rope import qkv_norm_rope
from pixelflow_jax.nn.packing import Packing

# How far a result may be from the formula in float32, of its largest value.
TOLERANCES = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.04}
SMALLEST = 1e-30  # so that nothing is divided by zero


class Sizes(NamedTuple):
    """Of the arrays: those of the XL models on accelerators, small ones on CPUs."""

    batch: int
    length: int
    width: int
    heads: int
    hidden: int
    pixels: int  # of a patch
    field: tuple[int, int]  # width and hidden width of the neural field


XL = Sizes(4, 256, 1152, 16, 3072, 256, (64, 128))
LONG = 1024  # tokens
HOPPER = "hopper"  # a part of its own, with the word of `Kernels.attention`
FILLED = 132  # heads of images that fill any Hopper GPU
PATCHES = 300  # more than any has multiprocessors
MANY = 64  # images whose MLPs fill it
GUIDED = 2  # what one image takes with guidance
TINY = Sizes(2, 16, 32, 4, 64, 64, (16, 16))


def adaln(packing: Packing, kernels: Kernels, *arrays: Array) -> tuple:
    """Gated sum, norm and modulation of x, branch [b, n, width] and modulations."""
    x, branch, *modulation = arrays
    ones = jnp.ones(x.shape[-1], jnp.float32)
    residual = Residual(branch, ones, GATE1)
    with choose(kernels):
        return adaln_residual(
            x, tuple(modulation), packing, residual, AdaLN(ones, SHIFT2, SCALE2)
        )


def qkv(heads: int, packing: Packing, kernels: Kernels, qkv: Array) -> tuple:
    """Queries, keys and values of [b, n, 3 * heads * head_width], normed and turned."""
    with choose(kernels):
        return qkv_norm_rope(qkv, packing, **_angles(heads, packing, qkv))


def projection(
    heads: int, packing: Packing, kernels: Kernels, qkv: Array, bias: Array
) -> tuple:
    """Attention from such a projection on, and its bias [1, 3 * width]."""
    given = _angles(heads, packing, qkv)
    with choose(kernels):
        return (attend_projection(qkv, packing, bias=bias[0], **given),)


def _angles(heads: int, packing: Packing, qkv: Array) -> dict[str, Any]:
    """How a projection is normed and turned."""
    head_width = qkv.shape[-1] // (3 * heads)
    ones = jnp.ones(head_width, jnp.float32)
    angles = jnp.linspace(0.0, 9.0, sum(packing.lengths) * head_width // 2)
    angles = angles.reshape(-1, head_width // 2)
    rope = (jnp.cos(angles), jnp.sin(angles))
    return {"heads": heads, "gains": (ones, ones), "rope": rope}


def swiglu(packing: Packing, kernels: Kernels, *arrays: Array) -> tuple:
    """SwiGLU of gate and up [b, n, hidden], and the product with a matrix."""
    gate, up, matrix = arrays
    biases = (jnp.ones(gate.shape[-1], jnp.float32),) * 2
    with choose(kernels):
        return (activate_and_project("swiglu", (gate, up), biases, matrix, packing),)


def whole_mlp(
    kind: Kind, bias: bool, packing: Packing, kernels: Kernels, *arrays: Array
) -> tuple:
    """An MLP from tokens [b, n, width], by its matrices, to its last product."""
    x, *first, last = arrays
    parts = sum(matrix.shape[1] for matrix in first) // len(last)
    biases = (jnp.ones(len(last), jnp.float32),) * (parts if bias else 0)
    unit = x.shape[-1] ** -0.5  # so that values are of normal size
    layers = Layers(tuple(matrix * unit for matrix in first), biases, last)
    with choose(kernels):
        return (mlp(kind, x, layers, packing),)


def field(kernels: Kernels, z: Array, weights: Array) -> tuple:
    """The MLPs of patches z [patches, pixels, width], weights [patches, 2 * w * h]."""
    gain = jnp.ones(z.shape[-1], jnp.float32)
    mlp = GeneratedMLP(weights[None], z.shape[-1], (True, True))
    with choose(kernels):
        return (neural_field(z[None], gain, mlp)[0],)


def attention(kernels: Kernels, q: Array, k: Array, v: Array) -> tuple:
    """Softmax attention of [b, n, heads, head_width]."""
    return (attend(q, k, v, implementation=kernels.attention),)


class Operation(NamedTuple):
    """A function of kernels and arrays of these shapes; `part` of `Kernels` chooses."""

    name: str
    function: Callable[..., tuple]
    shapes: tuple[tuple[int, ...], ...]
    part: str


def operations(sizes: Sizes) -> list[Operation]:
    """All operations that may run as kernels."""
    b, n, width = sizes.batch, sizes.length, sizes.width
    packing = Packing((b,), (n,))
    tokens, wide = (b, n, width), (b, n, sizes.hidden)
    heads = (b, n, sizes.heads, width // sizes.heads)
    inner, hidden = sizes.field
    patches, generated = (b * 4, sizes.pixels, inner), (b * 4, 2 * inner * hidden)
    bind = functools.partial
    return [
        Operation(
            "adaln_residual",
            bind(adaln, packing),
            (tokens, tokens, (b, CHUNKS * width)),
            "blocks",
        ),
        Operation(
            "qkv_norm_rope",
            bind(qkv, sizes.heads, packing),
            ((b, n, 3 * width),),
            "blocks",
        ),
        Operation(
            "activate_and_project",
            bind(swiglu, packing),
            (wide, wide, (sizes.hidden, width)),
            "blocks",
        ),
        Operation("neural_field", field, (patches, generated), "field"),
        Operation("attention", attention, (heads,) * 3, "attention"),
    ]


def only_here(sizes: Sizes, dtype: str) -> list[Operation]:
    """What runs on some machines alone, where this is one."""
    if missing_hopper() or not is_half_on_gpu(jnp.dtype(dtype)):
        return []
    width, images = sizes.width, -(-FILLED // sizes.heads)
    operations = []
    if not missing("triton"):  # which has the forward pass
        inner, hidden = sizes.field
        shapes = (PATCHES, sizes.pixels, inner), (PATCHES, 2 * inner * hidden)
        operations.append(Operation("many neural fields", field, shapes, HOPPER))
    one = functools.partial(
        projection, sizes.heads, Packing((GUIDED,), (sizes.length,))
    )
    shapes = (GUIDED, sizes.length, 3 * width), (1, 3 * width)
    operations.append(Operation("attention of one image", one, shapes, HOPPER))
    for word, n in (("short", sizes.length), ("long", LONG)):
        heads = sizes.batch, n, sizes.heads, width // sizes.heads
        name = f"attention of {word} sequences"
        operations.append(Operation(name, attention, (heads,) * 3, HOPPER))
        if not missing("triton"):  # whose norm and rotation projections begin with
            run = functools.partial(projection, sizes.heads, Packing((images,), (n,)))
            shapes = (images, n, 3 * width), (1, 3 * width)
            name = f"attention of {word} projections"
            operations.append(Operation(name, run, shapes, HOPPER))
    kinds: tuple[tuple[Kind, int], ...] = ("swiglu", 2), ("gelu", 1)
    for kind, count in kinds:
        packing = Packing((MANY,), (sizes.length,))
        matrices = [(width, sizes.hidden)] * count + [(sizes.hidden, width)]
        run = functools.partial(whole_mlp, kind, kind == "gelu", packing)
        shapes = (MANY, sizes.length, width), *matrices
        operations.append(Operation(f"mlp with {kind}", run, shapes, HOPPER))
    return operations


def with_gradient(function: Callable, outs: int = 1) -> Callable[..., tuple]:
    """A function of the inputs and `outs` cotangents: the result and all gradients."""

    def both(*inputs: Array) -> tuple:
        out, pull = jax.vjp(function, *inputs[:-outs])
        return out, pull(jax.tree.unflatten(jax.tree.structure(out), inputs[-outs:]))

    return both


def check(dtype: str) -> list[str]:
    """Compare all operations in `dtype`; ValueError names those that are off."""
    sizes = TINY if jax.default_backend() == "cpu" else XL
    lines, wrong = [], []
    for operation in operations(sizes) + only_here(sizes, dtype):
        kernels, how = chosen(operation, dtype)
        forward, backward = deviations(operation, kernels, dtype)
        line = f"{operation.name} ({how}): off by {forward:.1e}, "
        line += f"gradients {backward:.1e}"
        lines.append(line)
        if max(forward, backward) > TOLERANCES[dtype]:
            wrong.append(line)
    if wrong:
        raise ValueError(
            f"More than {TOLERANCES[dtype]:g} of the largest value:\n"
            + "\n".join(wrong)
            + "\nAvoid them: --config.kernels.blocks=xla, .field=xla or .attention=xla."
        )
    return lines


def chosen(operation: Operation, dtype: str) -> tuple[Kernels, str]:
    """The kernels to compare, and what they are."""
    if operation.part == "attention":
        q = jax.ShapeDtypeStruct(operation.shapes[0], jnp.dtype(dtype))
        fits = cudnn_fits(q)
        return Kernels(attention="cudnn" if fits else "xla"), "cuDNN" if fits else "XLA"
    if operation.part == HOPPER:
        return Kernels(attention="hopper"), "Mosaic"
    backend = BACKENDS[platform()]["pallas"]
    if missing(backend):
        return Kernels(blocks="xla", field="xla"), "XLA"
    how = {"triton": "Triton", "mosaic_gpu": "Mosaic", "mosaic_tpu": "Mosaic"}[backend]
    how = "interpreted" if is_interpreted() else how
    return Kernels(blocks="pallas", field="pallas"), how


def deviations(operation: Operation, kernels: Kernels, dtype: str) -> tuple:
    """How far results and gradients are from the formula, of their largest values."""
    formula = Kernels(blocks="xla", field="xla", attention="xla")
    inputs = _normal(operation.shapes, dtype)
    outs = jax.eval_shape(functools.partial(operation.function, kernels), *inputs)
    leaves = jax.tree.leaves(outs)
    cotangents = _normal(tuple(leaf.shape for leaf in leaves), dtype, seed=1)
    pairs = zip(cotangents, leaves, strict=True)
    given = (*inputs, *(a.astype(leaf.dtype) for a, leaf in pairs))
    exact = tuple(a.astype(jnp.float32) for a in given)

    def results(kernels: Kernels) -> Callable:
        """Alone, where kernels may do without what a gradient needs, and with it."""
        function = functools.partial(operation.function, kernels)
        both = with_gradient(function, len(leaves))
        return jax.jit(lambda *all: (function(*all[: len(inputs)]), *both(*all)))

    with jax.default_matmul_precision("highest"):
        expected = results(formula)(*exact)
    found = results(kernels)(*given)
    alone, forward, backward = map(deviation, found, expected)
    return max(alone, forward), backward


def _normal(shapes: tuple[tuple[int, ...], ...], dtype: str, seed: int = 0) -> tuple:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    pairs = zip(keys, shapes, strict=True)
    return tuple(jax.random.normal(key, s).astype(dtype) for key, s in pairs)


def deviation(found: Any, expected: Any) -> float:
    """The largest difference of two trees of arrays, of each one's largest expected.

    Infinite where either has a number that is not finite: XLA's largest of numbers
    passes over NaN on CPUs, as Python's does.
    """
    worst = 0.0
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        b = b.astype(jnp.float32)
        difference = jnp.abs(a.astype(jnp.float32) - b)
        if not jnp.isfinite(difference).all():
            return math.inf
        scale = jnp.maximum(jnp.abs(b).max(), SMALLEST)
        worst = max(worst, float(difference.max() / scale))
    return worst
