"""The doctor finds what is wrong, says so, and ends with a code that is not 0."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.cli import doctor
from pixelflow_jax.data.loader import BatchLoader
from pixelflow_jax.doctor import kernels, machine, page
from pixelflow_jax.doctor.run import Patient
from pixelflow_jax.errors import ConfigError, DataError
from pixelflow_jax.sharding import MeshShape
from pixelflow_jax.training.checkpoint import Checkpointer
from tests.training import tiny

TAKES_ALL = "versions devices rates kernels collectives config loader steps checkpoint"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


def examined(*checks: page.Check) -> list[page.Outcome]:
    return list(page.examine(list(checks)))


def broken() -> list[str]:
    raise RuntimeError("the device is gone")


def useless() -> list[str]:
    raise page.Skip("nothing to do")


def test_a_check_that_fails_stops_no_other():
    first, second, third = examined(
        page.Check("one", broken),
        page.Check("two", useless),
        page.Check("three", lambda: ["fine"]),
    )
    assert (first.state, second.state, third.state) == ("FAILED", "skipped", "ok")
    assert first.lines[0] == "RuntimeError: the device is gone"
    assert "test_doctor.py" in first.lines[-1] and "in broken" in first.lines[-1]
    text = page.summary([first, second, third])
    assert text == "1 ok, 1 skipped, 1 failed: one"


def test_the_page_is_as_wide_as_a_page():
    outcome = page.Outcome("name", "ok", 0.25, ["word " * 60, "a\nb"])
    lines = page.shown(outcome).splitlines()
    assert all(len(line) <= page.WIDTH for line in lines)
    assert " ".join(lines).split().count("word") == 60
    assert lines[0].startswith("name        ok         0.2 s  word")
    assert [line.strip() for line in lines[-2:]] == ["a", "b"]


def test_kernels_that_are_off_are_named(monkeypatch):
    """One that is right, one whose gradient alone is not, and one of NaN."""

    @jax.custom_vjp
    def half(a):
        return a

    half.defvjp(lambda a: (a, None), lambda _, g: (g / 2,))
    variants = {
        "right": lambda given, a: (a * 2,),
        "halved": lambda given, a: (half(a) if given.blocks == "pallas" else a,),
        "lost": lambda given, a: (a * jnp.nan if given.blocks == "pallas" else a,),
    }
    listed = [
        kernels.Operation(name, function, ((4, 4),), "blocks")
        for name, function in variants.items()
    ]
    monkeypatch.setattr(kernels, "operations", lambda sizes: listed)
    with pytest.raises(ValueError, match="More than 0.0001") as failure:
        kernels.check("float32")
    told = str(failure.value).splitlines()[1:-1]
    assert [line.split()[0] for line in told] == ["halved", "lost"]
    assert "off by 0.0e+00, gradients 5.0e-01" in told[0]


@pytest.mark.slow
@pytest.mark.long
def test_the_kernels_are_right_here():
    lines = kernels.check("float32")
    assert len(lines) == len(kernels.operations(kernels.TINY)) == 5
    assert sum("interpreted" in line for line in lines) == 4


def test_exchanges_that_give_other_numbers_are_named(monkeypatch):
    mesh = MeshShape().build()
    lines = machine.collectives(mesh)
    assert lines[0] == "all-reduce, all-gather, all-to-all, permute are right"
    wrong = machine.COLLECTIVES[0]._replace(expected=lambda a: a.sum(0) + (a[0] == 7))
    monkeypatch.setattr(machine, "COLLECTIVES", (wrong,))
    with pytest.raises(ValueError, match="all-reduce over 8 devices gave other numb"):
        machine.collectives(mesh)
    with pytest.raises(page.Skip):
        monkeypatch.setattr(jax, "device_count", lambda: 1)
        machine.collectives(mesh)


def test_what_the_machine_is(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    text = "\n".join(machine.versions())
    assert f"jax {jax.__version__}" in text and "NCCL_DEBUG=INFO" in text
    assert machine.devices(MeshShape(fsdp=2).build())[:2] == [
        "8 x cpu (cpu)",
        "processes: 1, hosts: 1; mesh data=4, fsdp=2, tensor=1",
    ]
    monkeypatch.setattr(machine, "matmul_rate", lambda dtype: 1e14)
    monkeypatch.setattr(machine, "copy_rate", lambda: 4e12)
    monkeypatch.setattr(machine, "peak_rate", lambda dtype: 1e15)
    first, second = machine.rates("bfloat16")
    assert "10% of the published" in first and "is low" in second


@pytest.mark.slow
def test_a_config_that_is_well_and_a_checkpoint_that_is_not(
    images, tmp_path, monkeypatch
):
    config = tiny.experiment(images, mesh=MeshShape(fsdp=2))
    patient = Patient(config, tmp_path / "there")
    checkpoint = page.Check("checkpoint", patient.checkpoint)
    outcomes = examined(
        page.Check("config", patient.built),
        page.Check("loader", patient.loader),
        page.Check("steps", patient.steps),
        checkpoint,
    )
    assert [o.state for o in outcomes] == ["ok"] * 4, outcomes
    built, loader, steps, saved = (outcome.lines for outcome in outcomes)
    assert "0.1M parameters" in built[0] and "batch 8" in built[0]
    assert "images/s in this process" in loader[0]
    assert steps[0].count(",") == 4 and "images/s" in steps[2]
    assert "equal to the last bit" in saved[0]
    assert list((tmp_path / "there").iterdir()) == []  # what it wrote is gone
    restore = Checkpointer.restore

    def damaged(self, *given):
        state, data = restore(self, *given)
        bias = state.params["denoiser"]["patch_embed"]["bias"]
        state.params["denoiser"]["patch_embed"]["bias"] = bias.at[0].add(1)
        return state, data

    monkeypatch.setattr(Checkpointer, "restore", damaged)
    (outcome,) = examined(checkpoint)
    assert outcome.state == "FAILED" and "arrays are not what was saved" in str(outcome)
    assert "patch_embed" in str(outcome)


def test_a_config_that_is_ill_fails_and_the_rest_is_skipped(images):
    config = tiny.experiment(images, batch_size=7)
    checks = doctor.checks_of(config, None)
    built, *others = examined(*doctor.chosen(["loader", "steps", "checkpoint"], checks))
    assert built.state == "FAILED" and "batch_size=7" in built.lines[0]
    assert [other.state for other in others] == ["skipped"] * 3


def test_data_that_cannot_be_read_fails(images, monkeypatch):
    patient = Patient(tiny.experiment(images), None)
    patient.built()

    def unreadable(self):
        raise DataError("too many images are unreadable")

    monkeypatch.setattr(BatchLoader, "__next__", unreadable)
    (outcome,) = examined(page.Check("loader", patient.loader))
    assert outcome.lines == ["DataError: too many images are unreadable"]


def test_the_exit_code_says_whether_anything_failed(images, monkeypatch, capsys):
    config = tiny.experiment(images)
    for run, code in ((lambda: ["fine"], 0), (useless, 0), (broken, 1)):
        found = [page.Check("one", run)]
        monkeypatch.setattr(doctor, "checks_of", lambda *given, f=found: f)
        assert doctor.run_doctor(config, None, []) == code
    assert "1 failed: one" in capsys.readouterr().out


def test_checks_are_chosen_with_what_they_need():
    checks = [page.Check(name, useless) for name in TAKES_ALL.split()]
    names = lambda *only: [c.name for c in doctor.chosen(list(only), checks)]
    assert names() == TAKES_ALL.split()
    assert names("checkpoint", "rates") == ["rates", "config", "steps", "checkpoint"]
    with pytest.raises(ConfigError, match="there is no check device; there are versi"):
        names("device")


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_are_examined_together(images, tmp_path):
    """One page, of process 0; what one process finds wrong is found by all."""
    config = tiny.write_config(tmp_path / "config.py", images)
    words = [sys.executable, "-m", "pixelflow_jax", "doctor", f"--config={config}"]
    words += ["--only=devices,collectives,loader,checkpoint"]
    environment = tiny.environment(cache=False) | {"CPU_DEVICES": "2"}
    done = subprocess.run(
        [str(tiny.ROOT / "launch" / "local.sh"), *words],
        env=environment,
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("processes: 2, hosts: 1; mesh data=4") == 1
    assert "all-reduce, all-gather, all-to-all, permute are right" in done.stdout
    assert done.stdout.endswith("6 ok, 0 skipped, 0 failed\n")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(), (3,), (1, 64, 2, 40)])  # long ones by vectors
def test_what_is_not_finite_is_infinitely_far_off(shape, value):
    fine, broken = np.ones(shape, np.float32), np.full(shape, value, np.float32)
    off = lambda *pair: kernels.deviation(*jax.tree.map(jnp.asarray, pair))
    assert off((fine, 2 * fine), (fine, fine)) == 1
    assert off((fine, broken), (fine, fine)) == np.inf
    assert off((broken, fine), (fine, fine)) == np.inf
    assert off((fine,), (broken,)) == np.inf
