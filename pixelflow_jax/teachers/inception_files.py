"""The three official files of the 2015 Inception's weights, read as one."""

import pathlib
from collections.abc import Mapping

import numpy as np

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.teachers import graphdef
from pixelflow_jax.teachers.inception_table import (
    CLASSES,
    TF_NORM,
    table,
    tensorflow_names,
)
from pixelflow_jax.tensors import mapping
from pixelflow_jax.tensors.locate import Origin, find, read
from pixelflow_jax.tensors.mapping import Tensor

EPSILON = 1e-3  # of the batch norms
NORM_OP = "BatchNormWithGlobalNormalization"
ORIGIN = Origin(
    "the 2015 Inception",
    "torch-fidelity's weights-inception-2015-12-05-6726825d.pth, pytorch-fid's "
    "pt_inception-2015-12-05-6726825d.pth, or TensorFlow's "
    "classify_image_graph_def.pb",
    "inception",
    option="--",
)
UNUSED = r".*\.num_batches_tracked"


def load(weights: str) -> dict:
    """The parameters (numpy, float32) of one of the files that `ORIGIN` lists.

    A `.safetensors` file of PyTorch's names serves as well. Raises WeightsError for an
    absent, damaged or other file; torchvision's inception_v3 is named as such.
    """
    if weights.endswith(".pb"):
        tensors: Mapping[str, Tensor] = _graph(find(weights, ORIGIN, ("*.pb",)))
    else:
        tensors = read(weights, ORIGIN)
        _refuse_torchvision(weights, tensors)
    return mapping.load(
        table(),
        tensors,
        name=f"{weights}, read as {ORIGIN.network},",
        ignored=UNUSED,
        precision=Precision(compute="float32", matmul="highest"),
    )


def _refuse_torchvision(weights: str, tensors: Mapping[str, Tensor]) -> None:
    last = tensors.get("fc.weight")
    auxiliary = any(name.startswith("AuxLogits.") for name in tensors)
    if auxiliary or (last is not None and last.shape[0] == 1000):
        classes = "no" if last is None else last.shape[0]
        raise WeightsError(
            f"{weights} is torchvision's inception_v3 ({classes} classes"
            f"{', auxiliary classifier' if auxiliary else ''}), another network than "
            f"the 2015 Inception ({CLASSES} classes) that FID is defined by: its "
            f"numbers could be compared with nobody's. {ORIGIN.remedy}"
        )


def _graph(path: pathlib.Path) -> dict[str, np.ndarray]:
    """A frozen graph's constants by PyTorch's names, in PyTorch's layouts."""
    try:
        graph = graphdef.nodes(path.read_bytes())
    except (OSError, ValueError, LookupError) as error:
        raise WeightsError(
            f"{path} cannot be read as a frozen graph of TensorFlow ({error}): is it "
            f"whole? {ORIGIN.remedy}"
        ) from error
    held = graphdef.constants(graph)
    scopes = tensorflow_names()
    wanted = [f"{scope}/conv2d_params" for scope in scopes.values()]
    wanted += [f"{s}/batchnorm/{n}" for s in scopes.values() for n in TF_NORM.values()]
    wanted += ["softmax/weights", "softmax/biases"]
    if missing := [name for name in wanted if name not in held]:
        raise WeightsError(
            f"{path} holds {len(held)} constants, but not {missing[0]} and "
            f"{len(missing) - 1} others of the 2015 Inception: it is another graph. "
            f"{ORIGIN.remedy}"
        )
    tensors = {
        "fc.weight": held["softmax/weights"].T,
        "fc.bias": held["softmax/biases"],
    }
    norms = _norms(graph, path)
    for name, scope in scopes.items():
        tensors[f"{name}.conv.weight"] = held[f"{scope}/conv2d_params"].transpose(
            3, 2, 0, 1
        )
        for ours, theirs in TF_NORM.items():
            tensors[f"{name}.bn.{ours}"] = held[f"{scope}/batchnorm/{theirs}"]
        if not norms[f"{scope}/batchnorm"]:
            gamma = tensors[f"{name}.bn.weight"]
            tensors[f"{name}.bn.weight"] = np.ones_like(gamma)
    return tensors


def _norms(graph: list[graphdef.Node], path: pathlib.Path) -> dict[str, bool]:
    """By batch norm, whether it multiplies with gamma (scale_after_normalization)."""
    scaled = {}
    for node in graph:
        if node.op != NORM_OP:
            continue
        epsilon = node.attributes.get("variance_epsilon", EPSILON)
        if not np.isclose(float(np.asarray(epsilon)), EPSILON, rtol=1e-4):
            raise WeightsError(
                f"{path}: {node.name} adds {epsilon} to variances, where the 2015 "
                f"Inception adds {EPSILON}: it is another graph. {ORIGIN.remedy}"
            )
        scaled[node.name] = bool(node.attributes.get("scale_after_normalization"))
    missing = {f"{s}/batchnorm" for s in tensorflow_names().values()} - set(scaled)
    if missing:
        raise WeightsError(
            f"{path} has no node {min(missing)} of kind {NORM_OP}, so it does not say "
            f"whether batch norms are scaled: it is another graph. {ORIGIN.remedy}"
        )
    return scaled
