"""Batches of several shapes: each image goes where least of it is cut off."""

import dataclasses

import numpy as np

from pixelflow_jax.values import Pixels, Ratio, field_problems


@dataclasses.dataclass(kw_only=True)
class Buckets:
    """The shapes that batches may have, as (height, width).

    Empty `sizes` stand for all shapes whose sides are multiples of `multiple`, whose
    area is as near as possible to that of a square of `image_size` without exceeding
    it, and whose longer side is at most `max_ratio` times the shorter.
    """

    sizes: tuple[tuple[Pixels, Pixels], ...] = ()
    multiple: Pixels = 16
    max_ratio: Ratio = 2.0

    def shapes(self, image_size: int) -> tuple[tuple[int, int], ...]:
        """The shapes, in a fixed order."""
        if self.sizes:
            return self.sizes
        step, area = self.multiple, image_size**2
        shapes = []
        for height in range(step, int(image_size * self.max_ratio) + step, step):
            width = area // height // step * step
            ratio = max(height, width) / max(1, min(height, width))
            if width and ratio <= self.max_ratio:
                shapes.append((height, width))
        return tuple(shapes)

    def assign(self, sizes: np.ndarray, image_size: int) -> np.ndarray:
        """The number of each image's shape, int [n]; `sizes` are [n, 2].

        The one whose aspect is nearest, by ratio; among equal ones the nearest area.
        """
        shapes = np.array(self.shapes(image_size), np.float64)
        different, number = np.unique(sizes, axis=0, return_inverse=True)
        heights, widths = np.log(different.astype(np.float64)).T[:, :, None]
        tall, wide = np.log(shapes).T
        aspect = np.abs((heights - widths) - (tall - wide))
        area = np.abs((heights + widths) - (tall + wide))
        # Rounded, so that equal aspects are equal; areas decide between those alone.
        nearest = np.lexsort((area, aspect.round(9)), axis=1)[:, 0]
        return nearest[number.reshape(-1)]

    def problems(self, image_size: int) -> list[str]:
        """What is wrong with these fields."""
        if wrong := field_problems(self, "data.buckets"):
            return wrong
        if any(len(size) != 2 for size in self.sizes):
            return [f"data.buckets.sizes={self.sizes} must hold pairs (height, width)"]
        if len(set(self.sizes)) < len(self.sizes):
            return [f"data.buckets.sizes={self.sizes} names a shape twice"]
        if not self.shapes(image_size):
            return [
                f"data.buckets holds no shape: multiple={self.multiple} is too large "
                f"for image_size={image_size}"
            ]
        return []
