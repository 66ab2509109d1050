"""DeCo's weights of frequencies, and an image in the heavy and in the light ones."""

import numpy as np
import panel

from pixelflow_jax.losses.frequency import BLOCK, frequency_weights

SIZE, SHARE = 128, 4  # of frequencies: one in SHARE is heavy


def main() -> None:
    """Draw deco.png."""
    weights = np.asarray(frequency_weights(85, 1.0)).reshape(3, BLOCK, BLOCK)
    shown = [tile(weights[channel]) for channel in (0, 1)]
    image = panel.drawing("red apple", SIZE)
    heavy = weights[0] >= np.quantile(weights[0], 1 - 1 / SHARE)
    coarse = filtered(image, heavy)
    panel.save([[*shown, image, coarse, image - coarse]], "deco.png", colours=128)


def tile(weights: np.ndarray) -> np.ndarray:
    """Weights [8, 8] as grey squares, the largest black, on a scale of logarithms."""
    logs = np.log(weights)
    grey = 1 - 2 * (logs - logs.min()) / (logs.max() - logs.min())
    return panel.enlarge(np.repeat(grey[..., None], 3, 2), SIZE)


def filtered(image: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The image with those frequencies of each block of 8 x 8 alone."""
    place, order = np.arange(BLOCK), np.arange(BLOCK)[:, None]
    dct = np.cos(np.pi * (place + 0.5) * order / BLOCK) * np.sqrt(2 / BLOCK)
    dct[0] /= np.sqrt(2)
    count = len(image) // BLOCK
    blocks = image.reshape(count, BLOCK, count, BLOCK, 3)
    seen = np.einsum("up,vq,rpcqk->rucvk", dct, dct, blocks) * keep[:, None, :, None]
    return np.einsum("up,vq,rucvk->rpcqk", dct, dct, seen).reshape(image.shape)


if __name__ == "__main__":
    main()
