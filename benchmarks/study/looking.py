"""What two networks see in images, in one program: the study's judges.

EfficientNet-Lite0 sees an image as the project's evaluator shows it, enlarged as Pillow
enlarges, but on the device: on the host that took longer than all drawing. The trunk of
ST-LPIPS is the second judge, for runs that were taught by the first.
"""

import dataclasses
import functools
import pathlib
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.teachers import efficientnet
from pixelflow_jax.teachers.resize import bicubic
from pixelflow_jax.teachers.stlpips import StLpipsNet

EXACT = Precision(compute="float32", matmul="highest")


class Seen(NamedTuple):
    """Features of images: of EfficientNet-Lite0 [n, 1280], of ST-LPIPS [n, 256]."""

    lite0: np.ndarray
    st: np.ndarray

    @classmethod
    def together(cls, parts: list["Seen"]) -> "Seen":
        """The images of all parts."""
        return cls(*(np.concatenate(one) for one in zip(*parts, strict=True)))

    def save(self, path: pathlib.Path) -> None:
        """Write both."""
        np.savez(path, **self._asdict())

    @classmethod
    def load(cls, path: pathlib.Path) -> "Seen":
        """What `save` wrote."""
        with np.load(path) as arrays:
            return cls(*(arrays[name] for name in cls._fields))


def enlarged(images: Array, size: int) -> Array:
    """Images uint8 [n, h, w, 3] at size x size, float32 in 0..255, as Pillow does.

    It goes over rows first, and rounds to 8 bits after each axis.
    """
    _, height, width, _ = images.shape
    whole = lambda x: jnp.clip(jnp.floor(x + 0.5), 0, 255)
    exact = jax.lax.Precision.HIGHEST
    rows, columns = (bicubic(n, size, antialias=True) for n in (height, width))
    x = images.astype(jnp.float32)
    x = whole(jnp.einsum("Ww,nhwc->nhWc", columns, x, precision=exact))
    return whole(jnp.einsum("Hh,nhwc->nHwc", rows, x, precision=exact))


@dataclasses.dataclass(frozen=True)
class Looker:
    """Looks at images of one `size`, `batch` at a time; compiled when first asked.

    `lite0` and `stlpips` name weight files ("": those of the installed packages).
    """

    size: int
    batch: int
    lite0: str = ""
    stlpips: str = ""

    def __call__(self, images: np.ndarray) -> Seen:
        """What is seen in images uint8 [n, size, size, 3]."""
        program, parts = self.compile(), []
        for start in range(0, len(images), self.batch):
            own = images[start : start + self.batch]
            blank = np.zeros((self.batch - len(own), *own.shape[1:]), np.uint8)
            out = program(self._params, np.concatenate([own, blank]))
            parts.append(Seen(*(np.asarray(a)[: len(own)] for a in out)))
        return Seen.together(parts)

    def compile(self) -> jax.stages.Compiled:
        """The program, compiled once."""
        with self._lock:
            return self._program

    @functools.cached_property
    def _program(self) -> jax.stages.Compiled:
        shape = (self.batch, self.size, self.size, 3)
        images = jax.ShapeDtypeStruct(shape, np.uint8)
        return jax.jit(look).lower(self._params, images).compile()

    @functools.cached_property
    def _params(self) -> tuple[dict, dict]:
        st = StLpipsNet(weights=self.stlpips, precision=EXACT)
        return jax.device_put((efficientnet.load_weights(self.lite0), st.load()))

    @functools.cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()


def look(params: tuple[dict, dict], images: Array) -> tuple[Array, Array]:
    """Both networks' features of images uint8 [n, h, w, 3]."""
    lite0, st = params
    seen = efficientnet.features(lite0, enlarged(images, efficientnet.SIZE))
    signed = images.astype(jnp.float32) / 127.5 - 1
    last = StLpipsNet(precision=EXACT).features(st, signed)[-1]
    return seen, last.mean((1, 2))
