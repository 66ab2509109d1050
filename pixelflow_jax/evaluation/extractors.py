"""Extractors by name: which network, which file, how its images are prepared."""

import functools
import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation.features import (
    FEATURES,
    LOGITS,
    SPATIAL,
    Extractor,
    Network,
    NetworkExtractor,
    pil_bicubic,
)
from pixelflow_jax.evaluation.references import file_sha256
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.teachers import efficientnet, inception, inception_files
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.inception_table import CLASSES, WIDTH
from pixelflow_jax.tensors.paths import by_path

EXACT = Precision(compute="float32", matmul="highest")
DINO_SIZE = 224
DINO_VARIANTS = {"dinov2": "vitl14", "dinov2_b": "vitb14"}
PRODUCTS = {
    "float32": "float32, highest",
    "float16x3": "float32 by three float16 products",
}
NAMES = ("inception", *DINO_VARIANTS, "lite0")


class Opened(NamedTuple):
    """A network, its parameters (numpy), and the file that they came from."""

    network: Network
    params: dict
    file: str


def open_extractor(
    name: str,
    weights: str = "",
    *,
    batch: int | None = None,
    devices: list | None = None,
) -> NetworkExtractor:
    """The extractor of that name, its parameters on the devices.

    `weights` names its file ("" for lite0: the installed package's); `batch` is that
    of one device (None: 64, and on a CPU one image for each of its cores); `devices`
    are this process' (default: all it has). Raises
    EvaluationError for an unknown name, WeightsError for an absent, damaged or other
    file.
    """
    if name not in NAMES:
        raise EvaluationError(
            f"There is no feature network {name!r}: choose of {', '.join(NAMES)}."
        )
    devices = devices or jax.local_devices()
    opened = _open(name, weights, devices)
    return NetworkExtractor(
        opened.network,
        opened.params,
        file_sha256=_digest_of(opened.file),
        weights_digest=digest(opened.params),
        batch=batch,
        devices=devices,
    )


def open_extractors(
    names: Iterable[str], weights: Mapping[str, str], **options: Any
) -> dict[str, Extractor]:
    """Several extractors by name, each with its file of `weights`."""
    return {
        name: open_extractor(name, weights.get(name, ""), **options) for name in names
    }


def digest(params: dict) -> str:
    """The SHA-256 of parameters, by name; the same for every file that holds them."""
    sha = hashlib.sha256()
    for path, array in sorted(by_path(params).items()):
        sha.update(f"{path} {array.shape} {array.dtype}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def arithmetic_on(devices: list) -> inception.Arithmetic:
    """How Inception multiplies there: on the matrix units of NVIDIA's GPUs."""
    try:
        capable = all(float(one.compute_capability) >= 8 for one in devices)
    except (AttributeError, TypeError, ValueError):
        return "float32"
    return "float16x3" if capable else "float32"


def _open(name: str, weights: str, devices: list) -> Opened:
    if name == "inception":
        return _inception(weights, arithmetic_on(devices))
    if name == "lite0":
        return _lite0(weights)
    return _dinov2(name, weights)


def _inception(weights: str, arithmetic: inception.Arithmetic) -> Opened:
    def features(params: dict, images: Array) -> dict[str, Array]:
        out = inception.outputs(params, images, arithmetic)
        return {
            FEATURES: out.pool3,
            SPATIAL: out.spatial,
            LOGITS: out.logits_unbiased,
        }

    network = Network(
        name="inception",
        widths={FEATURES: WIDTH, SPATIAL: inception.SPATIAL_WIDTH, LOGITS: CLASSES},
        features=features,
        facts={
            "network": "InceptionV3, TensorFlow 2015, 1008 outputs",
            "resize": "TensorFlow 1 bilinear to 299 x 299, no half pixel",
            "normalisation": "(x - 128) / 128",
            "precision": PRODUCTS[arithmetic],
        },
    )
    return Opened(network, inception_files.load(weights), weights)


def _dinov2(name: str, weights: str) -> Opened:
    # 14 pixels of a prepared image are a patch: nothing is resized again.
    net = DinoV2(
        variant=DINO_VARIANTS[name], weights=weights, base_patch=14, precision=EXACT
    )
    return Opened(dino_network(name, net), net.load(name), weights)


def dino_network(name: str, net: DinoV2) -> Network:
    """DINOv2's class token of images prepared as dgm-eval prepares them."""

    def features(params: dict, images: Array) -> dict[str, Array]:
        signed = images.astype("float32") / 127.5 - 1
        return {FEATURES: net.tokens(params, signed)[-1].cls}

    return Network(
        name=name,
        widths={FEATURES: net.width},
        features=features,
        facts={
            "network": f"DINOv2 {net.variant}, class token",
            "resize": f"Pillow bicubic to {DINO_SIZE} x {DINO_SIZE}",
            "normalisation": "ImageNet mean and deviation",
            "precision": "float32, highest",
        },
        prepare=functools.partial(pil_bicubic, size=DINO_SIZE),
    )


def _lite0(weights: str) -> Opened:
    def features(params: dict, images: Array) -> dict[str, Array]:
        return {FEATURES: efficientnet.features(params, images)}

    network = Network(
        name="lite0",
        widths={FEATURES: efficientnet.WIDTH},
        features=features,
        facts={
            "network": "EfficientNet-Lite0 (its distances are no FID)",
            "resize": f"Pillow bicubic to {efficientnet.SIZE} x {efficientnet.SIZE}",
            "normalisation": "(x - 127) / 128",
            "precision": "float32, highest",
        },
        prepare=functools.partial(pil_bicubic, size=efficientnet.SIZE),
    )
    path = weights or efficientnet.packaged_weights()
    return Opened(network, efficientnet.load_weights(path), path)


def _digest_of(file: str) -> str:
    """The SHA-256 of a weight file; "" for one that is a folder or on the Hub."""
    path = pathlib.Path(file).expanduser()
    return file_sha256(path) if path.is_file() else ""
