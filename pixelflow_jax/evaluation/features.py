"""What networks see in images, for metrics: one interface, three kinds of networks.

| name | network | arrays |
|---|---|---|
| inception | InceptionV3 of 2015 | features 2048, spatial 2023, logits 1008 |
| dinov2, dinov2_b | DINOv2 ViT-L/14, ViT-B/14 | features 1024 or 768 (class token) |
| lite0 | EfficientNet-Lite0 | features 1280 |
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array
from PIL import Image

from pixelflow_jax import sharding
from pixelflow_jax.errors import EvaluationError

FEATURES, SPATIAL, LOGITS = "features", "spatial", "logits"
BATCH = 64  # images of one device, by default; on CPUs see `_default_batch`
IN_FLIGHT = 2  # batches on the device while the next one is prepared


class Extractor(Protocol):
    """A frozen network that turns images into the arrays that metrics compare."""

    @property
    def name(self) -> str:
        """What metrics and references call it: "inception", "dinov2", "lite0"."""
        ...

    @property
    def widths(self) -> dict[str, int]:
        """The arrays that `extract` returns, and how many numbers each has an image."""
        ...

    @property
    def file_sha256(self) -> str:
        """The SHA-256 of its weight file."""
        ...

    @property
    def weights_digest(self) -> str:
        """The SHA-256 of its parameters, the same whatever file they came in."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What a record of a result says of it: resize, normalisation, precision."""
        ...

    def extract(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays float32 [b, width] of images uint8 [b, h, w, 3], any number of them.

        Raises EvaluationError for what is no such array.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Network:
    """What distinguishes one extractor from another.

    `prepare` runs on the host, in threads, an image at a time (None: the network takes
    uint8); `features(params, batch)` is traced once a size of images.
    """

    name: str
    widths: dict[str, int]
    features: Callable[[dict, Array], dict[str, Array]]
    facts: dict[str, Any]
    prepare: Callable[[np.ndarray], np.ndarray] | None = None


class NetworkExtractor:
    """An `Extractor`: one program of one fixed batch, divided over this process' mesh.

    The last batch is filled up with zeros, whose features are dropped. Every process
    looks at its own images; `Accumulator.gathered` brings the results together.
    """

    def __init__(
        self,
        network: Network,
        params: dict,
        *,
        file_sha256: str,
        weights_digest: str,
        batch: int | None = None,
        devices: list | None = None,
    ):
        devices = devices or jax.local_devices()
        batch = batch or _default_batch(devices)
        mesh = sharding.MeshShape().build(devices)
        self.file_sha256, self.weights_digest = file_sha256, weights_digest
        self._network, self._split = network, sharding.batch_sharding(mesh)
        self._params = jax.device_put(params, sharding.replicated(mesh))
        self._batch = batch * sharding.batch_shards(mesh)
        self._program = jax.jit(network.features, out_shardings=self._split)

    @property
    def batch(self) -> int:
        """Images that all devices look at together."""
        return self._batch

    @property
    def name(self) -> str:
        """What metrics call the network."""
        return self._network.name

    @property
    def widths(self) -> dict[str, int]:
        """Numbers an image of each array."""
        return self._network.widths

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of the network."""
        return self._network.facts

    def extract(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays float32 [b, width] of images uint8 [b, h, w, 3]; EvaluationError."""
        check_images(images)
        running, done = collections.deque(), []
        for start in range(0, len(images), self._batch):
            running.append(self._start(images[start : start + self._batch]))
            if len(running) > IN_FLIGHT:
                done.append(_fetched(*running.popleft()))
        done += [_fetched(*one) for one in running]
        return {
            key: np.concatenate([part[key] for part in done])
            if done
            else np.zeros((0, width), np.float32)
            for key, width in self.widths.items()
        }

    def _start(self, images: np.ndarray) -> tuple[dict[str, Array], int]:
        """Set the program going on a batch; what it will return, and how many count."""
        prepared = images
        if self._network.prepare is not None:
            prepared = np.stack(list(_threads().map(self._network.prepare, images)))
        count = len(prepared)
        if count < self._batch:
            blank = np.zeros((self._batch - count, *prepared.shape[1:]), prepared.dtype)
            prepared = np.concatenate([prepared, blank])
        out = self._program(self._params, jax.device_put(prepared, self._split))
        for array in out.values():
            array.copy_to_host_async()
        return out, count


def _default_batch(devices: list) -> int:
    """Images at a time on each device; on CPUs one for every core.

    A core's caches hold what a network makes of one image, and no more; and the last
    batch, which is filled up, costs as much as the others.
    """
    if devices[0].platform != "cpu":
        return BATCH
    return max(1, (os.cpu_count() or 1) // len(devices))


def check_images(images: np.ndarray) -> None:
    """Raises EvaluationError where images are not uint8 [b, h, w, 3]."""
    if images.dtype != np.uint8:
        bad = np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all()
        found = f"{images.dtype}{' with values that are not finite' if bad else ''}"
        raise EvaluationError(
            f"Images must be uint8 in 0..255, not {found}: round them once, as "
            "round((x + 1) * 127.5) of images in [-1, 1], and store that."
        )
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise EvaluationError(
            f"Images must be RGB, uint8 [count, height, width, 3], not "
            f"{list(images.shape)}."
        )


def pil_bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """An image uint8 [h, w, 3] at size x size, whatever its aspect, as Pillow does."""
    if image.shape[:2] == (size, size):
        return image
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _fetched(out: dict[str, Array], count: int) -> dict[str, np.ndarray]:
    return {key: np.asarray(array)[:count] for key, array in out.items()}


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))
