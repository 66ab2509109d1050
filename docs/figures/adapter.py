"""Which tokens PixelREPA's adapter is given: three draws of one image."""

import jax
import numpy as np
import panel

from pixelflow_jax.losses.adapter import MaskedAdapter, uniform

SIZE, PATCH = 128, 8


def main() -> None:
    """Draw pixelrepa.png."""
    image, side = panel.drawing("red apple", SIZE), SIZE // PATCH
    keys = jax.random.split(jax.random.key(1), 3)
    kept = np.asarray(uniform(keys, side**2) > MaskedAdapter().mask)
    row = [image]
    for mask in kept.reshape(-1, side, side):
        seen = panel.enlarge(mask[..., None], SIZE)
        row.append(np.where(seen, image, 0.2))
    panel.save([row], "pixelrepa.png", colours=64)


if __name__ == "__main__":
    main()
