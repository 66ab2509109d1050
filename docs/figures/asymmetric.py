"""What a network is asked for, from clean prediction (rank 0) to velocity."""

import jax
import numpy as np
import panel

from pixelflow_jax.flow.asymmetric import project
from pixelflow_jax.flow.basis import Gram

SIZE, PATCH, RANKS = 128, 8, (0, 4, 16, 64, 192)


def main() -> None:
    """Draw asymflow.png."""
    gram = Gram(PATCH)
    gram.add(panel.drawings(SIZE, categories=("Food & Drink",)))
    _, directions = gram.directions()
    image = panel.drawing("red apple", SIZE)[None]
    noise = np.asarray(jax.random.normal(jax.random.key(0), image.shape))
    row = []
    for rank in RANKS:
        basis = directions[:, directions.shape[1] - rank :].astype(np.float32)
        part = project(noise, basis, PATCH) if rank else 0 * noise
        row.append(np.asarray(image - part)[0])
    panel.save([row], "asymflow.png", colours=128)


if __name__ == "__main__":
    main()
