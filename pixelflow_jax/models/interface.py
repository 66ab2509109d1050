"""What every denoiser looks like from outside, and how a module becomes a function."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
from flax import nnx, traverse_util
from jax import Array

from pixelflow_jax.errors import ConfigError
from pixelflow_jax.mesh import Reduce
from pixelflow_jax.nn.kernels.choice import Kernels, choose, is_half_on_gpu
from pixelflow_jax.nn.mlp import gate_up_together
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import (
    join_modulations,
    unstack_layers,
    written_out_blocks,
)
from pixelflow_jax.sharding import tensor_shards


class Condition(NamedTuple):
    """What images are conditioned on; a model reads the parts that it names."""

    labels: Array | None = None  # int32 [b]
    text: Array | None = None  # [b, length, width]
    mask: Array | None = None  # bool [b, length]: which of the text's tokens are text
    grounding: Array | None = None  # bool [b]: whether to look at frozen networks


class Inputs(NamedTuple):
    """What a denoiser is given of the images of one resolution."""

    image: Array  # [b, h, w, c]
    timestep: Array  # [b]
    cond: Condition


class Output(NamedTuple):
    """What it makes of every resolution, and the tokens between the two stacks."""

    pred: tuple[Array, ...]  # float32 [b_i, h_i, w_i, c]
    features: tuple[Array, ...]  # [b_i, n_i, width]


class Denoiser(Protocol):
    """A network on images of one resolution or of several."""

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: Any = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Predictions for images with their timesteps and conditions.

        `key` is for dropout (None: without): one for the batch, or one an image, in the
        order of `batch`, which makes masks independent of batch and devices. `pre` is
        what `precompute(batch)` gives, if at hand; `frozen_params` are the parameters
        of the config's `frozen_networks()`, by name, perhaps among others.
        """
        ...

    def precompute(self, batch: tuple[Inputs, ...]) -> Any:
        """All that depends on timesteps and conditions, and of images on shapes alone.

        A pytree of arrays, for a sampler that knows its times.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where a model was published; `bibtex` holds all that is to be cited."""

    title: str
    url: str
    bibtex: str


@dataclasses.dataclass(frozen=True)
class Labels:
    """A model is conditioned on one of `num_classes` classes; that number is none."""

    num_classes: int
    reads_text: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """A model is conditioned on a text's states [length, width].

    `length` None: any. `reads_padding`: the output depends on the states of padding.
    """

    width: int
    length: int | None = None
    reads_padding: bool = False
    reads_text: ClassVar[bool] = True


class FrozenNetwork(Protocol):
    """A network that a denoiser looks through; its parameters are arguments."""

    def load(self) -> dict:
        """Its parameters (numpy); reads files."""
        ...

    def shapes(self) -> dict:
        """The same as shapes; reads nothing."""
        ...


class DenoiserConfig(Protocol):
    """A config node that builds a denoiser, and what can be known of it beforehand.

    Config dataclasses name this class as their base. `width` is that of the tokens that
    the denoiser hands out, `patch` the side of the square that one stands for.
    `output_kernel` is the path of its last matrix in the parameters.
    """

    paper: ClassVar[Paper]
    output_kernel: ClassVar[tuple[str, ...]] = ("decoder", "linear", "kernel")
    channels: int
    patch: int
    width: int
    num_classes: int = 0

    @property
    def condition(self) -> Labels | TextSpec:
        """What the model is conditioned on."""
        ...

    def build(self, rngs: nnx.Rngs, precision: Precision) -> Denoiser:
        """The module, with freshly drawn parameters."""
        ...

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of that size; empty if nothing."""
        ...

    def flops(self, height: int, width: int) -> float:
        """Floating-point operations of one image's forward pass (2 a multiply-add)."""
        ...

    def frozen_networks(self) -> dict[str, FrozenNetwork]:
        """What the denoiser looks through while it denoises, by name."""
        return {}


@dataclasses.dataclass(frozen=True)
class Network:
    """A denoiser as functions of a nested dict of parameters.

    `apply` and `precompute` are the denoiser's, with the parameters first; a network
    may lack the second. `cast_for_inference` is for a program that applies them in a
    loop, to be done once, before it: matrices are cast, and the layers of written-out
    stacks taken apart. Its result serves `apply` as well; twice is as good as once.
    `abstract` are the parameters as shapes, where whoever made the network knows them.
    """

    init: Callable[[Array], dict]
    apply: Callable[..., Output]
    cast_for_inference: Callable[[dict], dict] = lambda params: params
    precompute: Callable[..., Any] | None = None
    abstract: dict | None = None

    def shapes(self) -> dict:
        """The parameters as shapes; allocates nothing."""
        if self.abstract is None:
            return jax.eval_shape(self.init, jax.random.key(0))
        return jax.tree.map(lambda shape: shape, self.abstract)  # its dicts are new


def network(
    config: DenoiserConfig,
    precision: Precision,
    kernels: Kernels | None = None,
    reduce_dtype: Reduce = "bfloat16",
) -> Network:
    """The config's denoiser, computed as `kernels` says (None: "auto" for all).

    Matrices are cast to the compute type once a call, unless their gradients are to be
    summed in float32 (`reduce_dtype`): then each product casts its own.
    """
    kernels = kernels or Kernels()

    def build(key: Array) -> Denoiser:
        return config.build(nnx.Rngs(params=key), precision)

    module: Any = nnx.eval_shape(build, jax.random.key(0))
    abstract = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    _refuse_lists(config, abstract)
    graph, stacks = nnx.graphdef(module), written_out_blocks(module)

    def merge(params: dict) -> Denoiser:
        cast = precision.cast if reduce_dtype == "bfloat16" else lambda params: params
        return nnx.merge(graph, cast(params))

    def init(key: Array) -> dict:
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def apply(
        params: dict,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: Any = None,
        frozen_params: dict | None = None,
    ) -> Output:
        with jax.default_matmul_precision(precision.matmul), choose(kernels):
            return merge(params)(batch, key=key, pre=pre, frozen_params=frozen_params)

    def precompute(params: dict, batch: tuple[Inputs, ...]) -> Any:
        with jax.default_matmul_precision(precision.matmul), choose(kernels):
            return join_modulations(merge(params).precompute(batch))

    def cast_for_inference(params: dict) -> dict:
        params = unstack_layers(precision.cast(params), stacks)
        # Few tokens leave large GPUs without work, the less so the wider a product.
        wider = is_half_on_gpu(precision.dtype) and tensor_shards() == 1
        return gate_up_together(params) if wider else params

    return Network(init, apply, cast_for_inference, precompute, abstract)


def _refuse_lists(config: DenoiserConfig, params: dict) -> None:
    """ConfigError for parameters without names, which no file could hold."""
    for path in traverse_util.flatten_dict(params):
        if not all(isinstance(part, str) for part in path):
            place = "/".join(map(str, path))
            raise ConfigError(
                f"Parameters of {type(config).__name__} lie in a list ({place}), but "
                "files know them by name: make layers that are alike a nn.stack.Stack, "
                "and give others attributes of their own."
            )


def load_frozen(config: DenoiserConfig) -> dict:
    """The parameters of what a denoiser looks through (numpy), by name; reads files."""
    return {name: net.load() for name, net in config.frozen_networks().items()}


def frozen_shapes(config: DenoiserConfig) -> dict:
    """The same as shapes; reads nothing."""
    return {name: net.shapes() for name, net in config.frozen_networks().items()}


def count(params: dict) -> int:
    """Number of parameters in a pytree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shape_errors(params: dict, shapes: dict) -> list[str]:
    """Missing, unexpected and misshapen parameters, by path; empty if all fit."""
    have: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    want: dict[str, Any] = traverse_util.flatten_dict(shapes, sep="/")
    return [
        *(f"missing: {name}" for name in sorted(set(want) - set(have))),
        *(f"unexpected: {name}" for name in sorted(set(have) - set(want))),
        *(
            f"misshapen: {name} {have[name].shape}, not {want[name].shape}"
            for name in sorted(set(have) & set(want))
            if have[name].shape != want[name].shape
        ),
    ]
