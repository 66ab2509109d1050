"""The MLP of the blocks."""

from collections.abc import Callable

from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn import hidden as inner
from pixelflow_jax.nn.dropout import Dropout
from pixelflow_jax.nn.layers import bias_of, linear, product, torch_default
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision


class MLP(nnx.Module):
    """down(SiLU(gate(x)) * up(x)), or down(GELU(up(x))) with the tanh form of GELU.

    `kind`: "swiglu" (Shazeer 2020) or "gelu". `first_init` initialises the matrices
    before the activation, `init` the last.
    """

    def __init__(
        self,
        kind: str,
        width: int,
        hidden: int,
        precision: Precision,
        rngs: nnx.Rngs,
        *,
        bias: bool = False,
        init: Callable = torch_default,
        first_init: Callable = torch_default,
        bias_init: Callable | None = None,
    ):
        biases = {"bias": bias, "bias_init": bias_init}
        first = {"init": first_init, **biases}
        self.kind = kind
        if kind == "swiglu":
            self.gate = linear(width, hidden, precision, rngs, **first)
        self.up = linear(width, hidden, precision, rngs, **first)
        self.down = linear(hidden, width, precision, rngs, init=init, **biases)

    def __call__(
        self,
        x: Array,
        packing: Packing,
        dropouts: tuple[Dropout, ...] | None = None,
        kernels: str = "auto",
    ) -> Array:
        """Packed tokens [rows, n, width] to the same, without the last bias.

        That one is the caller's to add. `dropouts` act on the hidden values, one function
        a group; `kernels`: as in `nn.residual.between`.
        """
        first = (self.gate, self.up) if self.kind == "swiglu" else (self.up,)
        biases = [bias_of(layer) for layer in first]
        return inner.down(
            self.kind,
            tuple(checkpoint_name(product(layer, x), "mlp_hidden") for layer in first),
            tuple(bias for bias in biases if bias is not None),
            self.down.kernel[...].astype(x.dtype),
            packing,
            dropouts=dropouts,
            kernels=kernels,
        )
