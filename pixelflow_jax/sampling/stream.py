"""A set of images as one value that says all of it, drawn batch by batch.

`Draw` holds everything that decides the images, and has a digest; `Stream` draws them
without keeping them. What writes them to disk is in `sampling.spool`.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pixelflow_jax.data.images import to_uint8
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.sampling.batches import Generated, Generator, Request, Weights

DIGEST = 12  # characters of a digest in a folder's name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """All that decides a set of images, to the last bit on one kind of device.

    `weights` is the digest of every array that the program is given
    (`weights_digest`); `request` the labels or tokens, the seed and the first number;
    `names` says what each image is of, a class or a prompt; `settings` are the parts of
    the config that a program is built from, as JSON, with the image's "height" and
    "width"; `per_device` is the fixed batch of each device, and `platform` its kind.
    How many devices and processes draw, and where they stopped in between, decides
    nothing and is not here.
    """

    weights: str
    request: Request
    names: tuple[str, ...]
    settings: dict[str, Any]
    per_device: int
    platform: str

    @property
    def count(self) -> int:
        """How many images the set has."""
        return self.request.count

    def facts(self) -> dict[str, Any]:
        """What decides the set, as JSON; arrays by their digest."""
        given, names = self.request.given, "\n".join(self.names)
        seeds = self.request.seeds
        return {
            "weights": self.weights,
            "count": self.count,
            "first": self.request.first,
            "seed": self.request.seed,
            **({} if seeds is None else {"seeds": array_digest(seeds)}),
            "record": self.request.record,
            "given": {name: array_digest(given[name]) for name in sorted(given)},
            "names": hashlib.sha256(names.encode()).hexdigest(),
            "batch_per_device": self.per_device,
            "platform": self.platform,
            "settings": self.settings,
        }

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the facts: two sets of the same digest are the same set."""
        return hashlib.sha256(_json(self.facts()).encode()).hexdigest()

    def folder(self, words: str) -> str:
        """A folder's name: some words for people, and the digest's beginning."""
        return f"{words}-{self.digest[:DIGEST]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """Draws the images of `draw` with `generator` from `weights`, keeping none."""

    draw: Draw
    generator: Generator
    weights: Weights

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (*self.generator.size, self.generator.model.channels)

    def __call__(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (place, images uint8 [b, h, w, 3]) from place `start` of the set on.

        Image number `draw.request.first + place` is the first of a batch. Raises
        PipelineError for an image that is not finite.
        """
        for place, drawn in self.recorded(start):
            yield place, to_uint8(drawn.images)

    def recorded(self, start: int = 0) -> Iterator[tuple[int, Generated]]:
        """The same in float32, with the way there where it is recorded."""
        draw = self.draw
        batches = self.generator.iterate(
            self.weights, draw.request, per_device=draw.per_device, start=start
        )
        for place, drawn in batches:
            check_finite(drawn.images, draw.request.first + place)
            yield place, drawn


def weights_digest(weights: Weights) -> str:
    """SHA-256 of all parameters with their paths, shapes and types, hex."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(array_digest(_whole(leaf)).encode())
    return total.hexdigest()


def array_digest(array: np.ndarray | Sequence) -> str:
    """SHA-256 of an array's shape, type and content, hex."""
    array = np.ascontiguousarray(array)
    total = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _whole(leaf: Any) -> np.ndarray:
    """An array on the host, also where other processes hold parts of it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        leaf = leaf.addressable_data(0)
    return np.asarray(leaf)


def check_finite(images: np.ndarray, first: int) -> None:
    """Raises PipelineError for an image of [n, h, w, c], numbered from `first` on."""
    finite = np.isfinite(images).all((1, 2, 3))
    if not finite.all():
        raise PipelineError(
            f"Image number {first + int(np.argmin(finite))} holds NaN or infinity: the "
            "weights have diverged or the sampling settings are extreme. Take an "
            "earlier checkpoint, a lower --guidance, or more --sample_steps."
        )


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
