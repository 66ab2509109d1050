"""The two phases as commands, and what a failure leaves behind."""

import argparse
import json
import math
import os
import runpy
import shutil
import subprocess
import sys
import time
import types
import warnings

import jax
import pytest

from benchmarks import harness, suite, timing, turns
from benchmarks.case import Case
from pixelflow_jax.training.throughput import queued_seconds

SMALL = "configs/pixelgen.py:emoji_clean"
COMMANDS = ("speed", "methods", "scaling", "kernels", "train_step", "sample", "profile")
COMMANDS += ("cascade", "perceptual", "worker", "against", "turn", "turns")
# One device, whatever the other tests ask for, and programs that compile soon.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}


@pytest.fixture
def one_device(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def arguments(tmp_path, **changed) -> argparse.Namespace:
    """What a command line with a cache of its own says."""
    parser = harness.parser("test")
    suite.add_arguments(parser)
    found = parser.parse_args(["--cache", str(tmp_path / "cache"), "--jobs", "2"])
    found.json = tmp_path / "rows.jsonl"
    vars(found).update(repeats=2, **changed)
    return found


def test_a_step_is_compiled_then_measured_from_the_cache(tmp_path):
    record = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "benchmarks.train_step", "--config", SMALL]
    command += ["--batch", "2", "--depth", "2", "--scan", "1"]
    command += ["--repeats", "2", "--json", str(record)]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=harness.ROOT,
        env={**os.environ, **ENVIRONMENT},
    )
    assert run.returncode == 0, run.stderr
    (row,) = harness.read(record)
    assert row["case"] == "batch=2 scan=1 depth=2" and row["device"] == "cpu"
    assert row["ms"] > 0 and row["images_s"] > 0 and row["peak_gb"] is None
    assert row["queued_ms"] > 0 and row["peaks_gb"] == []
    assert row["program_gb"] > 0 and row["xla_tflop"] > row["model_tflop"] > 0
    assert row["mfu"] == pytest.approx(row["limit_ms"] / row["ms"])
    assert row["warm_compile_s"] < row["cold_compile_s"] and row["at_once"] == 1
    assert "batch=2" in run.stdout


@pytest.mark.slow
@pytest.mark.long
def test_a_broken_case_is_a_row_and_stops_no_other(tmp_path, one_device):
    cases = [
        Case.parse(f"train {SMALL} 2 model.heads=7"),
        Case.parse(f"sample {SMALL} 1 solver=euler steps=2 depth=2 scan=1"),
    ]
    rows = suite.run(cases, arguments(tmp_path))
    assert "model.heads=7" in rows[0]["failed"]
    assert rows[1]["ms"] > 0 and rows[1]["network_calls"] == 3
    kept = harness.read(tmp_path / "rows.jsonl")
    assert [row["case"] for row in kept] == [case.label for case in cases]


@pytest.mark.slow
@pytest.mark.long
def test_two_checkouts_take_turns(tmp_path, one_device):
    other = tmp_path / "other"
    shutil.copytree(harness.ROOT / "pixelflow_jax", other / "pixelflow_jax")
    shutil.copytree(harness.ROOT / "configs", other / "configs")
    missing = shutil.ignore_patterns("results", "turn*.py", "running.py", "timing.py")
    shutil.copytree(harness.ROOT / "benchmarks", other / "benchmarks", ignore=missing)
    works = f"sample {SMALL} 1 solver=euler steps=2 depth=2 scan=1"
    given = arguments(tmp_path, other=other, commit="0ld", rounds=1, seconds=60)
    rows = turns.run([Case.parse(works)], given)
    assert [row["which"] for row in rows] == ["before", "now"]
    assert all(len(row["turns"]) == 1 and row["queued_ms"] > 0 for row in rows)
    kept = harness.read(tmp_path / "rows.jsonl")
    assert [row["commit"] == "0ld" for row in kept] == [True, False]
    assert kept[0]["matmul_tflops"] == kept[1]["matmul_tflops"] > 0  # one machine


def test_a_commit_s_turns_are_one_record():
    turn = lambda ms: {"rows": [{"ms": ms, "queued_ms": ms, "fastest_ms": ms - 1}]}
    for record in (one := [turn(4.0), turn(2.0), turn(9.0)]):
        record["rows"][0]["images_s"] = 1.0
    (row,) = turns.combined(one)["rows"]
    assert row["ms"] == 4 and row["fastest_ms"] == 1
    assert row["turns"] == [[4, 4], [2, 2], [9, 9]]
    broken = {"commit": "0ld", "rows": [{"failed": "out of memory"}]}
    assert turns.combined([turn(4.0), broken]) is broken


def test_turns_that_take_too_long(tmp_path, one_device, monkeypatch):
    code = "import time; print('READY', flush=True); input(); time.sleep(60)"
    command = [sys.executable, "-c", code]
    popen = lambda _, **given: subprocess.Popen(command, **given)
    stand_in = types.SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE)
    monkeypatch.setattr(turns, "subprocess", stand_in)
    changed = {"other": tmp_path, "commit": "0ld", "rounds": 1, "seconds": 1}
    given = arguments(tmp_path, **changed)
    given.budget = 0.5
    rows = turns.run([Case.parse(f"sample {SMALL} 1")], given)
    assert {row["failed"] for row in rows} == {"the turn took longer than 0 s"}
    kept = harness.read(tmp_path / "rows.jsonl")
    assert [row["commit"] == "0ld" for row in kept] == [True, False]
    command[2] = "import time; time.sleep(60)"
    given.compile_budget = 0.5
    rows = turns.run([Case.parse(f"sample {SMALL} 1")], given)
    assert {row["failed"] for row in rows} == {"compiling took longer than 0 s"}


def test_nothing_more_is_started_when_a_sitting_ends(tmp_path, monkeypatch):
    started = []

    class Turn:
        def __init__(self, which, case, args, cache):
            started.append(self)
            self.ended = False

        def ready(self):
            time.sleep(0.2)
            raise KeyboardInterrupt

        def end(self):
            self.ended = True

    monkeypatch.setattr(turns, "Turn", Turn)
    given = arguments(tmp_path, other=tmp_path, commit="0ld", rounds=2)
    given.jobs = 1
    with pytest.raises(KeyboardInterrupt):
        turns.run([Case.parse(f"sample {SMALL} {n}") for n in (1, 2, 3)], given)
    time.sleep(0.5)
    assert len(started) < 6 and all(turn.ended for turn in started)


def test_turns_of_a_folder_that_is_no_checkout(tmp_path):
    command = [sys.executable, "-m", "benchmarks.turns", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=harness.ROOT)
    assert run.returncode == 2 and "git worktree add" in run.stderr


def test_a_time_out_is_a_row(tmp_path, one_device):
    case = Case.parse(f"sample {SMALL} 1")
    args = arguments(tmp_path, phase="measure", budget=1.0)
    start = time.monotonic()
    (row,) = suite.run([case], args)
    assert row["failed"] == "took longer than 1 s" and time.monotonic() - start < 60
    args = arguments(tmp_path, deadline=0.0)
    (row,) = suite.run([case], args)
    assert "no time was left" in row["failed"]


def test_a_crash_is_told_by_its_last_words():
    crash = "import sys, os; sys.stderr.write('gone wrong'); os.abort()"
    found = harness.in_own_process([sys.executable, "-c", crash])
    assert found == {"failed": "exit -6: gone wrong"}
    full = "import sys; sys.exit('RESOURCE_EXHAUSTED: Out of memory while trying')"
    found = harness.in_own_process([sys.executable, "-c", full])
    assert found == {"failed": "out of memory"}


def test_long_runs_are_repeated_less():
    assert len(timing.timings(lambda: time.sleep(0.05), 20, limit=0.1)) == 2
    assert len(timing.timings(lambda: None, 20, limit=math.inf)) == 20


def test_queued_runs_leave_launch_and_wait_out(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def step():
        clock[0] += 2.0

    def wait(_):
        clock[0] += 5.0  # a launch and a wait, once in a queue

    monkeypatch.setattr(jax, "block_until_ready", wait)
    assert queued_seconds(step, 6) == 2.0
    assert timing.queued(step, 5) == 3.0 and timing.queued(step, 0) == 7.0
    assert timing.median_seconds(step, 3) == 7.0


def test_operations_are_counted_on_a_mesh_of_more_devices_than_there_are(tmp_path):
    case = Case.parse(f"train {SMALL} 2 terms=flow scan=1 depth=2")
    (row,) = suite.run([case], arguments(tmp_path, phase="count", mesh="data=2"))
    assert row["batch"] == 4 and row["changes"]["mesh.data"] == 2
    assert row["xla_tflop"] > row["model_tflop"] > 0


def test_cold_times_are_remembered_with_the_cache(tmp_path):
    with suite.opened(arguments(tmp_path)) as opened:
        case = Case.parse(f"train {SMALL} 2")
        first = {"compile_s": 40.0, "cached": False}
        opened._remember(case, first, at_once=5)
        row = opened._with_compile_times(case, {"compile_s": 2.0, "cached": True})
        assert row["cold_compile_s"] == 40.0 and row["warm_compile_s"] == 2.0
        alone = opened._with_compile_times(case, first)
        assert alone["at_once"] == 1 and "warm_compile_s" not in alone


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, monkeypatch, capsys):
    """As `python -m` runs it, but in this process, which has imported what it needs."""
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other tests have imported it
        runpy.run_module(f"benchmarks.{command}", run_name="__main__", alter_sys=True)
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"python -m benchmarks.{command}" in said
    assert json.dumps(str(harness.ROOT)) not in said
