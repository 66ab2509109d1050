"""Loss terms that look through frozen networks: REPA, LPIPS and P-DINO."""

import dataclasses
from typing import ClassVar, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.losses.adapter import MaskedAdapter
from pixelflow_jax.losses.context import Context, Role, Term, weight_problems
from pixelflow_jax.losses.points import split_round_robin
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.nn.layers import torch_default, torch_default_bias
from pixelflow_jax.teachers.suite import RequiredFeatures, Teachers
from pixelflow_jax.values import Layer, NonNegative, OptionalWidth, Pixels, Share

LAST = -1  # the teacher's last block
Grid = Literal["truncate", "resize", "pool"]
Gate = Literal["official", "paper"]


@dataclasses.dataclass(kw_only=True)
class Repa(Term):
    """Alignment of the model's features with DINOv2's of the image (Yu et al. 2025).

    Three linear layers with SiLU between (`hidden` wide; 0: as wide as the model) map
    the tokens behind block `model.feature_layer` to the teacher's width; the value is
    1 - cosine, meant over tokens. `teacher_layer` is the DINOv2 block, counted from the
    end if negative. The official code cuts the model's tokens off at the teacher's
    number, which is harmless where both grids agree (a patch of 16): grid="truncate".
    grid="resize" resamples them to the teacher's grid, as cascades and other patches
    need; grid="pool" resamples what the projector gives, by means where the teacher's
    grid is coarser (PixelDiT2). A `projector` takes the linear layers' place
    (PixelREPA; see `adapter`).
    """

    weight: NonNegative = 0.5
    hidden: OptionalWidth = 0
    teacher_layer: Layer = LAST
    grid: Grid = "truncate"
    projector: MaskedAdapter | None = None

    def __call__(self, context: Context) -> Array:
        """1 - cosine for every image, float32 [b]."""
        features, points = context.output.features, context.points
        targets = context.targets.full[self.teacher_layer]
        adapted = self._adapted(context) if self.projector else (None,) * len(points)
        values = []
        for tokens, target, point, own in zip(
            features,
            split_round_robin(targets, len(points)),
            points,
            adapted,
            strict=True,
        ):
            size, count = point.x_t.shape, target.shape[1]
            if own is None and self.grid != "pool":
                tokens = on_grid(tokens, size, count, self.grid)
            if own is None:
                own = project(context.projectors["Repa"], tokens)
            projected = on_grid(own, size, count, self.grid)
            values.append(1 - cosine(projected, target).mean(-1))
        return jnp.concatenate(values)

    def _adapted(self, context: Context) -> tuple[Array, ...]:
        """What the projector makes of the tokens of every stage."""
        assert self.projector is not None
        params = context.projectors["Repa"]
        parts = zip(
            context.output.features, context.batch, context.keys_of(self), strict=True
        )
        return tuple(self.projector(params, *part) for part in parts)

    def required_features(self) -> RequiredFeatures:
        """One layer of the real images at full size."""
        return RequiredFeatures(full=(self.teacher_layer,))

    def init_projector(
        self, key: Array, model: DenoiserConfig, teachers: Teachers
    ) -> dict:
        """The linear layers, with PyTorch's default initialisation, or the adapter."""
        if self.projector:
            return self.projector.init(key, model, teachers.dino.width)
        hidden = self.hidden or model.width
        widths = (model.width, hidden, hidden, teachers.dino.width)
        layers = {}
        for index, own in enumerate(jax.random.split(key, len(widths) - 1)):
            kernel_key, bias_key = jax.random.split(own)
            shape = widths[index], widths[index + 1]
            layers[f"linear{index}"] = {
                "kernel": torch_default(kernel_key, shape, jnp.float32),
                "bias": torch_default_bias(shape[0])(bias_key, shape[1:]),
            }
        return layers

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        messages = weight_problems(self)
        if self.grid not in get_args(Grid):
            messages.append(
                f"Repa.grid must be one of {get_args(Grid)}, not {self.grid!r}"
            )
        if self.hidden < 0:
            messages.append(f"Repa.hidden={self.hidden} must not be negative")
        return messages


def on_grid(tokens: Array, image: tuple[int, ...], count: int, grid: Grid) -> Array:
    """Tokens [b, n, d] of images [b, h, w, c], given by shape, as [b, count, d]."""
    b, n, d = tokens.shape
    if n == count:
        return tokens
    if grid == "truncate" and n > count:
        return tokens[:, :count]
    if grid == "truncate":
        raise ValueError(
            f"REPA: the teacher has {count} tokens and the model {n}: set the "
            'term\'s grid="resize".'
        )
    _, height, width, _ = image
    rows, wanted = (round((m * height / width) ** 0.5) for m in (n, count))
    square = tokens.reshape(b, rows, n // rows, d).astype(jnp.float32)
    shape = (b, wanted, count // wanted, d)
    if grid == "resize" or count > n:
        return jax.image.resize(square, shape, "linear").reshape(b, count, d)
    down, across = _means(rows, wanted), _means(n // rows, count // wanted)
    return jnp.einsum("Rr,Cc,brcd->bRCd", down, across, square).reshape(b, count, d)


def _means(inputs: int, outputs: int) -> np.ndarray:
    """The matrix [outputs, inputs] of PyTorch's adaptive average pooling."""
    place, cell = np.arange(inputs), np.arange(outputs)[:, None]
    first = cell * inputs // outputs
    end = -(-(cell + 1) * inputs // outputs)
    inside = (place >= first) & (place < end)
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def project(layers: dict, tokens: Array) -> Array:
    """Linear, SiLU, Linear, SiLU, Linear on [..., width], in the tokens' type.

    Returns float32 [..., features].
    """
    last = len(layers) - 1
    for index in range(len(layers)):
        layer = layers[f"linear{index}"]
        kernel = layer["kernel"].astype(tokens.dtype)
        tokens = tokens @ kernel + layer["bias"].astype(tokens.dtype)
        tokens = jax.nn.silu(tokens) if index < last else tokens
    return tokens.astype(jnp.float32)


def cosine(a: Array, b: Array) -> Array:
    """Cosine over the last axis, norms not below 1e-8; float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    scale = jnp.maximum(_length(a), 1e-8) * jnp.maximum(_length(b), 1e-8)
    return jnp.sum(a * b, -1) / scale


def _length(a: Array) -> Array:
    # The root's gradient at 0 is not finite; a length that small counts as 1e-8 anyway.
    return jnp.sqrt(jnp.maximum(jnp.sum(a * a, -1), 1e-16))


@dataclasses.dataclass(kw_only=True)
class Lpips(Term):
    """LPIPS between the predicted and the real clean image (Zhang et al. 2018).

    Images whose point holds less than the share `threshold` of data are left out of
    the mean (PixelGen's noise gating; 0 lets all in). Both images are first resized by
    16 / `patch`, as PixelGen does for patches other than 16. Stages of a cascade are
    compared at their own size.
    """

    weight: NonNegative = 0.1
    threshold: Share = 0.0
    patch: Pixels = 16
    role: ClassVar[Role] = "perceptual"

    def __call__(self, context: Context) -> Array:
        """The distance of every image, scaled so that their mean is the gated mean."""
        lpips, params = context.teachers.lpips, context.frozen_params["lpips"]
        values = []
        for clean, point in zip(context.clean(), context.points, strict=True):
            pair = self._resized(clean), self._resized(point.clean)
            values.append(lpips.distance(params, *pair))
        return gated(jnp.concatenate(values), context, self.threshold)

    def _resized(self, images: Array) -> Array:
        return for_patch(images, self.patch)

    def required_features(self) -> RequiredFeatures:
        """The LPIPS network."""
        return RequiredFeatures(lpips=True)

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        messages = [*weight_problems(self), *threshold_problems(self)]
        if self.patch < 1:
            messages.append(f"Lpips.patch={self.patch} must be at least 1")
        return messages


@dataclasses.dataclass(kw_only=True)
class PDino(Term):
    """1 - cosine between DINOv2's tokens of the predicted and the real clean image.

    The mean over tokens and over `layers` (numbers of blocks, counted from 0, or from
    the end if negative), each behind the teacher's final norm. PixelGen's paper leaves
    images with less than the share `threshold` of data out, which is gate="paper". Its
    code's mask lies across the wrong axis: every image counts, unless all of the batch
    are masked, when the value is 1 and without gradient: gate="official", the default,
    so that published recipes reproduce.
    """

    weight: NonNegative = 0.01
    layers: tuple[Layer, ...] = (LAST,)
    threshold: Share = 0.0
    gate: Gate = "official"
    role: ClassVar[Role] = "perceptual"

    def __call__(self, context: Context) -> Array:
        """The distance of every image, float32 [b]."""
        dino, params = context.teachers.dino, context.frozen_params["dino"]
        values = []
        for clean, targets in zip(context.clean(), context.targets.staged, strict=True):
            features = dino.features(params, clean, self.layers)
            cosines = [
                cosine(tokens, targets[layer]).mean(-1)
                for layer, tokens in features.items()
            ]
            values.append(1 - sum(cosines, jnp.zeros(())) / len(cosines))
        value = jnp.concatenate(values)
        if self.gate == "paper":
            return gated(value, context, self.threshold)
        if self.threshold == 0:
            return value
        any_clean = jnp.any(context.data_share() >= self.threshold)
        return jnp.where(any_clean, value, 1.0)

    def required_features(self) -> RequiredFeatures:
        """Its layers of the real images at the stages' sizes."""
        return RequiredFeatures(staged=tuple(self.layers))

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        messages = [*weight_problems(self), *threshold_problems(self)]
        if self.gate not in get_args(Gate):
            messages.append(
                f'PDino.gate must be "official" or "paper", not {self.gate!r}'
            )
        if not self.layers:
            messages.append("PDino.layers is empty: name at least one block")
        return messages


def for_patch(images: Array, patch: int) -> Array:
    """Images [b, h, w, c] resized by 16 / `patch`, as PixelGen shows them to LPIPS."""
    b, height, width, c = images.shape
    if patch == 16:
        return images
    size = (b, height * 16 // patch, width * 16 // patch, c)
    return jax.image.resize(images, size, "linear")  # smooths where it shrinks


class Gated(Protocol):
    """A term that leaves images with less than the share `threshold` of data out."""

    threshold: float


def threshold_problems(term: Gated) -> list[str]:
    """A message where a term's threshold is no share."""
    if 0 <= term.threshold <= 1:
        return []
    name = type(term).__name__
    return [f"{name}.threshold={term.threshold} must lie in [0, 1]"]


def gated(values: Array, context: Context, threshold: float) -> Array:
    """Values [b] whose plain mean is the mean over images with enough data; else 0."""
    if threshold == 0:
        return values
    inside = (context.data_share() >= threshold).astype(jnp.float32)
    return values * inside * (len(values) / jnp.maximum(inside.sum(), 1))
