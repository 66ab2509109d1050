"""PixNerd's coordinate features, and what the shipped model draws with them."""

import numpy as np
import panel

from pixelflow_jax import Pipeline
from pixelflow_jax.nn.field import dct_features

SIDE = 256
TILE = 77  # pixels of a feature
SHOWN = (0, 1, 8, 9, 2, 16, 18, 27, 36)  # features, of 64
STEPS = (3, 8, 14)  # of 20


def main() -> None:
    """Draw pixnerd.png."""
    table = dct_features(TILE).reshape(TILE, TILE, -1)
    scaled = table / np.abs(table).max((0, 1))
    grid = [[scaled[..., n] for n in SHOWN[r : r + 3]] for r in (0, 3, 6)]
    grey = np.concatenate(
        [np.concatenate([pad(tile) for tile in row], 1) for row in grid]
    )
    room = np.pad(grey, (0, SIDE - len(grey)), constant_values=1)
    features = np.repeat(room[..., None], 3, 2)
    pipeline = Pipeline.from_pretrained("emoji")
    drawn = pipeline.generate("Food & Drink", seed=11, record=True)
    images = [np.asarray(drawn.clean[step, 0]) for step in STEPS]
    panel.save([[features, *images]], "pixnerd.png", colours=200)


def pad(tile: np.ndarray) -> np.ndarray:
    """A tile with a white border."""
    return np.pad(tile, 4, constant_values=1)


if __name__ == "__main__":
    main()
