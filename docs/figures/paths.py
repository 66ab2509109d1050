"""An emoji on PixelFlow's path: a row a stage, from the stage's start to its end."""

import jax
import numpy as np
import panel

from pixelflow_jax.flow.path import Pyramid, block_noise

SIZE, TIMES = 128, (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    """Draw pixelflow.png."""
    image = panel.drawing("red apple", SIZE)[None]
    rows = []
    for number, stage in enumerate(Pyramid(num_stages=3).stages()):
        shape = (1, *stage.size(SIZE, SIZE), 3)
        noise = jax.random.normal(jax.random.key(number), shape)
        noise = block_noise(noise, stage.gamma) if stage.gamma else noise
        points = [stage.draw(image, noise, np.array([t])) for t in TIMES]
        rows.append([np.asarray(point.x_t[0]) for point in points])
    panel.save(rows, "pixelflow.png", colours=128)


if __name__ == "__main__":
    main()
