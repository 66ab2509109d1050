"""Weights on the Hugging Face Hub: its real client, against a server of our own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from pixelflow_jax import Pipeline
from pixelflow_jax.tensors import hub
from tests.hub_server import TOKEN, serve
from tests.training import tiny

# What a user does in Python; {x} stands for places. Every step's outcome is printed.
SCRIPT = """
import json, sys
import numpy as np
from pixelflow_jax import Pipeline

run, address, token = sys.argv[1:]
outcomes = {}


def note(name, step):
    try:
        outcomes[name] = step()
    except ValueError as error:
        outcomes[name] = f"{type(error).__name__}: {error}"


own = Pipeline.from_pretrained(run)
raw = Pipeline.from_pretrained(run, ema="raw")


def drawn(pipeline):
    return pipeline.generate([0, 1], seed=3).images.tobytes().hex()


def load(name, **options):
    return lambda: drawn(Pipeline.from_pretrained(name, **options))


note("push", lambda: own.push_to_hub("some/one", token=token, samples=["flags"]))
note("own", lambda: drawn(own))
note("raw", lambda: drawn(raw))
note("load", load("some/one"))
message = {"commit_message": "Other weights", "dtype": "bfloat16"}
other = {"revision": "v2", "token": token, **message}
note("branch", lambda: raw.push_to_hub("some/one", **other))
note("load branch", load("some/one", revision="v2"))
note("load branch by name", load("some/one@v2"))
note("main is as it was", load("some/one"))
note("private", lambda: own.push_to_hub("some/secret", private=True, token=token))
note("load private", load("some/secret"))
note("stranger", lambda: own.push_to_hub("some/other"))
note("unknown", load("some/nothing"))
note("no revision", load("some/one", revision="v9"))
note("bad name", load("some/--one"))
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def workdir(tiny_run, tmp_path_factory):
    images, workdir = tiny_run.images, tiny_run.copy(tmp_path_factory.mktemp("run"))
    tiny.write_config(
        workdir / "tuned.py", images, "config.init_from = 'some/one@v2'\nconfig.steps=2"
    )
    return workdir


@pytest.fixture(scope="module")
def server():
    with serve() as (address, content):
        yield address, content


def environment(address: str, home: pathlib.Path) -> dict[str, str]:
    changes = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(tiny.ROOT),
    }
    kept = {k: v for k, v in tiny.environment().items() if not k.startswith("HF_")}
    return kept | changes


@pytest.fixture(scope="module")
def outcomes(workdir, server, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, workdir, server[0], TOKEN],
        env=environment(server[0], home),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_pushed_loads_bit_for_bit(outcomes, server):
    address, content = server
    assert outcomes["push"] == f"{address}/some/one"
    assert outcomes["load"] == outcomes["own"] != outcomes["raw"]
    files = content.commits[content.branches["some/one"]["main"]]
    wanted = ["README.md", "config.json", "model.safetensors", "samples.png"]
    assert sorted(set(files) - {".gitattributes"}) == wanted
    card = files["README.md"].decode()
    assert 'Pipeline.from_pretrained("some/one")' in card and "samples.png" in card
    # The picture is for people: only what is loaded was fetched.
    assert set(content.fetched) == {"config.json", "model.safetensors"}


def test_a_branch_holds_weights_of_its_own(outcomes, server):
    address, content = server
    assert outcomes["branch"] == f"{address}/some/one"
    assert outcomes["load branch"] == outcomes["load branch by name"]
    assert outcomes["load branch"] not in (outcomes["load"], outcomes["raw"])
    assert outcomes["main is as it was"] == outcomes["load"]
    assert content.messages[:2] == ["Upload weights", "Other weights"]
    branches = content.branches["some/one"]
    sizes = [
        len(content.commits[branches[name]]["model.safetensors"])
        for name in ("v2", "main")
    ]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("load private", ["PipelineError", "RepositoryNotFoundError", "hf auth login"]),
        ("stranger", ["HubError", "some/other cannot be uploaded", "hf auth login"]),
        ("unknown", ["There is no some/nothing on this disk", "check the name"]),
        ("no revision", ["RevisionNotFoundError", "branch, tag or commit"]),
        ("bad name", ["No weights at some/--one"]),
    ],
)
def test_what_goes_wrong_says_what_to_do(outcomes, server, step, words):
    for part in words:
        assert part in outcomes[step]
    assert "\n" not in outcomes[step]
    assert server[1].private == {"some/secret"}


def test_the_command_line_takes_names_of_the_hub(
    outcomes, workdir, server, tmp_path, monkeypatch
):
    assert outcomes["branch"]
    for name, value in environment(server[0], tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    nowhere = "--weights=some/nothing"
    commands = {
        "sample": [f"--workdir={tmp_path}", "--mode=sample", "--weights=some/one"],
        "typo": [f"--workdir={tmp_path}", "--mode=sample", nowhere],
        "no run": ["--workdir=some/one", "--mode=sample"],
        "tune": [f"--workdir={tmp_path}/run", f"--config={workdir}/tuned.py"],
    }
    done = tiny.outcomes(commands)
    assert done["sample"]["code"] == done["tune"]["code"] == 0, done
    report = (tmp_path / "run" / "init_from.txt").read_text()
    assert report.startswith("init_from=some/one@v2: step 6 of the run 'tiny', without")
    for name in ("typo", "no run"):
        assert done[name]["code"] == 1 and "Traceback" not in done[name]["error"]
    assert "There is no some/nothing on this disk" in done["typo"]["error"]
    # A workdir is a path, and never looked for elsewhere.
    assert "No weights at some/one" in done["no run"]["error"]


def test_without_a_network_the_folder_is_asked_for(tmp_path):
    lines = (
        "from pixelflow_jax import Pipeline\n"
        "try:\n    Pipeline.from_pretrained('some/one')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", lines],
        env=environment("http://127.0.0.1:9", tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "There is no some/one on this disk, and some/one cannot be" in done.stdout
    assert "hf download" in done.stdout, done.stdout + done.stderr


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"needs the package.*pixelflow_jax\[hub\]"):
        Pipeline.from_pretrained("some/one")
    with pytest.raises(hub.HubError, match=r"Uploading some/one needs the package"):
        options = dict.fromkeys(("private", "revision", "token"))
        hub.upload("some/one", pathlib.Path(os.curdir), message="m", **options)
