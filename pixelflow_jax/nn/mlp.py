"""The MLP of the blocks."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from pixelflow_jax.nn.dropout import Dropout
from pixelflow_jax.nn.kernels.activate_and_project import Kind
from pixelflow_jax.nn.kernels.mlp import Layers, mlp
from pixelflow_jax.nn.layers import TORCH, Initial, bias_of, linear
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision


class MLP(nnx.Module):
    """down(SiLU(gate(x)) * up(x)), or down(GELU(up(x))) with the tanh form of GELU.

    `kind`: "swiglu" (Shazeer 2020) or "gelu".
    """

    def __init__(
        self,
        kind: Kind,
        width: int,
        hidden: int,
        precision: Precision,
        rngs: nnx.Rngs,
        *,
        bias: bool = False,
        initial: Initial = TORCH,
    ):
        layer = functools.partial(
            linear, precision=precision, rngs=rngs, bias=bias, bias_init=initial.bias
        )
        self.kind: Kind = kind
        if kind == "swiglu":
            self.gate = layer(width, hidden, init=initial.gate_up)
        self.up = layer(width, hidden, init=initial.gate_up)
        self.down = layer(hidden, width, init=initial.kernel)

    def __call__(
        self,
        x: Float[Array, "rows n width"],
        packing: Packing,
        dropouts: tuple[Dropout, ...] | None = None,
    ) -> Float[Array, "rows n width"]:
        """Packed tokens to the same, without the last bias.

        That one is the caller's to add. `dropouts` act on the hidden values, one
        function a group.
        """
        first = (self.gate, self.up) if self.kind == "swiglu" else (self.up,)
        # Matrices that `gate_up_together` has emptied have nothing to multiply.
        kernels = (layer.kernel[...] for layer in first)
        biases = (bias_of(layer) for layer in first)
        layers = Layers(
            tuple(kernel for kernel in kernels if kernel.size),
            tuple(bias for bias in biases if bias is not None),
            self.down.kernel[...],
        )
        return mlp(self.kind, x.astype(self.up.dtype), layers, packing, dropouts)


def swiglu_width(width: int, ratio: float = 4.0) -> int:
    """Hidden width of a SwiGLU MLP, which with its gate weighs what a plain one does.

    Two thirds of the `ratio` by which a plain MLP widens tokens (Shazeer 2020).
    """
    return int(int(width * ratio) * 2 / 3)


def gate_up_together(params: dict) -> dict:
    """Parameters in which every MLP's gate and up are one matrix, and so one product.

    It is the gate's; up's has no columns left. Stacked layers may be `Unstacked`. Where
    this is done already, nothing changes. For sampling alone: it is no parameters file.
    """
    if not isinstance(params, dict):
        return params
    params = {name: gate_up_together(node) for name, node in params.items()}
    if not {"gate", "up", "down"} <= set(params):
        return params
    gate, up = params["gate"]["kernel"], params["up"]["kernel"]
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], -1), gate, up)
    none = jax.tree.map(lambda a: a[..., :0], up)
    return params | {
        "gate": params["gate"] | {"kernel": both},
        "up": params["up"] | {"kernel": none},
    }
