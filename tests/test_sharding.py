"""Meshes and partition rules, on eight virtual devices and on stand-ins of others."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pixelflow_jax.mesh import (
    AXES,
    MeshShape,
    Rules,
    advise,
    arranged,
    groups_of,
    spread,
)
from pixelflow_jax.models.interface import network
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.sharding import (
    batch_parts,
    batch_sharding,
    batch_shards,
    connect,
    constrain_batch,
    place,
    replicated,
    state_sharding,
)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (MeshShape(), (8, 1, 1)),
        (MeshShape(data=1, fsdp=-1), (1, 8, 1)),
        (MeshShape(data=2, fsdp=2, tensor=2), (2, 2, 2)),
        (MeshShape(tensor=4), (2, 1, 4)),
    ],
)
def test_a_mesh_takes_all_devices(shape, sizes):
    mesh = shape.build()
    assert mesh.axis_names == AXES and mesh.devices.shape == sizes
    assert batch_shards(mesh) == sizes[0] * sizes[1]


def test_a_mesh_over_some_devices():
    assert MeshShape(fsdp=2).build(jax.devices()[:4]).devices.shape == (2, 2, 1)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (MeshShape(data=3), "data=3.*does not fit 8 devices"),
        (MeshShape(fsdp=3), "fsdp=3.*does not fit 8 devices"),
        (MeshShape(fsdp=16), "fsdp=16.*does not fit 8 devices"),
        (MeshShape(fsdp=-1), "at most one axis"),
        (MeshShape(tensor=0), "must be positive"),
        (MeshShape(data=-2), "must be positive"),
    ],
    ids=str,
)
def test_a_mesh_that_does_not_fit_is_refused(shape, words):
    with pytest.raises(ValueError, match=words):
        shape.build()


# 16 layers of width 8: the layer axis is divisible, and larger than the width.
MODEL = PixNerd(
    num_classes=11,
    patch=4,
    width=8,
    heads=2,
    depth=32,
    feature_layer=16,
    decoder=NeuralField(width=4, depth=2),
)


def specs(mesh_shape: MeshShape, tree: dict) -> dict[str, tuple]:
    """The partition of every leaf by path, one entry an axis."""
    shardings = state_sharding(tree, mesh_shape.build())
    leaves = jax.tree_util.tree_leaves_with_path(shardings)
    arrays = jax.tree.leaves(tree)
    named = {}
    for (path, sharding), array in zip(leaves, arrays, strict=True):
        spec = tuple(sharding.spec)
        named["/".join(k.key for k in path)] = spec + (None,) * (array.ndim - len(spec))
    return named


@pytest.fixture(scope="module")
def tree() -> dict:
    params = network(MODEL, Precision()).shapes()
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return {"params": params, "opt": {"mu": params}, "ema": params, "step": step}


@pytest.mark.parametrize("fsdp", [2, 4, 8])
def test_fsdp_takes_the_largest_axis_but_never_the_layers(tree, fsdp):
    found = specs(MeshShape(fsdp=fsdp), tree)
    early = "params/early/blocks"
    assert found[f"{early}/attention/qkv/kernel"] == (None, None, "fsdp")  # 16, 8, 24
    assert found[f"{early}/norm1/weight"] == (None, "fsdp")  # 16, 8
    assert found["params/patch_embed/kernel"] == ("fsdp", None)  # 48, 8
    assert found["params/class_embed/table"] == (  # 12, 8
        ("fsdp", None) if fsdp < 8 else (None, "fsdp")
    )
    assert found["params/decoder/linear/bias"] == (None,)  # 3: nothing divides
    assert found["step"] == ()
    for path, spec in found.items():
        assert "blocks" not in path or spec[0] is None, path
        assert sum(axis is not None for axis in spec) <= 1, path


def test_optimizer_and_average_follow_their_parameter(tree):
    found = specs(MeshShape(fsdp=2, tensor=2), tree)
    params = [path for path in found if path.startswith("params/")]
    assert len(params) > 20
    for path in params:
        name = path.removeprefix("params/")
        assert found[path] == found[f"opt/mu/{name}"] == found[f"ema/{name}"]


def test_tensor_rules_split_pairs_of_matrices(tree):
    found = specs(MeshShape(fsdp=2, tensor=2), tree)
    block = "params/late/blocks"
    assert found[f"{block}/attention/qkv/kernel"] == (None, "fsdp", "tensor")
    assert found[f"{block}/attention/out/kernel"] == (None, "tensor", "fsdp")
    # The MLP's hidden width is 21, which two devices do not divide.
    assert MODEL.mlp_width == 21
    assert found[f"{block}/mlp/gate/kernel"] == (None, "fsdp", None)
    even = {"mlp": {"down": {"kernel": jax.ShapeDtypeStruct((6, 8), jnp.float32)}}}
    assert specs(MeshShape(tensor=2), even) == {"mlp/down/kernel": ("tensor", None)}
    split = [path for path, spec in found.items() if "tensor" in spec]
    assert split and all("/attention/" in path for path in split)


def test_one_device_an_axis_splits_nothing(tree):
    for spec in specs(MeshShape(), tree).values():
        assert set(spec) <= {None}


def test_parameters_can_be_placed_by_their_shardings(tree):
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build()
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), tree["params"])
    placed = jax.device_put(zeros, state_sharding(tree["params"], mesh))
    kernel = placed["early"]["blocks"]["attention"]["qkv"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 4, 12)


@pytest.mark.parametrize(
    ("shape", "own"),
    [
        ({}, (4, 1, 1)),
        ({"data": 2, "fsdp": -1}, (1, 4, 1)),
        ({"fsdp": 2, "tensor": 2}, (1, 2, 2)),
    ],
)
def test_a_process_alone_splits_matrices_as_all_do(monkeypatch, shape, own):
    """One of two processes, of four devices each."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[4:])
    mesh = MeshShape(**shape).of_process()
    assert mesh.devices.shape == own and mesh.devices.flat[0] == jax.devices()[4]


def test_a_process_alone_has_no_room_for_a_wider_split(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[4:])
    with pytest.raises(ValueError, match=r"tensor=8 does not divide the 4 .*tensor=1"):
        MeshShape(tensor=8).of_process()


def test_processes_meet_in_each_group_of_a_mesh(monkeypatch):
    """Over real ones: tests/training/test_processes.py; here it runs at all."""
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build(jax.devices())
    run = []
    jit = lambda function: lambda x: run.append(jax.device_get(function(x)))
    monkeypatch.setattr(jax, "jit", jit)
    connect(mesh)
    assert not run  # alone
    connect.cache_clear()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    connect(mesh)
    assert [float(x) for x in run[0]] == [2, 2, 2, 4, 4, 4, 8]
    connect.cache_clear()


def test_batches_are_split_over_data_and_fsdp():
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build()
    x = jax.device_put(np.zeros((8, 3)), batch_sharding(mesh))
    assert x.addressable_shards[0].data.shape == (2, 3)
    whole = jax.device_put(np.zeros((8, 3)), replicated(mesh))
    assert whole.addressable_shards[0].data.shape == (8, 3)


def test_the_constraint_does_nothing_without_a_mesh():
    x = jnp.zeros((8, 3))
    assert constrain_batch(x) is x
    jaxpr = str(jax.make_jaxpr(constrain_batch)(x))
    assert "sharding_constraint" not in jaxpr


def test_the_constraint_splits_the_batch_where_it_divides():
    mesh = MeshShape(data=4, fsdp=2).build()
    with jax.set_mesh(mesh):
        split = jax.jit(constrain_batch)(jnp.zeros((16, 3)))
        assert split.sharding.spec == PartitionSpec(("data", "fsdp"))
        odd = jnp.zeros((6, 3))
        assert constrain_batch(odd) is odd
    foreign = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(foreign):
        x = jnp.zeros((8, 3))
        assert constrain_batch(x) is x


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(fsdp=2, tensor=2)])
def test_arrays_of_the_host_are_placed_by_the_rules(shape):
    """The same values, split as the state would be."""
    draw = np.random.default_rng(0).standard_normal
    host = {
        "blocks": {"mlp": {"up": {"kernel": draw((3, 8, 16))}}, "odd": draw((3, 5))},
        "attention": {"kv": {"kernel": draw((8, 6))}},
        "scale": draw(()),
    }
    mesh = shape.build()
    placed, layout = place(host, mesh), state_sharding(host, mesh)
    jax.tree.map(np.testing.assert_allclose, placed, host)
    same = jax.tree.map(lambda a, s: a.sharding == s, placed, layout)
    assert all(jax.tree.leaves(same))
    split = placed["attention"]["kv"]["kernel"].sharding.shard_shape((8, 6))
    kernel = placed["blocks"]["mlp"]["up"]["kernel"].sharding.shard_shape((3, 8, 16))
    alone = mesh.shape["fsdp"] == 1
    assert (split, kernel) == (((8, 6), (3, 8, 16)) if alone else ((4, 3), (3, 4, 8)))


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of a device that is not there."""

    id: int
    process_index: int
    slice_index: int | None = None
    platform: str = "gpu"
    device_kind: str = "stand-in"


def hosts(count: int, each: int, processes: int = 1, **fields) -> list[Device]:
    """Devices of several hosts, a slice each, in processes of `processes` devices."""
    numbers = range(count * each)
    return [Device(n, n // processes, n // each, **fields) for n in numbers]


@pytest.mark.parametrize(
    ("sizes", "groups", "outer"),
    [
        ((16, 1, 1), 2, [2, 1, 1]),
        ((1, 16, 1), 2, [1, 2, 1]),
        ((2, 8, 1), 4, [2, 2, 1]),
        ((1, 2, 8), 4, [1, 2, 2]),
        ((8, 3, 1), 6, [2, 3, 1]),
    ],
)
def test_hosts_lie_along_the_first_axes(sizes, groups, outer):
    assert spread(sizes, groups) == outer


def test_a_mesh_over_hosts_keeps_fsdp_and_tensor_within_one():
    devices = hosts(4, 8)
    mesh = arranged((4, 4, 2), devices)
    assert mesh.shape == (4, 4, 2)
    for i in range(4):
        assert {d.slice_index for d in mesh[i].ravel()} == {i}
    # Where fsdp is larger than a host, its outer half is what crosses them.
    wide = arranged((1, 32, 1), devices)[0, :, 0]
    assert [d.slice_index for d in wide] == [n // 8 for n in range(32)]
    # Without slices, a process is what a host would be.
    without = [
        dataclasses.replace(d, slice_index=None) for d in hosts(2, 4, processes=4)
    ]
    rows = arranged((2, 4, 1), without)
    assert [{d.process_index for d in row.ravel()} for row in rows] == [{0}, {1}]


def test_hosts_of_one_slice_of_tpus_are_one_group():
    """Its links join all: rings by host would be none, and libtpu refuses some."""
    alone = [
        dataclasses.replace(d, slice_index=None, platform="tpu") for d in hosts(4, 4)
    ]
    assert len({d.process_index for d in alone}) == 16
    assert set(groups_of(alone)) == {0}
    assert groups_of(hosts(2, 4, processes=2, platform="tpu")) == [0] * 4 + [1] * 4


def test_hosts_of_different_sizes_are_refused():
    odd = [*hosts(2, 4), Device(8, 8, 2)]
    with pytest.raises(ValueError, match=r"numbers of devices \(4, 4, 1\)"):
        arranged((9, 1, 1), odd)


class Laid(NamedTuple):
    """A mesh of stand-ins, as far as the parts of a batch depend on it."""

    devices: np.ndarray

    @property
    def shape(self) -> dict[str, int]:
        return dict(zip(AXES, self.devices.shape, strict=True))


@pytest.mark.parametrize(
    ("sizes", "each", "parts"),
    [
        ((8, 1, 1), 2, [((0,), 4), ((1,), 4), ((2,), 4), ((3,), 4)]),
        ((1, 8, 1), 4, [((0,), 2), ((1,), 2)]),
        ((2, 2, 2), 2, [((0,), 4), ((1,), 4), ((2,), 4), ((3,), 4)]),
        ((2, 1, 4), 2, [((0,), 2), ((0,), 2), ((1,), 2), ((1,), 2)]),
        ((1, 1, 8), 4, [((0,), 1), ((0,), 1)]),
    ],
)
def test_each_process_reads_what_its_devices_need(sizes, each, parts):
    devices = np.empty(8, object)
    devices[:] = [Device(n, n // each) for n in range(8)]
    mesh = Laid(devices.reshape(sizes))
    assert [batch_parts(mesh, p) for p in range(len(parts))] == parts


def test_a_process_whose_devices_lie_apart_reads_several_parts():
    """As on a torus, where the devices of a host are a square of a larger one."""
    devices = np.empty((4, 4), object)
    for x, y in np.ndindex(4, 4):
        devices[x, y] = Device(4 * x + y, 2 * (x // 2) + y // 2)
    mesh = Laid(devices.reshape(16, 1, 1))
    found = [batch_parts(mesh, p) for p in range(4)]
    assert found[0] == ((0, 1, 4, 5), 16) and found[3] == ((10, 11, 14, 15), 16)
    read = [part for parts, _ in found for part in parts]
    assert sorted(read) == list(range(16))  # each part once


def test_the_config_can_say_what_is_split(tree):
    mesh = MeshShape(fsdp=2, tensor=2)
    rules = Rules(
        tensor=((r"modulation/kernel$", -1),), fsdp=((r"attention/qkv/kernel$", -2),)
    )
    layout = state_sharding(tree["params"], mesh.build(), rules)["early"]["blocks"]
    assert layout["attention"]["qkv"]["kernel"].spec == PartitionSpec(
        None, "fsdp", None
    )
    assert layout["modulation"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    with pytest.raises(ValueError, match=r"rule '\(' of the mesh is no regular"):
        MeshShape(fsdp_rules=(("(", -1),)).build()


GB = 10**9


@pytest.mark.parametrize(
    ("devices", "state", "batch", "wanted"),
    [
        (hosts(1, 1), 20 * GB, 32, (1, 1, 1)),
        (hosts(1, 8), 20 * GB, 256, (1, 8, 1)),
        (hosts(4, 8), 20 * GB, 256, (4, 8, 1)),  # data over hosts
        (hosts(4, 8), 600 * GB, 256, (1, 32, 1)),  # a host is too small
        (hosts(2, 8), 20 * GB, 8, (1, 8, 2)),  # fewer images than devices
    ],
)
def test_advice_splits_the_state_within_a_host_if_it_fits(
    devices, state, batch, wanted
):
    advice = advise(state, batch, 80 * GB, devices)
    assert advice.fits and advice.shape.sizes(len(devices)) == wanted
    assert "GB for parameters, optimizer and averages" in advice.reason


def test_advice_says_how_many_devices_a_model_needs():
    advice = advise(1000 * GB, 256, 80 * GB, hosts(1, 8))
    assert not advice.fits and "take 21 devices" in advice.reason
