"""Small sets of images, and a network that sees them, for tests of evaluation."""

import numpy as np

from pixelflow_jax.evaluation.extractors import digest
from pixelflow_jax.evaluation.features import (
    FEATURES,
    LOGITS,
    SPATIAL,
    Network,
    NetworkExtractor,
)

WIDTH = 6


def images(count: int = 20, height: int = 8, width: int = 8, seed: int = 0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def extractor(name: str = "inception", seed: int = 0, **options) -> NetworkExtractor:
    """A network of one matrix in an extractor's place; all of its arrays are alike."""
    params = {"kernel": np.random.default_rng(seed).normal(size=(3, WIDTH)) / 255}
    params["kernel"] = params["kernel"].astype(np.float32)

    def features(params, images):
        seen = images.astype("float32").mean((1, 2)) @ params["kernel"]
        return {FEATURES: seen, SPATIAL: seen * 2, LOGITS: seen * 3}

    widths = dict.fromkeys((FEATURES, SPATIAL, LOGITS), WIDTH)
    network = Network(name, widths, features, {"network": "a matrix"})
    options = {"batch": 2, **options}
    return NetworkExtractor(
        network, params, file_sha256="", weights_digest=digest(params), **options
    )
