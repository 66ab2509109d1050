"""What every text encoder looks like: its config node, and what it does."""

from typing import Literal, Protocol

import numpy as np
from jax import Array

from pixelflow_jax.encoders.tokenizers import TextReader
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig

Attention = Literal["auto", "xla", "cudnn"]  # with biases and causal masks


class Geometry(Protocol):
    """The sizes of a network, a dataclass of numbers."""

    @property
    def vocabulary(self) -> int:
        """How many tokens have an embedding."""
        ...

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        ...


class TextEncoder(Protocol):
    """A frozen network that reads texts: T5, Qwen3, Bert.

    Config dataclasses name this class as their base. `variant` is one of the published
    networks, in whose place a geometry may be given. `weights` names the file (see
    `tensors.locate`), `tokenizer` the folder of the tokenizer, which is that of the
    weights where it is "". `attention` and `stack` change speed alone.
    """

    variant: str
    weights: str
    tokenizer: str
    attention: Attention
    precision: Precision
    stack: StackConfig

    @property
    def geometry(self) -> Geometry | None:
        """Other sizes than those of `variant`."""
        ...

    @property
    def sizes(self) -> Geometry:
        """The network's sizes."""
        ...

    @property
    def width(self) -> int:
        """The width of its states."""
        ...

    def load(self, field: str = "conditioner.encoder.weights") -> dict:
        """The parameters (numpy); WeightsError, naming `field`, without its weights."""
        ...

    def shapes(self) -> dict:
        """What `load` returns, as shapes; reads nothing."""
        ...

    def states(self, params: dict, tokens: Array, mask: Array | None = None) -> Array:
        """Float32 [b, n, width] of tokens [b, n], of which `mask` says which count."""
        ...

    def problems(self) -> list[str]:
        """What is wrong with this config."""
        ...

    def empty(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [length] and mask bool [length] of ""; needs no files."""
        ...

    def reader(self, length: int) -> TextReader:
        """What turns texts into tokens [n, length] for it."""
        ...

    def identity(self) -> dict:
        """What determines its states, JSON-able: tells features of encoders apart."""
        ...
