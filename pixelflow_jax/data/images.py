"""Pictures out: 8-bit conversion, grids, PNG files and animations."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.errors import DataError

Format = Literal["png", "jpeg", "webp"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
HOLD_MS = 1500  # the last frame is what one wants to look at
WHITE = 255
LINES = 5  # of a caption under its image


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to the nearest of 0..255, any shape; values outside are clipped."""
    scaled = (np.asarray(images, np.float32) + 1) * 127.5 + 0.5
    return np.floor(np.clip(scaled, 0, 255)).astype(np.uint8)


def grid(
    images: np.ndarray,
    columns: int,
    row_labels: Sequence[str] | None = None,
    pad: int = 2,
    scale: int = 1,
) -> np.ndarray:
    """Lays images out row by row on white; uint8 [height, width, 3].

    `images` is uint8 [n, h, w, 3]; each is enlarged `scale` times (nearest, so that
    pixels stay visible) with `pad` pixels around it. `row_labels` are written to the
    left of the rows. Raises DataError where the shapes do not fit.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise DataError(
            f"grid takes uint8 images [n, h, w, 3], not {images.dtype} "
            f"{list(images.shape)}: convert them with to_uint8."
        )
    if columns < 1 or not len(images):
        raise DataError("grid needs at least one image and one column.")
    images = images.repeat(scale, 1).repeat(scale, 2)
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    if row_labels is not None and len(row_labels) != rows:
        raise DataError(f"grid has {rows} rows but {len(row_labels)} row_labels.")
    cell_height, cell_width = height + pad, width + pad
    shape = (rows * cell_height + pad, columns * cell_width + pad, 3)
    canvas = np.full(shape, WHITE, np.uint8)
    for number, image in enumerate(images):
        top = pad + number // columns * cell_height
        left = pad + number % columns * cell_width
        canvas[top : top + height, left : left + width] = image
    if row_labels is None:
        return canvas
    return np.concatenate([_label_column(row_labels, cell_height, pad), canvas], 1)


def captioned_grid(
    images: np.ndarray, captions: Sequence[str], columns: int, scale: int = 1
) -> np.ndarray:
    """Images uint8 [n, h, w, 3] row by row, each above its caption; uint8 [h, w, 3].

    Each is enlarged `scale` times; long captions are wrapped and cut after LINES lines.
    """
    images = images.repeat(scale, 1).repeat(scale, 2)
    font = ImageFont.load_default(size=11)
    pad, line = 4, 14
    wide = max(images.shape[2], 110)
    wrapped = [_wrapped(text, font, wide) for text in captions]
    tall = images.shape[1] + max(map(len, wrapped)) * line + 2
    rows = -(-len(images) // columns)
    size = (columns * (wide + pad) + pad, rows * (tall + pad) + pad)
    canvas = Image.new("RGB", size, (WHITE,) * 3)
    draw = ImageDraw.Draw(canvas)
    for number, (image, lines) in enumerate(zip(images, wrapped, strict=True)):
        left = pad + number % columns * (wide + pad)
        top = pad + number // columns * (tall + pad)
        canvas.paste(Image.fromarray(image), (left + (wide - image.shape[1]) // 2, top))
        for row, text in enumerate(lines):
            place = (left, top + image.shape[0] + 1 + row * line)
            draw.text(place, text, fill=(0, 0, 0), font=font)
    return np.asarray(canvas)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Lines that are at most `width` pixels wide, unless a word is wider."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return (
        lines
        if len(lines) <= LINES
        else [*lines[: LINES - 1], f"{lines[LINES - 1]} ..."]
    )


def encode_image(image: np.ndarray, format: Format, quality: int) -> bytes:
    """uint8 [h, w, 3] as a file; WebP of quality 100 is lossless, PNG always."""
    options: dict[Format, dict[str, int]] = {
        "png": {"optimize": False},
        "jpeg": {"quality": quality, "subsampling": 0},
        "webp": {"quality": quality, "lossless": quality == 100},
    }
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=format.upper(), **options[format])
    return file.getvalue()


def save_png(path: str | Path, array: np.ndarray) -> None:
    """Writes uint8 [h, w, 3] as PNG; a reader never sees half a file."""
    _save_atomically(Path(path), Image.fromarray(array), format="PNG")


def save_animation(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Writes uint8 [t, h, w, 3] as a looping GIF, WebP or PNG, by the suffix.

    The last frame is held for a second and a half. Raises DataError on another suffix
    or without frames.
    """
    path = Path(path)
    if path.suffix.lower() not in ANIMATIONS:
        raise DataError(
            f"{path.name}: an animation is saved as one of {', '.join(ANIMATIONS)}."
        )
    if not len(frames) or fps <= 0:
        raise DataError("An animation needs at least one frame and fps above 0.")
    first, *rest = [Image.fromarray(frame) for frame in frames]
    options = {
        "format": ANIMATIONS[path.suffix.lower()],
        "save_all": True,
        "append_images": rest,
        "duration": [round(1000 / fps)] * len(rest) + [HOLD_MS],
        "loop": 0,
    }
    if options["format"] == "WEBP":
        options["lossless"] = True
    _save_atomically(path, first, **options)


def _label_column(labels: Sequence[str], cell_height: int, pad: int) -> np.ndarray:
    """Labels right-aligned beside their rows; uint8 [rows * cell + pad, width, 3]."""
    font = ImageFont.load_default(size=max(10, min(16, cell_height // 3)))
    width = round(max(font.getlength(label) for label in labels)) + 8
    size = (width, len(labels) * cell_height + pad)
    column = Image.new("RGB", size, (WHITE,) * 3)
    draw = ImageDraw.Draw(column)
    for row, label in enumerate(labels):
        middle = (width - 4, pad / 2 + (row + 0.5) * cell_height)
        draw.text(middle, label, fill=(0, 0, 0), font=font, anchor="rm")
    return np.asarray(column)


def _save_atomically(path: Path, image: Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without waiting for the disk: there may be thousands, and they can be drawn again.
    with atomic_write(path, sync=False) as partial:
        image.save(partial, **options)
