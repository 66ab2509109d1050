"""PixelGen over time: how often a time is drawn, what an error weighs, who is gated."""

import jax
import numpy as np
import panel

from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.time import LogitNormal

THRESHOLD = 0.3  # of data, below which perceptual terms do not look


def main() -> None:
    """Draw pixelgen.svg."""
    figure, write = panel.plot("pixelgen.svg")
    density, weight = figure.subplots(1, 2, sharex=True)
    for time, label in (
        (LogitNormal(mean=-0.8, std=0.8), "PixelGen: (-0.8, 0.8)"),
        (LogitNormal(), "PixNerd: (0, 1)"),
    ):
        times = np.asarray(time(jax.random.key(0), 2_000_000))
        height, edges = np.histogram(times, np.linspace(0, 1, 101), density=True)
        density.plot((edges[1:] + edges[:-1]) / 2, height, label=label)
    density.axvspan(0, THRESHOLD, color="0.9", label="no perceptual terms")
    density.set(xlabel="t", ylabel="density of training times", xlim=(0, 1))
    density.legend(frameon=False)
    t = np.linspace(0, 0.999, 400)
    weight.plot(t, 1 / np.maximum(1 - t, PredictClean().t_eps) ** 2)
    weight.set(xlabel="t", ylabel="weight of the clean image's error", yscale="log")
    write()


if __name__ == "__main__":
    main()
