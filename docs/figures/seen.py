"""What a frozen network still sees of a noisy image: the cosine of its features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import panel

from pixelflow_jax.teachers import efficientnet

COUNT, TIMES = 64, np.linspace(0, 1, 21)


def main() -> None:
    """Draw pixeldit2.svg."""
    every = panel.drawings(efficientnet.SIZE, categories=("Animals & Nature",))
    images = every[:: len(every) // COUNT][:COUNT]
    noise = np.asarray(jax.random.normal(jax.random.key(0), images.shape))
    params = efficientnet.load_weights()
    look = jax.jit(functools.partial(efficientnet.features, params))
    clean = unit(look(pixels(images)))
    own, other = [], []
    for t in TIMES:
        noisy = unit(look(pixels(t * images + (1 - t) * noise)))
        cosines = noisy @ clean.T
        own.append(np.trace(cosines) / COUNT)
        other.append((cosines.sum() - np.trace(cosines)) / COUNT / (COUNT - 1))
    figure, write = panel.plot("pixeldit2.svg", width=4.2)
    axes = figure.subplots()
    axes.plot(TIMES, own, label="with the same drawing")
    axes.plot(TIMES, other, label="with another one")
    axes.set(xlabel="t", ylabel="cosine of features", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    write()


def pixels(images: np.ndarray) -> np.ndarray:
    """Images in 0..255."""
    return (images + 1) * 127.5


def unit(features: jax.Array) -> np.ndarray:
    """Features of length 1, [n, width]."""
    return np.asarray(features / jnp.linalg.norm(features, axis=1, keepdims=True))


if __name__ == "__main__":
    main()
