"""What every denoiser looks like from outside, and how a module becomes a function."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
from flax import nnx, traverse_util
from jax import Array

from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import unstack_layers, written_out_blocks

# Where every denoiser keeps its last matrix, from the tokens to pixels.
LAST_KERNEL = ("decoder", "linear", "kernel")


class Condition(NamedTuple):
    """The condition of a group of images: class labels, or text with its mask."""

    labels: Array | None = None  # int32 [b]
    text: Array | None = None  # [b, length, width]
    mask: Array | None = None  # bool [b, length]


class Output(NamedTuple):
    """Network outputs, one image group each, and the tokens between the two stacks."""

    pred: tuple[Array, ...]  # float32 [b_i, h_i, w_i, c]
    features: tuple[Array, ...]  # [b_i, n_i, width]


class Denoiser(Protocol):
    """A network on groups of images, one group a resolution."""

    def __call__(
        self,
        groups: tuple[Array, ...],
        timesteps: tuple[Array, ...],
        conds: tuple[Condition, ...],
        *,
        key: Array | None = None,
        pre: object = None,
    ) -> Output:
        """Images [b_i, h_i, w_i, c], timesteps [b_i] and conditions.

        `key` is for dropout (None: without): one for the batch, or one an image, in the
        order of the groups, which makes masks independent of batch and devices. `pre`
        is what `precompute(...)` gives for the same arguments, if at hand.
        """

    def precompute(
        self,
        groups: tuple[Array, ...],
        timesteps: tuple[Array, ...],
        conds: tuple[Condition, ...],
    ) -> object:
        """All that depends on timesteps and conditions, and of `groups` on shapes alone.

        A pytree of arrays, for a sampler that knows its times.
        """


class DenoiserConfig(Protocol):
    """A config node that builds a denoiser.

    `width` is that of the tokens it hands out, `patch` the side of one's square.
    """

    channels: int
    num_classes: int
    patch: int
    width: int

    def build(self, rngs: nnx.Rngs, precision: Precision) -> Denoiser:
        """The module, with freshly drawn parameters."""

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of that size; empty if nothing."""

    def flops(self, height: int, width: int) -> float:
        """Floating-point operations of one image's forward pass (2 a multiply-add)."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A denoiser as functions of a nested dict of parameters.

    `cast_for_inference` is for a program that applies them in a loop, to be done once, ahead of
    it: matrices are cast, and the layers of written-out stacks taken apart. Its result
    serves `apply` as well; twice is as good as once. `precompute` is the denoiser's, with
    the parameters first; None: there is none.
    """

    init: Callable[[Array], dict]
    apply: Callable[..., Output]
    cast_for_inference: Callable[[dict], dict] = lambda params: params
    precompute: Callable[..., object] | None = None

    def shapes(self) -> dict:
        """The parameters as shapes; allocates nothing."""
        return jax.eval_shape(self.init, jax.random.key(0))


def network(config: DenoiserConfig, precision: Precision) -> Network:
    """The config's denoiser: `init(key)`, `apply(params, ...)`, `cast_for_inference(params)`.

    `apply` casts matrices to the compute type once and sets the matmul precision.
    """

    def build(key: Array) -> Denoiser:
        return config.build(nnx.Rngs(params=key), precision)

    module = nnx.eval_shape(build, jax.random.key(0))
    graph, stacks = nnx.graphdef(module), written_out_blocks(module)

    def init(key: Array) -> dict:
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def apply(params: dict, *args: object, **kwargs: object) -> Output:
        with jax.default_matmul_precision(precision.matmul):
            return nnx.merge(graph, precision.cast(params))(*args, **kwargs)

    def cast_for_inference(params: dict) -> dict:
        return unstack_layers(precision.cast(params), stacks)

    def precompute(params: dict, *args: object) -> object:
        with jax.default_matmul_precision(precision.matmul):
            return nnx.merge(graph, precision.cast(params)).precompute(*args)

    return Network(init, apply, cast_for_inference, precompute)


def count(params: dict) -> int:
    """Number of parameters in a pytree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shape_errors(params: dict, shapes: dict) -> list[str]:
    """Missing, unexpected and misshapen parameters, by path; empty if all fit."""
    have = traverse_util.flatten_dict(params, sep="/")
    want = traverse_util.flatten_dict(shapes, sep="/")
    found = [f"missing: {name}" for name in sorted(set(want) - set(have))]
    found += [f"unexpected: {name}" for name in sorted(set(have) - set(want))]
    return found + [
        f"misshapen: {name} {have[name].shape}, not {want[name].shape}"
        for name in sorted(set(have) & set(want))
        if have[name].shape != want[name].shape
    ]
