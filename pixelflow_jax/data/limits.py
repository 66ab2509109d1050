"""How large an image or a caption may be."""

import dataclasses

from pixelflow_jax.data.captions import MAX_CAPTION
from pixelflow_jax.data.decoding import MAX_PIXELS, PILLOW_MAX
from pixelflow_jax.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Pixels of an image, and characters of a caption; DataError where they are absurd.

    Pillow itself refuses images of more than PILLOW_MAX pixels.
    """

    max_pixels: int = MAX_PIXELS
    max_caption: int = MAX_CAPTION

    def __post_init__(self):
        if not 1 <= self.max_pixels <= PILLOW_MAX:
            raise DataError(
                f"max_pixels is {self.max_pixels:,}: set it (--max-pixels) from 1 to "
                f"{PILLOW_MAX:,}, where Pillow ends."
            )
        if self.max_caption < 1:
            raise DataError(
                f"max_caption is {self.max_caption:,}: set it (--max-caption) to at "
                "least 1 character."
            )
