"""Who takes part is read from flags or a launcher's variables; the rest is refused."""

import jax
import pytest

from pixelflow_jax import distributed
from pixelflow_jax.cli import prepare
from pixelflow_jax.distributed import Joining, difference, find
from pixelflow_jax.errors import (
    LOST,
    STOPPED,
    WRONG,
    DataError,
    LostError,
    StartError,
    UserError,
)
from tests.training import tiny

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
SALLOC = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
HERE = "localhost:1234"

FOUND = {
    "nothing": ((), {}, None),
    "flags": ((HERE, 2, 1), {}, Joining("flags", HERE, 2, 1)),
    "flags before a launcher": ((HERE, 2, 1), SLURM, Joining("flags", HERE, 2, 1)),
    "address of the environment": (
        (None, 2, 0),
        {"JAX_COORDINATOR_ADDRESS": HERE},
        Joining("flags", HERE, 2, 0),
    ),
    "SLURM": ((), SLURM, Joining("SLURM", None, 4, 3, 1)),
    "SLURM that shows a GPU each": (
        (),
        SLURM | {"CUDA_VISIBLE_DEVICES": "5"},
        Joining("SLURM", None, 4, 3, 0),
    ),
    "devices that are said": (
        (),
        SLURM | {"JAX_LOCAL_DEVICE_IDS": "0,1"},
        Joining("SLURM", None, 4, 3),
    ),
    "one task": ((), SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    "a shell of one task": ((), SALLOC | {"SLURM_NTASKS": "1"}, None),
    "said to be alone": ((None, 1, None), SALLOC, None),
    "alone within a job": ((None, 1, None), SLURM, None),
    "Open MPI before SLURM": (
        (),
        SLURM | OPEN_MPI,
        Joining("Open MPI", None, 2, 1, 1),
    ),
    "a pod that is no job's": ((), POD, None),
}


@pytest.mark.parametrize(("given", "environment", "wanted"), FOUND.values(), ids=FOUND)
def test_who_takes_part(given, environment, wanted):
    assert find(*given, environment=environment) == wanted


REFUSED = {
    "a shell of salloc": ((), SALLOC, r"4 tasks, but this is none.*SLURM_STEP.*`srun`"),
    "a batch script": (
        (),
        SALLOC | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        "SLURM_STEP_NODELIST is not set.*Put `srun` before.*--num_processes=1",
    ),
    "no coordinator": ((None, 2, 0), {}, "--coordinator must be given too"),
    "no number of its own": ((HERE, 2, None), {}, "--process_id must be given too"),
    "an address alone": (
        (),
        {"JAX_COORDINATOR_ADDRESS": HERE},
        r"\(localhost:1234\).*--num_processes and --process_id must be given too",
    ),
    "a number too high": ((HERE, 2, 2), {}, "--process_id=2 is out of range.*0 to 1"),
    "a number below 0": ((HERE, 2, -1), {}, "--process_id=-1 is out of range"),
    "no processes": ((HERE, 0, 0), {}, "--num_processes=0 must be 1 or more"),
    "no port": (("node1", 2, 0), {}, "'node1' is no HOST:PORT"),
    "a port too high": (("node1:70000", 2, 0), {}, "no HOST:PORT"),
    "no number": ((), SLURM | {"SLURM_NTASKS": "x"}, "SLURM_NTASKS='x'.*no number"),
    "Open MPI 5": (
        (),
        {k: v for k, v in OPEN_MPI.items() if "uri" not in k},
        "does not say where the first one runs.*--coordinator=HOST:PORT",
    ),
    "a pod without kubernetes": (
        (),
        POD | {"JOB_COMPLETION_INDEX": "1"},
        r"pod 1 of an indexed.*pip install 'jax\[k8s\]'",
    ),
}


@pytest.mark.parametrize(
    ("given", "environment", "words"), REFUSED.values(), ids=REFUSED
)
def test_what_lacks_or_contradicts_is_refused(monkeypatch, given, environment, words):
    here = distributed.importlib.util.find_spec
    there = {"kubernetes": None, "libtpu": None}
    find_spec = lambda name: there[name] if name in there else here(name)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", find_spec)
    with pytest.raises(StartError, match=f"(?s){words}"):
        find(*given, environment=environment)


def test_the_first_process_and_field_that_differ_are_named():
    same = {"version of jax": "1", "config.steps": 6, "config.seed": 3}
    other = {**same, "config.steps": 7, "config.seed": 4}
    words = "Process 2 of 3 differs from process 0 in config.steps: 7 instead of 6."
    assert words in difference([same, same, other])
    assert "in more: 1 instead of absent" in difference([same, same | {"more": 1}])


def test_versions_and_source_are_compared():
    found = distributed.versions()
    assert {"Python", "version of jax", "version of pixelflow_jax"} <= set(found)
    assert len(found["source of pixelflow_jax (sha256)"]) == 12


def test_alone_nothing_is_compared_or_said(capsys):
    distributed.agree({"anything": object()})
    distributed.report("flags", "data=1")
    assert distributed.is_main() and capsys.readouterr() == ("", "")


def test_the_command_refuses_before_it_reads_anything(monkeypatch):
    for name, value in SALLOC.items():
        monkeypatch.setenv(name, value)
    lines = {
        "salloc": ["--config=none", "--workdir=none"],
        "half": ["--mode=sample", "--workdir=none", "--process_id=1"],
        "alone": ["--mode=sample", "--workdir=none", "--num_processes=1"],
    }
    done = tiny.outcomes(lines)
    assert all(outcome["code"] == 1 for outcome in done.values())
    assert "StartError: SLURM job 77 has 4 tasks" in done["salloc"]["error"]
    assert "--coordinator and --num_processes must be" in done["half"]["error"]
    assert "StartError" not in done["alone"]["error"]


def fail():
    raise DataError("The shards are no shards.")


def test_what_process_0_finds_or_refuses_is_every_ones(monkeypatch):
    assert distributed.of_first(lambda: {"b": 1, "a": 2}) == {"b": 1, "a": 2}
    with pytest.raises(DataError, match="no shards"):
        distributed.of_first(fail)
    # As another process, which does not work itself.
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "everyones", lambda own: [[3, ""], own])
    assert distributed.of_first(fail) == 3
    monkeypatch.setattr(distributed, "everyones", lambda own: [[None, "No."], own])
    with pytest.raises(UserError, match="No"):
        distributed.of_first(fail)


@pytest.mark.parametrize(
    ("failure", "codes"),
    [
        (LostError("gone"), [LOST]),
        (DataError("bad"), [WRONG]),
        (ValueError("a fault"), [WRONG]),
        (SystemExit(LOST), [LOST]),
        (SystemExit(STOPPED), []),
        (SystemExit(0), []),
    ],
)
def test_one_that_fails_ends_soon_with_its_own_code(monkeypatch, failure, codes):
    ends = []

    class Clock:
        def __init__(self, seconds, end, arguments):
            ends.extend(arguments)

        def start(self):
            pass

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.threading, "Timer", Clock)
    with pytest.raises(type(failure)), distributed.leaving():
        raise failure
    assert ends == codes


def test_preparing_ends_with_the_code_of_its_error(monkeypatch, capsys):
    def lose(arguments):
        raise LostError("Another process was lost.")

    monkeypatch.setattr(prepare, "run_text_features", lose)
    assert prepare.main(["text-features", "x", "--config=emoji_t2i:cpu"]) == LOST
    assert capsys.readouterr().err == "error: Another process was lost.\n"
