"""What lies where on a mesh: the only file that says PartitionSpec."""

import functools
import re
from collections.abc import Callable
from itertools import combinations
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from pixelflow_jax.mesh import BATCH, Rules
from pixelflow_jax.mesh import MeshShape as MeshShape  # the place that others know

Result = TypeVar("Result")
STACKED = r"(^|/)blocks/"  # parameters below this carry a leading layer axis


def batch_shards(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH]))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """First axis over data x fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def batch_parts(
    mesh: jax.sharding.Mesh, process: int | None = None
) -> tuple[tuple[int, ...], int]:
    """Which parts of every batch a process (default: this one) reads, and of how many.

    A part goes to the devices of that process, and to no other process unless the
    tensor axis reaches into it. The parts are equal, ascending, and as few as can be.
    """
    process = jax.process_index() if process is None else process
    count = batch_shards(mesh)
    rows = mesh.devices.reshape(count, -1)
    parts = [i for i, row in enumerate(rows) if any(_is_of(d, process) for d in row)]
    size = len(parts)
    aligned = parts and not parts[0] % size and not count % size
    if aligned and parts == list(range(parts[0], parts[0] + size)):
        return (parts[0] // size,), count // size
    return tuple(parts), count


def _is_of(device: Any, process: int) -> bool:
    return device.process_index == process


def global_batch(batch: dict, mesh: jax.sharding.Mesh) -> dict:
    """What each process has read of a batch (numpy arrays), as one array over devices.

    A process has those that `batch_parts` names, one after the other.
    """
    layout = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(layout, array)
        for name, array in batch.items()
    }


@functools.cache
def connect(mesh: jax.sharding.Mesh) -> None:
    """Let processes on CPUs meet in each group of devices that will exchange anything.

    The first exchange of a group waits for 30 s, and programs compile for longer on a
    machine that is busy; later ones wait for as long as it takes. All processes call
    this together. On other backends, and alone, it does nothing.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    names = mesh.axis_names
    groups = [g for n in range(len(names)) for g in combinations(names, n + 1)]
    sums = lambda one: [jax.lax.psum(one, group) for group in groups]
    whole = PartitionSpec()
    meet = jax.shard_map(
        sums, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False
    )
    jax.block_until_ready(jax.jit(meet)(np.float32(1)))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(
    abstract: Any, mesh: jax.sharding.Mesh, rules: Rules | None = None
) -> Any:
    """Shardings for a pytree of shapes, each leaf by its path and the `rules`.

    A parameter, its optimizer moments and its EMA end in the same path, so they get the
    same sharding.
    """

    rules = rules or Rules()

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = "/".join(_key(k) for k in path)
        return NamedSharding(mesh, _spec(name, leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(one, abstract)


def place(params: dict, mesh: jax.sharding.Mesh) -> dict:
    """Arrays of the host on the mesh, each split as `state_sharding` says.

    Every process holds them whole and hands each of its devices only their part.
    """

    def one(array: np.ndarray, layout: NamedSharding) -> Array:
        part = lambda index: array[index]
        return jax.make_array_from_callback(array.shape, layout, part)

    return jax.tree.map(one, params, state_sharding(params, mesh))


def _spec(
    name: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh, rules: Rules
) -> PartitionSpec:
    """Tensor rule first; then fsdp's, or the largest axis left that `fsdp` divides."""
    axes: list[str | None] = [None] * len(shape)
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    # An axis of layers is never split: each would have to be sent whole.
    first = 1 if re.search(STACKED, name) else 0

    def can(axis: int, size: int) -> bool:
        axis %= max(len(shape), 1)
        fits = shape[axis] % size == 0 and shape[axis] >= size
        return axis >= first and axes[axis] is None and fits

    def named(split: tuple) -> list[int]:
        found = [axis for pattern, axis in split if re.search(pattern, name)]
        return [axis for axis in found if -axis <= len(shape)]

    for axis in named(rules.tensor):
        if tensor > 1 and can(axis, tensor):
            axes[axis] = "tensor"
    largest = sorted(range(len(shape)), key=lambda i: -shape[i])
    for axis in [*named(rules.fsdp), *largest]:
        if fsdp > 1 and "fsdp" not in axes and can(axis, fsdp):
            axes[axis] = "fsdp"
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
    tensor: int | None = None,
) -> Result:
    """`function(first, *others, *whole)` on each device's part of a batch.

    `first` and `others` share their first axis, which is divided over the batch axes,
    as the result is; `whole` are the same everywhere. `tensor` is the axis of `first`,
    of others with as many dimensions and of the result, that is divided over the tensor
    axis. An axis that does not divide is whole on every device. For kernels, which the
    compiler cannot divide by itself. Outside `jax.set_mesh`, or on one device, the
    function simply runs.
    """
    split, shards, parts = (first, *others), shard_count(), tensor_shards()
    if shards * parts == 1:
        return function(*split, *whole)
    batch = None if first.shape[0] % shards else BATCH
    main = rest = PartitionSpec(batch)
    if tensor is not None and not first.shape[tensor] % parts:
        main = PartitionSpec(batch, *[None] * (tensor - 1), "tensor")
    like = lambda a: a is not None and a.ndim == first.ndim
    specs = [main if like(a) else rest for a in split]
    specs += [PartitionSpec() for _ in whole]
    run = jax.shard_map(
        function, in_specs=tuple(specs), out_specs=main, check_vma=False
    )
    return run(*split, *whole)


def shard_count() -> int:
    """Into how many parts the mesh in use splits a batch; 1 without a mesh of ours."""
    return max(_context_shards(), 1)


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
