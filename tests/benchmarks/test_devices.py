"""Steps over several devices: which ones a case takes, and how they compare."""

import argparse

import jax
import pytest

from benchmarks import devices, links, partition, suite
from benchmarks.case import Case

POINT = "configs/pixnerd.py:xl16_256=32"


def arguments(**given) -> argparse.Namespace:
    usual = {"points": [POINT], "devices": [1, 2, 4], "change": []}
    return argparse.Namespace(**usual | given)


def test_a_point_is_measured_on_each_number_of_devices():
    found = devices.cases(arguments())
    meshes = [
        (c.devices, c.changes["mesh.data"], c.changes["mesh.fsdp"]) for c in found
    ]
    assert meshes == [(1, 1, 1), (2, 2, 1), (2, 1, 2), (4, 4, 1), (4, 1, 4)]
    assert [c.batch for c in found] == [32, 64, 64, 128, 128]
    assert all(c.names_devices for c in found)
    assert len({c.label for c in found}) == 5


@pytest.mark.parametrize(
    ("platform", "known", "visible"),
    [("cpu", "", "0,1"), ("", "", "0,1"), ("", "5,3,2", "5,3")],
)
def test_a_case_is_given_the_devices_of_its_mesh(monkeypatch, platform, known, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", known)
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    case = devices.cases(arguments(devices=[2]))[0]
    found = suite._of_mesh(case, {})
    assert found["CUDA_VISIBLE_DEVICES"] == visible
    flags = "--mine --xla_force_host_platform_device_count=2"
    assert found.get("XLA_FLAGS") == (flags if platform == "cpu" else None)
    free = Case(what="train", config="x", batch=8)
    assert suite._of_mesh(free, {}) == {}


def test_the_efficiency_is_against_one_device_at_the_same_batch_each():
    rows = []
    for case, ms in zip(devices.cases(arguments()), (80, 88, 84, 100, 90), strict=True):
        rows.append(
            {
                **{"case": case.label, "config": case.config, "batch": case.batch},
                **{"changes": case.changes, "queued_ms": ms, "peak_gb": 20.0},
                **{"mesh_size": case.devices, "commit": "x", "device": "card"},
            }
        )
    rows[-1] = {**rows[-1], "failed": "out of memory"}
    lines = devices.render(rows).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:7]]
    assert [line[2] for line in cells] == [
        *("one device", "data=2", "fsdp=2", "data=4", "fsdp=4"),
    ]
    assert {line[1] for line in cells} == {"32"}
    assert [line[5] for line in cells] == ["100.0 %", "90.9 %", "95.2 %", "80.0 %", ""]
    assert cells[-1][3] == "out of memory"


PROGRAM = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
}

%body.1 (p: (s32[], bf16[64])) -> (s32[], bf16[64]) {
  %g = bf16[64,8]{1,0} all-gather(%x), replica_groups=[2,8]<=[16], dimensions={0}
  %r = (f32[16]{0}, f32[4]{0}) all-reduce(%y, %z), replica_groups={{0,8},{1,9}}
}

%body.2 (p: (s32[], bf16[64])) -> (s32[], bf16[64]) {
  %h = f32[16]{0} all-reduce(%y), replica_groups=mesh['a'=2,'b'=4,'c'=2] {'b','c'}
  %i = bf16[8]{0} all-gather(%y), replica_groups=mesh['a'=2,'b'=8], \
device_ids=([8,2]T(1,0)) {'b'}, dimensions={0}
  %f = (f32[8], f32[2]) fusion(%y), kind=kCustom, calls=%all-reduce-scatter.7
}

%all-reduce-scatter.7 (p: f32[32]) -> (f32[8], f32[2]) {
  %k = (f32[32], f32[8]) all-reduce(%y), replica_groups=mesh['a'=2,'b'=8] {'a'}
}

%cond.2 (p: (s32[], bf16[64])) -> pred[] {
  %n = s32[]{:T(128)} constant(3)
  %done = pred[] compare(%i, %n), direction=LT
}

%cond.1 (p: (s32[], bf16[64])) -> pred[] {
  %done = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.9 (p0: f32[8]) -> f32[8] {
  %w = (s32[], bf16[64]) while(%t), condition=%cond.1, body=%body.1, \
backend_config={"known_trip_count":{"n":"5"}}
  %w2 = (s32[], bf16[64]) while(%t), condition=%cond.2, body=%body.2, metadata={}
  %s = (bf16[8]{0}, bf16[64]{0}) all-gather-start(%q), replica_groups=[2,8]<=[8,2]T(1,0)
  %d = bf16[64]{0} all-gather-done(%s)
  %c = f32[32]{0} reduce-scatter(%v), replica_groups=[16,1]<=[16], to_apply=%add
  %e = f32[32]{0} reduce-scatter(%v), replica_groups=[1,16]<=[16], to_apply=%add
  ROOT %o = f32[8] copy(%e)
}
"""


def test_what_a_program_exchanges_is_read_from_it():
    """Loops as often as they turn; groups of one device exchange nothing."""
    found = list(partition.exchanges(PROGRAM, 16))
    kinds = {(e.kind, e.times, e.group, e.far): e.sent for e in found}
    assert kinds == {
        ("all-gather", 5, 8, False): 64 * 8 * 2 * 7 / 8,
        ("all-reduce", 5, 2, True): 2 * 20 * 4 / 2,
        ("all-gather", 3, 8, True): 8 * 2 * 7 / 8,
        ("all-reduce", 3, 8, False): 2 * 16 * 4 * 7 / 8,
        ("reduce-scatter", 3, 2, True): 40 * 4 / 2,
        ("all-gather", 1, 8, True): 64 * 2 * 7 / 8,
        ("reduce-scatter", 1, 16, True): 32 * 4 * 15,
    }


def test_the_model_is_near_what_was_measured():
    """It has one rate a mesh, for three models and two numbers of devices."""
    for row in links.MEASURED:
        share = links.predicted(row, links.fitted(row.mesh, 3.0), 3.0)
        assert share == pytest.approx(row.efficiency, abs=0.04), row


def test_the_model_of_several_hosts():
    """Slower cards, more hosts: never better; hybrid keeps most within a host."""
    row = {"devices": 8, "mesh": "fsdp", "parameters": 1171.5e6, "batch": 32}
    one = links.on_gpus(row, 50e9, 3.0)
    many = row | {"devices": 64}
    fast, slow = (links.on_gpus(many, nic, 3.0) for nic in (50e9, 12.5e9))
    assert 0.5 < slow < fast <= one < 1
    hybrid = links.on_gpus(many | {"mesh": "hybrid"}, 12.5e9, 3.0)
    assert slow < hybrid < one


@pytest.mark.slow
def test_a_program_for_more_devices_holds_less_and_is_read():
    """A tiny model over two of the virtual devices, by the module's own way."""
    config = partition.prepared("configs/emoji.py:demo", encoded=False)
    row = partition.measure(config, jax.devices()[:2], "fsdp", 4, "2 virtual")
    assert row["devices"] == 2 and row["parameters"] == 1_217_251
    whole = 4 * row["parameters"] / 1e9
    assert whole / 2 <= row["parameters_gb"] < 0.6 * whole
    gathered = row["sent_gb"]["all-gather"] * 1e9
    assert 1 <= gathered / (4 * row["parameters"] / 2) < 5
    assert "virtual" in links.memory_table([row])
    assert "| 2 virtual | fsdp |" in links.exchange_table([row])
