"""Files that version 0.1.0 wrote load, sample, resume and export as they did then.

tests/files/v1 holds them, with the numbers that the code of then read from them. On the
kind of CPU and with the jax that those were recorded on, all are the same to the last
bit; elsewhere programs may round differently.
"""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from pixelflow_jax import build, renamed
from pixelflow_jax.config_files import load_config
from pixelflow_jax.config_io import ABSENT, differences
from pixelflow_jax.config_versions import FORMAT, VERSION, migrate
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.nn.kernels.choice import Kernels
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.step import abstract_state
from tests import old_files
from tests.marks import long
from tests.training import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = ROOT / "tests" / "files" / "v1"
CONFIGS = {
    name: json.loads((FILES / name / "config.json").read_text())
    for name in old_files.RUNS
}


@pytest.fixture(scope="module")
def expected() -> dict:
    """The facts of then, in the words of now."""
    text = (FILES / "expected.json").read_text()
    for old, new in renamed.STATE.items():
        text = text.replace(f'"{old}/', f'"{new}/').replace(f'"{old}":', f'"{new}":')
    return json.loads(text)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_becomes_one_of_today(name):
    assert FORMAT not in CONFIGS[name]
    config = Experiment.from_dict(CONFIGS[name])
    written = config.to_dict()
    assert written[FORMAT] == VERSION and Experiment.from_dict(written) == config
    # What was written then is there, and what is new takes its default.
    changed = differences(migrate(CONFIGS[name]), written)
    assert {old for old, _ in changed.values()} <= {ABSENT}, changed


def test_every_word_of_then_is_read():
    """Choices that no run of the files makes."""
    old = json.loads(json.dumps(CONFIGS["run"]))
    old["model"]["loop"] |= {"unroll": 4, "kernels": "xla"}
    old["model"]["decoder"] |= {"kernel": "pallas"}
    old["model"]["attention"] = "cudnn"
    ends = {"neither": "()", "low": "[)", "high": "(]", "both": "[]"}
    for closed, interval in ends.items():
        old["sampling"]["guidance"]["closed"] = closed
        config = Experiment.from_dict(old)
        assert config.sampling.guidance.interval == interval
    assert (config.model.stack.scan, config.model.stack.unroll) == (True, 4)
    assert config.kernels == Kernels(blocks="xla", field="pallas", attention="cudnn")
    old["model"]["decoder"]["kernel"] = "einsum"
    assert Experiment.from_dict(old).kernels.field == "xla"
    old["model"]["loop"]["unroll"] = 0
    config = Experiment.from_dict(old)
    assert (config.model.stack.scan, config.model.stack.unroll) == (False, 1)
    old["sampling"]["doubled"] = True
    with pytest.raises(ConfigError, match="sampling.doubled"):
        Experiment.from_dict(old)


@pytest.mark.parametrize("version", [VERSION + 1, 0, "2", None, True])
def test_a_config_of_a_version_that_does_not_exist_is_refused(version):
    with pytest.raises(ConfigError, match="reads those up to 2: update pixelflow_jax"):
        Experiment.from_dict({**CONFIGS["run"], FORMAT: version})


def test_the_config_of_an_old_run_is_a_config_file():
    config = load_config(str(FILES / "run" / "config.json"), ["--config.steps=9"])
    assert config.name == "v1" and config.steps == 9
    assert config.model.feature_layer == CONFIGS["run"]["model"]["tap"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_state_of_a_run_is_restored_to_the_last_bit(name, expected, monkeypatch):
    monkeypatch.chdir(FILES)
    config = old_files.config_of(name)
    mesh = MeshShape().build(jax.devices()[:1])
    settings = build.step_settings(config)
    reader = Checkpointer(pathlib.Path(name, "checkpoints"), None)
    abstract = abstract_state(build.objective(config), settings, mesh)
    as_today = lambda saved: Experiment.from_dict(saved).to_dict()
    state, _ = reader.restore(4, abstract, config.to_dict(), as_today)
    reader.close()
    facts = expected["resumed"][name]["4"]
    for part, fact in old_files.state_facts(state).items():
        assert fact == facts[part], part


@pytest.mark.parametrize("name", [*old_files.RUNS, "published"])
def test_weights_are_what_they_were(name, expected, monkeypatch):
    monkeypatch.chdir(FILES)
    pipeline = Pipeline.from_pretrained(name)
    run = name if name in old_files.RUNS else "run"
    facts = expected["samples"][run]
    assert list(pipeline.class_names) == facts["class_names"]
    assert (pipeline.step, pipeline.origin) == (facts["step"], facts["origin"])
    ema = {
        path.removeprefix("0.9/"): digest
        for path, digest in expected["resumed"][run]["4"]["ema"].items()
        if path.startswith("0.9/")
    }
    assert old_files.digests(jax.device_get(pipeline.params)) == ema


def test_weights_of_one_file_are_what_they_were(monkeypatch):
    """They were written in half precision."""
    monkeypatch.chdir(FILES)
    single = Pipeline.from_pretrained("single.safetensors")
    whole = Pipeline.from_pretrained("published")
    assert single.config.model == whole.config.model and single.origin == whole.origin
    halved = jax.tree.map(
        lambda a: a.astype("bfloat16").astype("float32"), whole.params
    )
    tiny.assert_identical(single.params, halved)


def cpu() -> str:
    """The processor and its generation, where Linux says it.

    Virtual machines give processors of several generations one name, and XLA compiles
    for each in its own way.
    """
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    lines = (rf"^{key}\s*: (.*)" for key in ("model name", "cpu family", "model"))
    found = [re.search(line, text, re.MULTILINE) for line in lines]
    name, family, model = (match[1] if match else "" for match in found)
    return f"{name}, family {family}, model {model}"


# Weights of models with a neural field: the matrices of a patch come from one product
# now and came from two, which sums a gradient, and rounds, in another order.
FIELDS = ("run", "run_text", "published", "single")
ROUNDINGS = {"sample": 5e-7, "resumed": 1e-5}


EVERY = long(tuple(old_files.RUNS))


@pytest.mark.slow
@pytest.mark.parametrize("go_on", [("run_cascade",), EVERY], ids=["one", "every"])
def test_what_they_give_is_what_they_gave(expected, tmp_path, go_on):
    """Samples, exports, and the steps of runs that go on."""
    script = ROOT / "tests" / "old_files.py"
    done = subprocess.run(
        [sys.executable, script, FILES, tmp_path / "now", *go_on],
        capture_output=True,
        text=True,
        env=tiny.environment(optimised=True),  # as recorded
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    settings = expected["settings"]
    exact = (settings["jax"], settings["cpu"]) == (jax.__version__, cpu())
    now = json.loads((tmp_path / "now.json").read_text())
    assert now["exports"] == expected["exports"]
    for name in go_on:
        for step, facts in expected["resumed"][name].items():
            # The line of step 4 was written then, in the words of then.
            same = dict(now["resumed"][name][step])
            metrics, then = same.pop("metrics"), facts["metrics"]
            facts = {key: fact for key, fact in facts.items() if key != "metrics"}
            field = name in FIELDS
            if int(step) > 4:
                bound = 1e-6 if field else 0
                bound = bound if exact else 1e-3
                # Reports hold more than they did.
                found = {key: metrics[key] for key in then}
                assert found == pytest.approx(then, rel=bound, abs=0)
            if int(step) <= 4 or not field:
                assert not exact or same == facts, (name, step)
    with np.load(FILES / "expected.npz") as old, np.load(tmp_path / "now.npz") as new:
        for name in old.files:
            kind, of, *_ = name.split("/")
            if kind in ("sample", "default") or (kind == "resumed" and of in go_on):
                array = new[name.replace("/heads/", "/projectors/")]
                bound = 3 if kind == "default" else 1e-2
                if exact:
                    rounded = of in FIELDS and kind != "default"
                    bound = ROUNDINGS[kind] if rounded else 0
                np.testing.assert_allclose(
                    array, old[name], rtol=0, atol=bound, err_msg=name
                )


def test_the_next_checkpoint_of_an_old_run_is_of_today(tmp_path):
    """Its config says so, and is read without the words of then."""
    config = dataclasses.replace(old_files.config_of(FILES / "run"), steps=4)
    assert config.to_dict()[FORMAT] == VERSION
    words = json.dumps(config.to_dict())
    assert not any(f'"{old}"' in words for old in (*renamed.FIELDS, *renamed.CLASSES))
