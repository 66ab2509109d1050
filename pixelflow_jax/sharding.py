"""Device meshes and partition rules: the only file that says PartitionSpec."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pixelflow_jax.values import AxisSize

Result = TypeVar("Result")
AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes over which a batch is split

# Tensor parallelism, as data: a regular expression on the parameter's path, and the
# axis (from the end) that is split over "tensor": the outputs of the first matrix of a
# pair, the inputs of the second, so that only the pair's result is summed over devices.
TENSOR_RULES = (
    (r"attention/qkv/kernel$", -1),
    (r"attention/(q|kv)/kernel$", -1),
    (r"attention/out/kernel$", -2),
    (r"mlp/(gate|up)/kernel$", -1),
    (r"mlp/down/kernel$", -2),
)
STACKED = r"(^|/)blocks/"  # parameters below this carry a leading layer axis


@dataclasses.dataclass(kw_only=True)
class MeshShape:
    """Devices along each axis; -1 (one axis at most) takes what the others leave.

    `data` replicates the parameters, `fsdp` splits parameters, optimizer state and EMA,
    `tensor` splits the matrices of attention and MLP. The batch is split over data x
    fsdp.
    """

    data: AxisSize = -1
    fsdp: AxisSize = 1
    tensor: AxisSize = 1

    def build(self, devices: list | None = None) -> jax.sharding.Mesh:
        """The mesh over `devices` (default: all); ValueError where it does not fit."""
        devices = jax.devices() if devices is None else devices
        sizes = [self.data, self.fsdp, self.tensor]
        if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
            raise ValueError(
                "mesh sizes must be positive, with -1 for at most one axis, not "
                f"{sizes}."
            )
        known = int(np.prod([s for s in sizes if s != -1]))
        sizes = [len(devices) // known if s == -1 else s for s in sizes]
        if int(np.prod(sizes)) != len(devices):
            raise ValueError(
                f"A mesh of data={self.data}, fsdp={self.fsdp}, tensor={self.tensor} "
                f"does not fit {len(devices)} devices: the product of the sizes must "
                f"be {len(devices)} (-1 takes what is left)."
            )
        return jax.make_mesh(
            sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
        )


def batch_shards(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH]))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """First axis over data x fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def global_batch(batch: dict, mesh: jax.sharding.Mesh) -> dict:
    """Each process's part of a batch (numpy arrays) as one array over all devices."""
    layout = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(layout, array)
        for name, array in batch.items()
    }


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(abstract: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shardings for a pytree of shapes, each leaf by its path.

    A parameter, its optimizer moments and its EMA end in the same path, so they get the
    same sharding.
    """

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = "/".join(_key(k) for k in path)
        return NamedSharding(mesh, _spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, abstract)


def place(params: dict, mesh: jax.sharding.Mesh) -> dict:
    """Arrays of the host on the mesh, each split as `state_sharding` says.

    Every process holds them whole and hands each of its devices only their part.
    """

    def one(array: np.ndarray, layout: NamedSharding) -> Array:
        part = lambda index: array[index]
        return jax.make_array_from_callback(array.shape, layout, part)

    return jax.tree.map(one, params, state_sharding(params, mesh))


def _spec(name: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
    """Tensor rule first; then the largest free axis that `fsdp` divides."""
    axes: list[str | None] = [None] * len(shape)
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    for pattern, axis in TENSOR_RULES:
        if tensor > 1 and re.search(pattern, name) and shape[axis] % tensor == 0:
            axes[axis] = "tensor"
    first = 1 if re.search(STACKED, name) else 0
    free = [i for i in range(first, len(shape)) if axes[i] is None]
    fitting = [i for i in free if shape[i] % fsdp == 0 and shape[i] >= fsdp]
    if fsdp > 1 and fitting:
        axes[max(fitting, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


def _key(entry: object) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def by_device(
    function: Callable[..., Result],
    first: Array,
    *others: Array | None,
    whole: tuple = (),
) -> Result:
    """`function(first, *others, *whole)` on each device's part of a batch.

    `first` and `others` share their first axis, which is divided over the batch axes,
    as the result is; `whole` are the same everywhere. For kernels, which the compiler
    cannot divide by itself. Outside `jax.set_mesh`, on one device, or where the batch
    does not divide, the function simply runs.
    """
    shards = _context_shards()
    split = (first, *others)
    if shards <= 1 or first.shape[0] % shards:
        return function(*split, *whole)
    batch = PartitionSpec(BATCH)
    specs = (*(batch for _ in split), *(PartitionSpec() for _ in whole))
    run = jax.shard_map(function, in_specs=specs, out_specs=batch, check_vma=False)
    return run(*split, *whole)


def _context_shards() -> int:
    """Into how many parts the mesh in use splits a batch; 0 without a mesh of ours."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(BATCH) <= set(mesh.axis_names):
        return 0
    return batch_shards(mesh)


def tensor_shards() -> int:
    """Into how many parts the mesh in use splits matrices; 1 without a mesh of ours."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else dict(mesh.shape).get("tensor", 1)


def constrain_batch(x: Array) -> Array:
    """Keep the first axis of an activation split over the batch axes.

    Does nothing outside `jax.set_mesh`, or where the batch does not divide.
    """
    shards = _context_shards()
    if not shards or x.shape[0] % shards:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH))
