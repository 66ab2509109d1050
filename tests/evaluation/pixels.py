"""A feature network without weights, for tests of what is around the real ones."""

import numpy as np

from pixelflow_jax.evaluation.features import FEATURES, LOGITS, SPATIAL


class Pixels:
    """Features of an image: a fixed projection of its pixels; an `Extractor`."""

    file_sha256 = "f" * 64
    weights_digest = "d" * 64
    facts = {"network": "pixels"}

    def __init__(self, name: str = "lite0", width: int = 6):
        self.name, self.calls = name, 0
        self.widths = {FEATURES: width}
        if name == "inception":
            self.widths |= {SPATIAL: width, LOGITS: width}

    def extract(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.calls += 1
        flat = images.reshape(len(images), np.prod(images.shape[1:])) / 255
        out = {}
        for seed, (name, width) in enumerate(self.widths.items()):
            rng = np.random.default_rng(seed)
            kernel = rng.normal(size=(flat.shape[1], width)) / flat.shape[1] ** 0.5
            out[name] = np.tanh(3 * flat @ kernel).astype(np.float32)
        return out
