"""What a call of a pipeline returns: an array of images that knows its origin."""

import base64
import dataclasses
import html
import io
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.data.images import (
    captioned_grid,
    grid,
    save_animation,
    save_png,
    to_uint8,
)
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.pretrained.requests import path_of
from pixelflow_jax.sampling.batches import Generated
from pixelflow_jax.sampling.output import file_name, picture_scale, stage_strip

COLUMNS = 8  # of a grid, unless told
SHOWN = 64  # images in a notebook's view
LISTED = 80  # characters of names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of drawn images besides their pixels.

    `names` says what each is of, a class or a prompt; `seeds` and `numbers` [n] decide
    its noise; `settings` are those of the sampling, as JSON.
    """

    names: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


class Trajectory:
    """The clean images that the network saw at every step, and then the result.

    `frames` is uint8 [steps + 1, n, h, w, 3].
    """

    def __init__(self, frames: np.ndarray):
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        return f"Trajectory({len(self)} frames of {self.frames.shape[1]} images)"

    def grids(self, columns: int = 0) -> np.ndarray:
        """Each frame as one picture, uint8 [steps + 1, height, width, 3]."""
        columns = columns or _columns(self.frames.shape[1])
        scale = picture_scale(self.frames.shape[2:])
        return np.stack([grid(one, columns, scale=scale) for one in self.frames])

    def save(self, path: str | pathlib.Path, fps: float = 10, columns: int = 0) -> None:
        """Write the frames as a looping .gif, .webp or .png, all images in a grid.

        Raises DataError on another suffix.
        """
        save_animation(path_of("path", path), self.grids(columns), fps)

    def _repr_html_(self) -> str:
        file = io.BytesIO()
        first, *rest = map(Image.fromarray, self.grids())
        first.save(file, "GIF", save_all=True, append_images=rest, duration=100, loop=0)
        return _picture(file.getvalue(), "gif")


class Images(np.ndarray):
    """Drawn images: uint8 [n, height, width, 3], with what belongs to them.

    All that numpy does with an array it does with this one; parts of it, and what is
    computed from it, are plain arrays.

        result = pipeline(["flags", "animals"], seed=1, record=True)
        result.pil[0].save("flag.png")
        result.grid().show()
        result.trajectory.save("out_of_the_noise.gif")
        result.save("folder")
    """

    _stages: tuple[np.ndarray, ...] = ()
    _clean: np.ndarray | None = None
    facts: Facts = Facts()

    @classmethod
    def of(cls, drawn: Generated, facts: Facts) -> "Images":
        """What was drawn, as 8-bit images."""
        images = to_uint8(drawn.images).view(cls)
        images._stages = tuple(map(to_uint8, drawn.stages))
        images._clean = None if drawn.clean is None else to_uint8(drawn.clean)
        images.facts = facts
        return images

    def __getitem__(self, key: Any) -> Any:
        return self.images[key]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.images)

    def __repr__(self) -> str:
        if self.ndim != 4:
            return repr(self.images)
        names = ", ".join(dict.fromkeys(map(str, self.names)))
        more = "..." if len(names) > LISTED else ""
        size = f"{len(self)} of {self.shape[1]} x {self.shape[2]}"
        return f"Images({size}{': ' * bool(names)}{names[:LISTED]}{more})"

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any
    ) -> Any:
        plain = [np.asarray(a) if isinstance(a, Images) else a for a in inputs]
        if "out" in kwargs:
            out = kwargs["out"]
            kwargs["out"] = tuple(
                a.view(np.ndarray) if isinstance(a, Images) else a for a in out
            )
        return getattr(ufunc, method)(*plain, **kwargs)

    @property
    def images(self) -> np.ndarray:
        """The same as a plain array, uint8 [n, height, width, 3]."""
        return self.view(np.ndarray)

    @property
    def pil(self) -> list[Image.Image]:
        """The images as a list of PIL's."""
        return [Image.fromarray(one) for one in self.images]

    @property
    def names(self) -> tuple[str, ...]:
        """What each image is of: the name of its class, or its prompt."""
        return self.facts.names

    @property
    def stages(self) -> tuple[np.ndarray, ...]:
        """The states at the end of each stage of the path, at its own size.

        uint8 [n, h_k, w_k, 3] each: one for a model of one stage, four for PixelFlow.
        """
        return self._stages

    @property
    def trajectory(self) -> Trajectory:
        """How they came out of the noise; PipelineError unless drawn with record."""
        if self._clean is None:
            raise PipelineError(
                "The way of these images out of the noise was not kept: draw them with "
                "record=True, as in pipeline(WHAT, record=True).trajectory."
            )
        return Trajectory(np.concatenate([self._clean, self.images[None]]))

    def grid(self, columns: int = 0, captions: bool = False) -> Image.Image:
        """All images in one picture, row by row (0: as many columns as look well).

        Small images are enlarged. `captions` writes below each what it is of.
        """
        if captions and len(self.names) == len(self):
            return Image.fromarray(self._captioned(columns or _columns(len(self))))
        return Image.fromarray(_grid(self.images, columns))

    def stage_strip(self) -> Image.Image:
        """A row for each image: its state at the end of each stage, equally large."""
        return Image.fromarray(stage_strip(self.stages))

    def save(self, folder: str | pathlib.Path) -> dict[str, pathlib.Path]:
        """Write a PNG an image, `grid.png` and `samples.json`; returns the paths.

        And `stages.png` for a cascade, `trajectory.gif` where it was recorded. Files of
        these names are replaced. Raises PipelineError where the folder cannot be
        written to.
        """
        path = path_of("folder", folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            return self._write(path)
        except OSError as error:
            raise PipelineError(
                f"{path} cannot be written ({error}): name a folder that this user may "
                "write to, on a disk with room."
            ) from error

    def _write(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        files = [file_name(n, name) for n, name in enumerate(self._labels())]
        for file, image in zip(files, self.images, strict=True):
            save_png(folder / file, image)
        paths = {"images": folder, "grid": folder / "grid.png"}
        save_png(paths["grid"], _grid(self.images, 0))
        if len(self.stages) > 1:
            paths["stages"] = folder / "stages.png"
            save_png(paths["stages"], stage_strip(self.stages))
        if self._clean is not None:
            paths["trajectory"] = folder / "trajectory.gif"
            self.trajectory.save(paths["trajectory"])
        paths["json"] = folder / "samples.json"
        with atomic_write(paths["json"]) as partial:
            whole = {"images": self._listed(files), "settings": self.facts.settings}
            partial.write_text(json.dumps(whole, indent=1, ensure_ascii=False), "utf-8")
        return paths

    def _listed(self, files: Sequence[str]) -> list[dict[str, Any]]:
        facts = self.facts
        columns = {"name": facts.names, "seed": facts.seeds, "number": facts.numbers}
        return [
            {"file": file} | {k: v[i] for k, v in columns.items() if v}
            for i, file in enumerate(files)
        ]

    def _labels(self) -> Sequence[str]:
        return self.names or [""] * len(self)

    def _captioned(self, columns: int) -> np.ndarray:
        scale = picture_scale(self.shape[1:])
        return captioned_grid(self.images, self.names, columns, scale)

    def _repr_html_(self) -> str:
        if self.ndim != 4 or not len(self):
            return f"<pre>{html.escape(repr(self))}</pre>"
        some = self.images[:SHOWN]
        file = io.BytesIO()
        Image.fromarray(_grid(some, 0)).save(file, "PNG")
        left = len(self) - len(some)
        names = ", ".join(dict.fromkeys(map(str, self.names[: len(some)])))
        words = f"{len(self)} images of {self.shape[1]} x {self.shape[2]}: {names}"
        more = f" (and {left:,} more)" if left else ""
        return (
            f"{_picture(file.getvalue(), 'png')}<p>{html.escape(words[:300])}{more}</p>"
        )


def _grid(images: np.ndarray, columns: int) -> np.ndarray:
    columns = columns or _columns(len(images))
    return grid(images, columns, scale=picture_scale(images.shape[1:]))


def _columns(count: int) -> int:
    """How many columns look well: a row, or about a square."""
    return count if count <= COLUMNS else min(COLUMNS * 2, math.ceil(math.sqrt(count)))


def picture_of(images: np.ndarray) -> str:
    """Images uint8 [n, h, w, 3] as HTML: one picture inside it."""
    file = io.BytesIO()
    Image.fromarray(_grid(images[:SHOWN], 0)).save(file, "PNG")
    return _picture(file.getvalue(), "png")


def _picture(content: bytes, kind: str) -> str:
    """A file as HTML that holds it."""
    text = base64.b64encode(content).decode()
    return f'<img src="data:image/{kind};base64,{text}" style="max-width: 100%">'
