"""The scripts of launch/, with stand-ins for what they start."""

import os
import pathlib
import shutil
import signal
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.iterdir())


def stand_in(path: pathlib.Path, body: str) -> pathlib.Path:
    """A program that does what `body` says."""
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


def run(*words, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(word) for word in words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_scripts_are_sound(script):
    checks = [["bash", "-n"]]
    if shutil.which("shellcheck"):
        checks.append(["shellcheck"])
    for check in checks:
        done = run(*check, script)
        assert done.returncode == 0, done.stdout + done.stderr


def test_local_gives_each_process_its_number_and_its_device(tmp_path):
    one = stand_in(tmp_path / "one", 'echo "$JAX_LOCAL_DEVICE_IDS $XLA_FLAGS $*"')
    done = run(
        *(LAUNCH / "local.sh", one, "--a=b c"),
        **{"PROCESSES": "3", "PORT": "123", "CPU_DEVICES": "4", "XLA_FLAGS": "--x"},
    )
    devices = "--x --xla_force_host_platform_device_count=4"
    assert done.returncode == 0 and sorted(done.stdout.splitlines()) == [
        f"{i} {devices} --a=b c --coordinator=localhost:123 --num_processes=3 "
        f"--process_id={i}"
        for i in range(3)
    ]
    assert run(LAUNCH / "local.sh").returncode == 2


def test_local_ends_the_others_where_one_fails(tmp_path):
    body = 'case "$*" in *process_id=1) exit 3;; esac; exec sleep 50'
    done = run(LAUNCH / "local.sh", stand_in(tmp_path / "one", body), GRACE="0")
    assert done.returncode == 3


def test_local_hands_a_signal_on(tmp_path):
    wait = "for i in {1..200}; do sleep 0.1; done"
    body = f"trap 'echo saved; exit 0' TERM; echo ready; {wait}"
    one = stand_in(tmp_path / "one", body)
    script = subprocess.Popen(
        [LAUNCH / "local.sh", one], stdout=subprocess.PIPE, text=True
    )
    assert [script.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    script.send_signal(signal.SIGTERM)
    assert [script.stdout.readline() for _ in range(2)] == ["saved\n"] * 2
    assert script.wait(30) == 0


def test_slurm_starts_its_tasks_with_srun(tmp_path):
    stand_in(tmp_path / "srun", 'printf "%s\\n" "$@"')
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", LAUNCH / "slurm.sbatch", "--config.name=a b"]
    done = run(*script, PATH=path, CONFIG="emoji", WORKDIR="runs/x y")
    assert done.stdout.splitlines() == [
        *("--kill-on-bad-exit=1", "pixelflow", "train", "--config=emoji"),
        *("--workdir=runs/x y", "--config.name=a b"),
    ]
