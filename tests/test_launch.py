"""The scripts of launch/, with stand-ins for what they start."""

import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import subprocess
import tarfile
import time

import pytest
import yaml
from absl.testing import flagsaver

from pixelflow_jax import distributed, errors, main  # noqa: F401  defines the flags
from pixelflow_jax.cli import arguments, parser, shared

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def stand_in(path: pathlib.Path, body: str) -> pathlib.Path:
    """A program that does what `body` says."""
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


# A program that writes down how it was called, which files it was given, and what it
# was told on its input; ANSWER is its output.
RECORDING = r"""
printf '%s\0' "$(basename "$0")" "$@" $'\n' >> "$CALLS"
for word in "$@"; do test ! -f "$word" || cp "$word" "$CALLS.file"; done
test "${!#}" != - || cat > "$CALLS.stdin"
printf '%s' "${ANSWER:-}"
"""


def recorded(tmp_path, script: str, name: str, *words, **variables: str) -> list:
    """The calls of program `name` that a script makes, as lists of words."""
    stand_in(tmp_path / name, RECORDING)
    calls = tmp_path / "calls"
    calls.unlink(missing_ok=True)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run(LAUNCH / script, *words, PATH=path, CALLS=str(calls), **variables)
    assert done.returncode == 0, done.stderr
    return calls_in(calls)


def calls_in(path: pathlib.Path) -> list[list[str]]:
    """The calls that stand-ins have written down there."""
    return [call.split("\0")[:-1] for call in path.read_text().split("\n\0")[:-1]]


def run(*words, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(word) for word in words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
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


@pytest.mark.parametrize(
    "variable", ["PROCESSES=0", "PROCESSES=two", "CPU_DEVICES=0", "PORT=x", "GRACE=-1"]
)
def test_local_refuses_what_starts_nothing(tmp_path, variable):
    name, _, value = variable.partition("=")
    done = run(
        LAUNCH / "local.sh", stand_in(tmp_path / "one", "echo x"), **{name: value}
    )
    assert done.returncode == 2 and not done.stdout
    assert f"{variable} must be a whole number of at least" in done.stderr


def test_local_ends_the_others_where_one_fails(tmp_path):
    body = 'case "$*" in *process_id=1) exit 3;; esac; exec sleep 50'
    done = run(LAUNCH / "local.sh", stand_in(tmp_path / "one", body), GRACE="0")
    assert done.returncode == 3


@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_local_hands_a_signal_on(tmp_path, name):
    wait = "for i in {1..200}; do sleep 0.1; done"
    body = f"trap 'echo saved; exit 0' {name}; echo ready; {wait}"
    one = stand_in(tmp_path / "one", body)
    script = subprocess.Popen(
        [LAUNCH / "local.sh", one], stdout=subprocess.PIPE, text=True
    )
    assert [script.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    script.send_signal(signal.Signals[f"SIG{name}"])
    assert [script.stdout.readline() for _ in range(2)] == ["saved\n"] * 2
    assert script.wait(300) == 0


def slurm(tmp_path, code: int = 0, **variables: str) -> tuple[int, list]:
    """The batch script's exit code and calls, where srun ends with `code`."""
    stand_in(tmp_path / "srun", f"{RECORDING}\nexit {code}")
    stand_in(tmp_path / "scontrol", RECORDING)
    calls = tmp_path / "calls"
    calls.unlink(missing_ok=True)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", LAUNCH / "slurm.sbatch", "--config.name=a b"]
    given = {"PATH": path, "CALLS": str(calls), "SLURM_JOB_ID": "7"}
    done = run(*script, **given | variables)
    return done.returncode, calls_in(calls)


def test_slurm_starts_its_tasks_with_srun(tmp_path):
    code, (call,) = slurm(tmp_path, CONFIG="emoji", WORKDIR="runs/x y")
    assert code == 0 and call == [
        *("srun", "--kill-on-bad-exit=0", "--wait=120", "pixelflow", "train"),
        *("--config=emoji", "--workdir=runs/x y", "--config.name=a b"),
    ]


KILLED = 137
AGAIN = (errors.STOPPED, errors.LOST, KILLED)
HOPELESS = [errors.WRONG, parser.WRONG, errors.DIVERGED]


@pytest.mark.parametrize("code", [*HOPELESS, *AGAIN])
def test_slurm_queues_again_what_was_interrupted(tmp_path, code):
    again = code in AGAIN
    found, (_, *then) = slurm(tmp_path, code)
    assert found == code
    assert then == ([["scontrol", "requeue", "7"]] if again else [])
    _, calls = slurm(tmp_path, code, SLURM_RESTART_COUNT="50")
    assert len(calls) == 1  # often enough


# What a TPU's script calls, by the command that it is given.
TPU = "gcloud compute tpus tpu-vm"
AT = "pixelflow --zone=us-central1-a"
CREATE = f"{TPU} create {AT} --accelerator-type=v5litepod-8 "
CREATE += "--version=v2-alpha-tpuv5-lite --spot"


@pytest.mark.parametrize(
    ("command", "calls"),
    [
        ("create", [CREATE]),
        ("delete", [f"{TPU} delete {AT} --quiet"]),
        ("logs", [f"{TPU} ssh {AT} --worker=0 --command="]),
        ("stop", [f"{TPU} ssh {AT} --worker=all --command="]),
    ],
)
def test_a_tpu_is_made_and_removed(tmp_path, command, calls):
    found = recorded(tmp_path, "tpu.sh", "gcloud", command)
    for call, line in zip(found, calls, strict=True):
        assert " ".join(call).startswith(line)


def test_a_tpu_gets_this_checkout_on_all_hosts(tmp_path):
    scp, ssh = recorded(tmp_path, "tpu.sh", "gcloud", "install", MOUNT="mount /x")
    assert scp[:5] == [*TPU.split(), "scp"] and scp[-1] == "--worker=all"
    assert scp[6] == "pixelflow:pixelflow.tar.gz"
    with tarfile.open(tmp_path / "calls.file") as archive:
        assert {"setup.py", "pixelflow_jax/__init__.py"} <= set(archive.getnames())
    assert "--worker=all" in ssh and "mount /x" in ssh[-1]
    assert "./source[tpu]" in ssh[-1]
    assert run("bash", "-n", "-c", ssh[-1].partition("=")[2]).returncode == 0


def test_a_tpu_trains_in_the_background(tmp_path):
    """What it is given arrives on the hosts word for word."""
    words = ["--config.name=a b", '--config.seed="1"']
    (ssh,) = recorded(tmp_path, "tpu.sh", "gcloud", "run", *words)
    body = ssh[-1].removeprefix("--command=")
    host = tmp_path / "host"
    (host / "env" / "bin").mkdir(parents=True)
    stand_in(host / "env/bin/pixelflow", 'printf "%s\\n" "$@"; exec sleep 30')
    start = ["sh", "-c", f"cd {host}; {body}"]
    assert run(*start).returncode == 0
    pid = int((host / "pixelflow.pid").read_text())
    try:
        again = run(*start)
        assert again.returncode == 1 and "running" in again.stderr
        log = host / "train.log"
        end = time.monotonic() + 60
        while words[-1] not in log.read_text() and time.monotonic() < end:
            time.sleep(0.1)  # on busy cores it may not have begun
    finally:
        os.kill(pid, signal.SIGKILL)
    assert log.read_text().splitlines() == [
        *("train", "--config=pixnerd:xl16_256", "--workdir=/mnt/runs/pixnerd_xl"),
        *words,
    ]


@pytest.mark.parametrize(
    ("state", "called"),
    [
        ("READY", ["describe", "ssh"]),
        ("PREEMPTED", ["describe", "delete", "create", "scp", "ssh", "ssh"]),
        ("", ["describe", "create", "scp", "ssh", "ssh"]),
    ],
)
def test_a_tpu_that_was_taken_away_is_made_anew(tmp_path, state, called):
    calls = recorded(tmp_path, "tpu.sh", "gcloud", "resume", ANSWER=state)
    assert [call[4] for call in calls] == called
    dry = run(LAUNCH / "tpu.sh", "resume", DRY="1")
    assert dry.returncode == 0 and f"{TPU} create" in dry.stderr


@pytest.mark.parametrize("script", ["tpu.sh", "jobset.sh"])
@pytest.mark.parametrize("words", [(), ("dance",), ("show",)])
def test_other_commands_are_refused(script, words):
    assert run(LAUNCH / script, *words).returncode == 2


# The fields of a JobSet (jobset.x-k8s.io/v1alpha2), and of the job and pod in it, that
# are used, with their types.
CONTAINER = {
    "name": str,
    "image": str,
    "args": [str],
    "ports": [{"containerPort": int}],
    "resources": {"limits": {"nvidia.com/gpu": int, "google.com/tpu": int}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {
        "cloud.google.com/gke-tpu-accelerator": str,
        "cloud.google.com/gke-tpu-topology": str,
    },
    "containers": [CONTAINER],
    "volumes": [
        {
            "name": str,
            "persistentVolumeClaim": {"claimName": str},
            "emptyDir": {"medium": str},
        }
    ],
}
EXIT_CODES = {"containerName": str, "operator": str, "values": [int]}
JOB = {
    "completionMode": str,
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [{"action": str, "onExitCodes": EXIT_CODES}]},
    "template": {"spec": POD},
}
RULE = {"name": str, "action": str, "onJobFailureReasons": [str]}
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": {
        "name": str,
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": str},
    },
    "spec": {
        "failurePolicy": {"maxRestarts": int, "rules": [RULE]},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}


def conforms(value: object, schema: object, path: str = "") -> None:
    """Fails where a value is not of the fields and types that a schema has."""
    if isinstance(schema, dict):
        assert isinstance(value, dict) and set(value) <= set(schema), path
        for name, inner in value.items():
            conforms(inner, schema[name], f"{path}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, path
        for inner in value:
            conforms(inner, schema[0], f"{path}[]")
    else:
        assert type(value) is schema, f"{path}: {value!r}"


def jobset(kind: str, *words: str, **variables: str) -> dict:
    """What `launch/jobset.sh show` writes."""
    done = run(LAUNCH / "jobset.sh", "show", kind, *words, **variables)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_a_jobset_is_one(kind):
    words = ["--config.name=a & \\b", '--config.log.wandb="x"']
    variables = {"NAME": "mine", "HOSTS": "4", "SLICES": "2", "IMAGE": "r/p:1"}
    found = jobset(kind, *words, **variables)
    conforms(found, JOBSET)
    (replicated,) = found["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 4
    assert replicated["replicas"] == (2 if kind == "tpu" else 1)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "r/p:1" and container["args"][-2:] == words
    assert [v["name"] for v in pod["volumes"]] == [
        mount["name"] for mount in container["volumeMounts"]
    ]
    assert "${" not in json.dumps(found)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == HOPELESS


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_what_a_jobset_runs_can_be_read(kind):
    spec = jobset(kind, "--config.steps=20")["spec"]["replicatedJobs"][0]
    verb, *rest = spec["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    with flagsaver.flagsaver():
        line = arguments.read(rest, verb)
        assert line.changes == ["--config.steps=20"]
        assert shared.WORKDIR.value.startswith("/runs/")


def test_the_pods_of_a_jobset_find_each_other():
    """By the name that JobSet gives pod 0, and the number that each pod is given."""
    found = jobset("gpu", NAME="mine", HOSTS="4")
    (replicated,) = found["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    pairs = [word.partition("=") for word in pod["containers"][0]["args"]]
    given = {name: value for name, _, value in pairs}
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}
    joining = distributed.find(
        given["--coordinator"], int(given["--num_processes"]), None, environment
    )
    host = f"mine-{replicated['name']}-0-0.mine"  # JOBSET-JOB-REPLICA-POD.JOBSET
    assert joining == distributed.Joining("Kubernetes", f"{host}:12345", 4, 3)


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (("check", "gpu"), "kubectl apply --dry-run=server -f -"),
        (("start", "tpu", "--config.steps=20"), "kubectl apply -f -"),
        (("delete",), "kubectl delete jobset pixelflow"),
    ],
)
def test_a_jobset_is_handed_to_the_cluster(tmp_path, words, called):
    (call,) = recorded(tmp_path, "jobset.sh", "kubectl", *words)
    assert " ".join(call) == called
    if called.endswith("-"):
        conforms(yaml.safe_load((tmp_path / "calls.stdin").read_text()), JOBSET)


def test_the_logs_of_a_jobset_are_those_of_process_0(tmp_path):
    (call,) = recorded(tmp_path, "jobset.sh", "kubectl", "logs", NAME="mine")
    assert call[:3] == ["kubectl", "logs", "-f"]
    labels = call[-1].removeprefix("--selector=").split(",")
    assert set(labels) == {
        "jobset.sigs.k8s.io/jobset-name=mine",
        "jobset.sigs.k8s.io/job-index=0",
        "batch.kubernetes.io/job-completion-index=0",
    }


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, with what stands behind each."""
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_images_are_built_from_what_there_is(monkeypatch):
    """No engine builds them here: their sources, stages and extras are looked up."""
    found = instructions()
    known = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "ENTRYPOINT", "CMD", "RUN"}
    assert {name for name, _ in found} == known
    stages = [words.split(" AS ") for name, words in found if name == "FROM"]
    assert [name for _, name in stages] == ["source", "cpu", "gpu", "tpu"]
    assert {base for base, _ in stages[1:]} == {"source"}
    copied = [w for name, words in found if name == "COPY" for w in words.split()[:-1]]
    sent = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert sorted(copied) == sorted(sent)
    assert all((ROOT / path).exists() for path in copied)
    given: dict = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **words: given.update(words))
    runpy.run_path(str(ROOT / "setup.py"))
    (default,) = [words for name, words in found if words.startswith("EXTRAS=")]
    installed = [words for name, words in found if name == "RUN"]
    for line in installed:
        (extras,) = re.findall(r'^pip install "\.\[(.+)\]"$', line)
        extras = extras.replace("${EXTRAS}", default.partition("=")[2])
        assert set(extras.split(",")) <= set(given["extras_require"])
    for name, words in found:
        if name in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(words))
