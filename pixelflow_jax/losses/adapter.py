"""PixelREPA's masked adapter: what stands between a model's tokens and a teacher's.

Shin et al. 2026 align pixel diffusion with DINOv2 through two transformer blocks that
see only some of the tokens, in the place of REPA's MLP, which pixels suit less well.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from pixelflow_jax.errors import ConfigError
from pixelflow_jax.models import trunk
from pixelflow_jax.models.interface import DenoiserConfig, Inputs
from pixelflow_jax.models.pixelgen import TIME_PERIOD
from pixelflow_jax.nn.block import Block, BlockConfig
from pixelflow_jax.nn.embed import (
    ClassEmbed,
    TimeEmbed,
    identity_rope,
    rotary_table,
)
from pixelflow_jax.nn.layers import XAVIER, layer_normalise, linear, zeros
from pixelflow_jax.nn.mlp import swiglu_width
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack, StackConfig
from pixelflow_jax.values import Depth, OptionalWidth, Rate

LAYER_NORM_EPS = 1e-5  # PyTorch's default


@dataclasses.dataclass(kw_only=True)
class MaskedAdapter:
    """`Repa.projector` of `depth` JiT blocks with embeddings of time and class.

    Every token is replaced by a learnt one with probability `mask`, in the adapter
    alone: the model goes on with all of its own. `context_length` tokens of the class
    stand before the image's. `heads` divide the model's width (0: one for every 64
    channels); `num_classes` and widths are the model's. Where the teacher's width is
    another one, linear, LayerNorm, SiLU and linear follow. Of a model of text, which
    has no classes, the adapter knows the time alone.
    """

    depth: Depth = 2
    heads: OptionalWidth = 0
    mask: Rate = 0.2
    context_length: OptionalWidth = 32

    def init(self, key: Array, model: DenoiserConfig, width: int) -> dict:
        """Fresh parameters for a teacher of that width."""
        module = self._build(model.width, model.num_classes, width)(
            nnx.Rngs(params=key), Precision()
        )
        return nnx.to_pure_dict(nnx.state(module, nnx.Param))

    def _build(
        self, width: int, num_classes: int, outputs: int
    ) -> Callable[[nnx.Rngs, Precision], "Adapter"]:
        heads = self.heads or max(1, width // 64)
        if width % heads or (width // heads) % 4:
            raise ConfigError(
                f"MaskedAdapter.heads={heads} must divide model.width={width} into "
                "heads whose width is a multiple of 4."
            )
        sizes = BlockConfig(
            width=width,
            heads=heads,
            hidden=swiglu_width(width),
            bias=True,
            initial=XAVIER,
        )

        def build(rngs: nnx.Rngs, precision: Precision) -> Adapter:
            return Adapter(self, sizes, (num_classes, outputs), rngs, precision)

        return build

    def __call__(
        self,
        params: dict,
        tokens: Float[Array, "b n width"],
        given: Inputs,
        keys: Array,
    ) -> Float[Array, "b n outputs"]:
        """Predictions of the teacher's tokens, float32.

        `tokens` are the model's of the images `given`, `keys` [b] the images' own.
        """
        classes = params.get("class_embed")
        num_classes = len(classes["table"]) - 1 if classes else 0
        last = params["projection"]["out"]["bias"] if "projection" in params else None
        width = tokens.shape[-1]
        outputs = width if last is None else len(last)
        build = self._build(width, num_classes, outputs)
        half = tokens.dtype == jnp.bfloat16
        precision = Precision(compute="bfloat16" if half else "float32")
        graph = nnx.graphdef(
            nnx.eval_shape(lambda: build(nnx.Rngs(params=0), precision))
        )
        keep = uniform(keys, tokens.shape[1]) > self.mask
        return nnx.merge(graph, precision.cast(params))(tokens, given, keep)


def uniform(keys: Array, count: int) -> Float[Array, "b {count}"]:
    """A number in [0, 1) for each token of every image."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)


class Projection(nnx.Module):
    """Linear, LayerNorm, SiLU, linear."""

    def __init__(self, width: int, outputs: int, rngs: nnx.Rngs, precision: Precision):
        self.hidden = linear(width, width, precision, rngs)
        self.weight = nnx.Param(jnp.ones(width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))
        self.out = linear(width, outputs, precision, rngs)

    def __call__(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes outputs"]:
        """The teacher's width."""
        normal = layer_normalise(self.hidden(x), LAYER_NORM_EPS)
        active = jax.nn.silu(normal * self.weight[...] + self.bias[...])
        return self.out(active.astype(x.dtype))


class Adapter(nnx.Module):
    """The module of `MaskedAdapter`."""

    def __init__(
        self,
        config: MaskedAdapter,
        sizes: BlockConfig,
        ends: tuple[int, int],
        rngs: nnx.Rngs,
        precision: Precision,
    ):
        d, (num_classes, outputs), length = sizes.width, ends, config.context_length
        self.head_width = d // sizes.heads
        self.dtype = precision.dtype
        small = nnx.initializers.normal(0.02)
        self.mask = nnx.Param(small(rngs.params(), (d,)))
        self.time_embed = TimeEmbed(d, TIME_PERIOD, precision, rngs, bias_init=zeros)
        self.class_embed = ClassEmbed(num_classes, d, rngs) if num_classes else None
        self.context = nnx.Param(small(rngs.params(), (length, d))) if length else None
        self.stack = Stack(
            lambda rngs: Block(sizes, precision, rngs),
            config.depth,
            rngs,
            StackConfig(),
        )
        self.projection = (
            None if outputs == d else Projection(d, outputs, rngs, precision)
        )

    def __call__(self, tokens: Array, given: Inputs, keep: Array) -> Array:
        """The teacher's tokens from the model's [b, n, d], those to `keep` [b, n]."""
        b, n, _ = tokens.shape
        time = self.time_embed(given.timestep)
        classes = jnp.zeros_like(time)
        if self.class_embed is not None:
            classes = self.class_embed(trunk.labels_of(given.cond))
        cond = trunk.modulating((time + classes,), self.dtype)
        x = jnp.where(keep[..., None], tokens, self.mask[...].astype(tokens.dtype))
        length = 0
        if self.context is not None:
            context = self.context[...]
            length = len(context)
            ahead = (classes[:, None] + context).astype(self.dtype)
            x = jnp.concatenate([ahead, x], 1)
        packing = Packing.of([x])
        rope = trunk.pack_rope(
            packing, [self._grid(given.image, n)], self._table(length)
        )
        x = self.stack(packing.join([x]), cond, packing, rope)
        (whole,) = packing.split(x)
        image = whole[:, length:]
        out = image if self.projection is None else self.projection(image)
        return out.astype(jnp.float32)

    def _grid(self, image: Array, count: int) -> tuple[int, int]:
        rows = round((count * image.shape[1] / image.shape[2]) ** 0.5)
        return rows, count // rows

    def _table(self, context: int) -> trunk.Table:
        def table(rows: int, columns: int):
            own = rotary_table(
                rows, columns, self.head_width, None, halves=True, row_first=True
            )
            return identity_rope(own, context)

        return table
