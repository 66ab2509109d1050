"""What the text encoders' networks have in common: checks, attention, messages."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.attention import IMPLEMENTATIONS, cudnn_fits
from pixelflow_jax.nn.kernels.choice import Attention
from pixelflow_jax.nn.stack import StackConfig, layers_of, run_layers
from pixelflow_jax.tensors.official import Origin, Row

# cuDNN's attention takes masks and biases of lengths that this divides, at least.
CUDNN_LENGTHS = 64


def check_tokens(network: str, tokens: Array, mask: Array | None) -> None:
    """Raises ValueError where tokens and mask cannot be read."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"{network} reads token numbers, integers [b, n], not "
            f"{tokens.dtype} {tokens.shape}."
        )
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(
            f"The mask {mask.shape} must have the shape of the tokens, {tokens.shape}."
        )


def look_up(table: Array, tokens: Array) -> Array:
    """Rows of a table, float32 [b, n, width]; NaN for tokens beyond its end."""
    # Plain indexing takes the last row instead.
    return jnp.take(table, tokens, axis=0, mode="fill").astype(jnp.float32)


def attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    implementation: Attention,
    *,
    bias: Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Array:
    """Softmax attention without a backward pass, [b, n, heads * head_width].

    `q` [b, n, heads, head_width]; `k`, `v` [b, n, kv_heads, head_width], each of whose
    heads serves as many heads of queries in a row; `mask` bool [b, n] (True = attend);
    `bias` [1, heads, n, n]; `causal`: no token sees those behind it. "auto" is cuDNN's
    flash attention where it fits and there is no bias, else XLA; the softmax is
    float32.
    """
    b, n = q.shape[:2]
    if implementation == "auto":
        # With a bias it is faster, but not yet compared with XLA on a GPU.
        fits = cudnn_fits(q) and n % CUDNN_LENGTHS == 0 and bias is None
        implementation = "cudnn" if fits else "xla"
    if mask is not None:
        mask = mask.astype(bool)[:, None, None, :]
    if implementation == "cudnn":  # takes a full mask, and a bias of q's type
        mask = None if mask is None else jnp.broadcast_to(mask, (b, 1, n, n))
        bias = None if bias is None else bias.astype(q.dtype)
    mixed = jax.nn.dot_product_attention(
        *(q, k, v, bias, mask),
        scale=scale,
        is_causal=causal,
        implementation=implementation,
    )
    return mixed.reshape(b, n, -1)


def gated_mlp(params: dict, x: Array, activation: Callable[[Array], Array]) -> Array:
    """down(activation(gate x) * up x), all but the activation in x's type."""
    gate, up = (x @ params[name]["kernel"] for name in ("gate", "up"))
    hidden = activation(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return hidden.astype(x.dtype) @ params["down"]["kernel"]


def run_blocks(
    block: Callable[[dict, Array], Array], blocks: dict, x: Array, stack: StackConfig
) -> Array:
    """All blocks in sequence, by a scan over their leading axis or written out."""
    return run_layers(block, blocks if stack.scan else layers_of(blocks), x, stack)


def stacked(rows: list[Row], depth: int, theirs: str) -> list[Row]:
    """Rows of one block as rows of all; `theirs` is the blocks' path with `{i}`."""
    return [
        dataclasses.replace(
            row, ours=f"blocks/{row.ours}", theirs=theirs + row.theirs, layers=depth
        )
        for row in rows
    ]


def sizes_problems(geometry: Any, tokens: tuple[str, ...] = ()) -> list[str]:
    """Which sizes of a geometry are not positive, as a message.

    `tokens` are the fields that number a token.
    """
    sizes = dataclasses.asdict(geometry)
    numbers = {name: sizes.pop(name) for name in tokens}
    small = [f"{name}={value}" for name, value in sizes.items() if value < 1]
    found = [f"geometry.{', '.join(small)} must be at least 1"] if small else []
    return found + [
        f"geometry.{name}={value} must be at least 0 and below geometry.vocabulary="
        f"{geometry.vocabulary}"
        for name, value in numbers.items()
        if not 0 <= value < geometry.vocabulary
    ]


def problems(config: Any, variants: Mapping[str, object]) -> list[str]:
    """What is wrong with the fields that all encoders have."""
    if config.geometry is None and config.variant not in variants:
        known = ", ".join(variants)
        return [f"variant={config.variant!r} is not one of {known}: set geometry"]
    found = list(config.sizes.problems())
    if config.attention not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        found.append(f"attention={config.attention!r} is not one of {known}")
    for part in (config.precision, config.stack):
        try:
            part.check()
        except ValueError as error:
            found.append(str(error))
    return found


def origin(config: Any, kind: str, repository: str, field: str, **more: str) -> Origin:
    """Where the files of an encoder come from, for messages.

    `kind` is what to call a network of another geometry than the published ones.
    """
    if config.geometry is not None:
        source = "in a folder that transformers saved"
        return Origin(f"{kind} of the given geometry", source, field, **more)
    source = f"hf://{repository}, or a folder that holds its files"
    return Origin(config.variant, source, field, **more)


def identity(config: Any, **more: object) -> dict:
    """What determines the states of an encoder: its class, sizes, files, precision.

    Files go by their own name or, where that says nothing, by their folder's, so that
    a folder may be moved. Speed does not count.
    """
    files = {name: _named(getattr(config, name)) for name in ("weights", "tokenizer")}
    return {
        "class": type(config).__name__,
        "geometry": dataclasses.asdict(config.sizes),
        **files,
        "precision": dataclasses.asdict(config.precision),
        **more,
    }


def _named(files: str) -> str:
    path = pathlib.PurePath(files)
    nameless = path.stem in ("model", "pytorch_model", "tokenizer", "text_encoder")
    return path.parent.name if nameless else path.name
