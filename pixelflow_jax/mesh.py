"""How devices are arranged: the mesh as a config says it, and which one to take."""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from pixelflow_jax.values import AxisSize, Name, Range

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes over which a batch is split

# A regular expression on a parameter's path, and the axis (from the end) that is split.
Rule = tuple[Name, Annotated[int, Range(low=-8, high=-1)]]
Reduce = Literal["bfloat16", "float32"]

# Tensor parallelism: the outputs of the first matrix of a pair, the inputs of the
# second, so that only the pair's result is summed over devices.
TENSOR_RULES: tuple[Rule, ...] = (
    (r"attention/qkv/kernel$", -1),
    (r"attention/(q|kv)/kernel$", -1),
    (r"attention/out/kernel$", -2),
    (r"mlp/(gate|up)/kernel$", -1),
    (r"mlp/down/kernel$", -2),
)
# Of these matrices the compiler exchanges results where their outputs are split: an
# all-to-all a layer and stage. Everything else is split along its largest axis.
FSDP_RULES: tuple[Rule, ...] = ((r"modulation/kernel$", -2),)
# The share of a device's memory that parameters, optimizer and averages may take; what
# activations need is known to the compiler alone.
STATE_SHARE = 0.6


@dataclasses.dataclass(kw_only=True)
class MeshShape:
    """Devices along each axis; -1 (one axis at most) takes what the others leave.

    `data` replicates the parameters, `fsdp` splits parameters, optimizer state and EMA,
    `tensor` splits the matrices of attention and MLP. The batch is split over data x
    fsdp. Where the devices belong to several hosts or TPU slices, the axes are laid
    over these in that order, so that what is exchanged most stays within one.

    `reduce_dtype` is the type in which gradients of matrices are summed over devices.
    "float32" rounds each sum once, at its end, for twice the traffic of gradients.

    `tensor_rules` and `fsdp_rules` say which axis of which parameter is split: pairs of
    a regular expression on its path and an axis, counted from the end. Parameters that
    no rule of fsdp names are split along the largest axis that is left.
    """

    data: AxisSize = -1
    fsdp: AxisSize = 1
    tensor: AxisSize = 1
    reduce_dtype: Reduce = "bfloat16"
    tensor_rules: tuple[Rule, ...] = TENSOR_RULES
    fsdp_rules: tuple[Rule, ...] = FSDP_RULES

    def check(self) -> None:
        """Raises ValueError for a type that does not exist, and unreadable rules."""
        if self.reduce_dtype not in get_args(Reduce):
            known = ", ".join(get_args(Reduce))
            raise ValueError(
                f"mesh.reduce_dtype must be one of {known}, not {self.reduce_dtype!r}."
            )
        for pattern, _ in (*self.tensor_rules, *self.fsdp_rules):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"The rule {pattern!r} of the mesh is no regular expression: "
                    f"{error}."
                ) from error

    @property
    def rules(self) -> "Rules":
        """Which axes are split."""
        return Rules(self.tensor_rules, self.fsdp_rules)

    def build(self, devices: list | None = None) -> jax.sharding.Mesh:
        """The mesh over `devices` (default: all); ValueError where it does not fit."""
        self.check()
        devices = jax.devices() if devices is None else devices
        sizes = self.sizes(len(devices))
        groups = groups_of(devices)
        axis_types = (AxisType.Auto,) * len(AXES)
        if len(set(groups)) == 1:
            return jax.make_mesh(sizes, AXES, axis_types=axis_types, devices=devices)
        return jax.sharding.Mesh(arranged(sizes, devices), AXES, axis_types=axis_types)

    def of_process(self) -> jax.sharding.Mesh:
        """A mesh of this process' devices alone, for work that processes share out.

        Matrices are split over as many devices as in the whole mesh, so that results
        are the same; ValueError where a process has not so many.
        """
        local = jax.local_devices()
        _, fsdp, tensor = self.sizes(jax.device_count())
        if len(local) % tensor:
            raise ValueError(
                f"mesh.tensor={tensor} does not divide the {len(local)} devices of a "
                "process, each of which works alone here: set --config.mesh.tensor=1."
            )
        fsdp = math.gcd(fsdp, len(local) // tensor)
        own = dataclasses.replace(self, data=-1, fsdp=fsdp, tensor=tensor)
        return own.build(local)

    def sizes(self, count: int) -> tuple[int, ...]:
        """Devices along each axis, of `count`; ValueError where they do not fit."""
        sizes = [self.data, self.fsdp, self.tensor]
        if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
            raise ValueError(
                "mesh sizes must be positive, with -1 for at most one axis, not "
                f"{sizes}."
            )
        known = math.prod(s for s in sizes if s != -1)
        sizes = [count // known if s == -1 else s for s in sizes]
        if math.prod(sizes) != count:
            raise ValueError(
                f"A mesh of data={self.data}, fsdp={self.fsdp}, tensor={self.tensor} "
                f"does not fit {count} devices: the product of the sizes must "
                f"be {count} (-1 takes what is left)."
            )
        return tuple(sizes)


class Rules(NamedTuple):
    """Which axis of which parameter is split, as `MeshShape` says it."""

    tensor: tuple[Rule, ...] = TENSOR_RULES
    fsdp: tuple[Rule, ...] = FSDP_RULES


def groups_of(devices: Sequence[Any]) -> list[int]:
    """For each device the number of its group, within which exchange is fast.

    That is a TPU slice, or a host of GPUs (JAX calls both slices). Where devices know
    of none, TPUs are one slice, whose links join all its hosts, and of others those of
    one process are a group.
    """
    if all(getattr(d, "slice_index", None) is not None for d in devices):
        return [int(d.slice_index) for d in devices]
    if all(getattr(d, "platform", None) == "tpu" for d in devices):
        return [0] * len(devices)
    return [int(d.process_index) for d in devices]


def arranged(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices of several groups as an array of `sizes`, the groups outermost.

    Raises ValueError for groups of different sizes.
    """
    counts = collections.Counter(groups_of(devices))
    if len(set(counts.values())) > 1:
        listed = ", ".join(map(str, counts.values()))
        raise ValueError(
            f"The hosts or slices have different numbers of devices ({listed}): a mesh "
            "needs as many of each. Give each process as many devices."
        )
    outer = spread(sizes, len(counts))
    inner = [size // across for size, across in zip(sizes, outer, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        inner,
        outer,
        devices,
        process_is_granule=getattr(devices[0], "slice_index", None) is None,
        allow_split_physical_axes=True,
    )


def spread(sizes: Sequence[int], groups: int) -> list[int]:
    """How many of `groups` lie along each axis: as many as the first ones can take."""
    outer = []
    for size in sizes:
        outer.append(math.gcd(size, groups))
        groups //= outer[-1]
    return outer


class Advice(NamedTuple):
    """A mesh, and why: a sentence or two for a user. `fits`: whether memory does."""

    shape: MeshShape
    reason: str
    fits: bool = True


def advise(
    state_bytes: float,
    batch_size: int,
    device_bytes: float,
    devices: Sequence[Any] | None = None,
) -> Advice:
    """The mesh to take for a training run over `devices` (default: all).

    `state_bytes` are parameters, gradients, optimizer and averages of the whole model,
    `device_bytes` the memory of one device. fsdp is advised wherever there are several
    devices: on H200s of one host it was as fast as data, or faster, for every model
    that was measured, and took 3 to 17 GB less. It stays within a host or slice where
    the state fits there.
    """
    devices = jax.devices() if devices is None else devices
    count, room = len(devices), STATE_SHARE * device_bytes
    needed = max(1, math.ceil(state_bytes / room))
    # Devices that get no image of their own can only share matrices.
    tensor = next(n for n in range(1, count + 1) if not _unshared(count, n, batch_size))
    group = count // len(set(groups_of(devices)))
    within = max(1, math.gcd(group, count // tensor))
    fsdp = within if within * tensor >= needed else count // tensor
    shape = MeshShape(data=count // tensor // fsdp, fsdp=fsdp, tensor=tensor)
    share = state_bytes / (fsdp * tensor) / 1e9
    said = (
        f"each of {count} devices holds {share:,.1f} of its {device_bytes / 1e9:,.0f} "
        "GB for parameters, optimizer and averages"
    )
    if needed > count:
        return Advice(
            shape,
            f"{said}, which leaves too little for activations: take {needed} devices.",
            False,
        )
    if count == 1:
        return Advice(shape, f"There is one device, and it has room: {said}.")
    why = "fsdp is as fast as data, or faster, and takes less memory"
    if shape.data > 1:
        why += "; data goes over hosts, which exchange gradients alone"
    if tensor > 1:
        why += f"; batch_size={batch_size} is too small to be split over all devices"
    return Advice(shape, f"{why}: {said}.")


def _unshared(count: int, tensor: int, batch_size: int) -> bool:
    """Whether a batch cannot be split evenly where `tensor` devices share an image."""
    return bool(count % tensor or batch_size % (count // tensor))
