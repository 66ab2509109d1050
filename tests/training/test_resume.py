"""A run that was cut goes on as if nothing had happened: the same bits."""

import dataclasses
import random
import time

import pytest

from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.loop import train
from tests.marks import long
from tests.training import tiny

STEPS, EVERY = 240, 20


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


HALF = long("bfloat16")


@pytest.mark.parametrize("compute", ["float32", HALF])
def test_two_sittings_equal_one(images, tmp_path, compute):
    """Warm-up, clipping, dropped labels, two averages, and the order of the data."""
    fields = {"steps": 7, "precision": Precision(compute=compute)}
    whole = tiny.run(images, **fields)
    expected = train(whole, tmp_path / "whole")
    train(tiny.run(images, **fields | {"steps": 4}), tmp_path / "cut")
    assert len(tiny.history(tmp_path / "cut")) == 4
    state = train(tiny.run(images, **fields), tmp_path / "cut")
    tiny.assert_identical(state, expected)
    tiny.assert_identical(tiny.saved_state(whole, tmp_path / "cut"), expected)
    cut, uncut = (tmp_path / name / "metrics.jsonl" for name in ("cut", "whole"))
    assert cut.read_text() == uncut.read_text()
    assert [line["step"] for line in tiny.history(tmp_path / "cut")] == [*range(1, 8)]


def test_what_must_be_restored_does_change_the_losses(images, tmp_path):
    """Dropping and clipping are at work in the runs above."""
    base = tiny.experiment(images)
    changes = {
        "as it is": {},
        "drop": {"conditioner": dataclasses.replace(base.conditioner, drop=0.0)},
        "clip": {"optimizer": dataclasses.replace(base.optimizer, clip=0.0)},
    }
    losses = set()
    for name, change in changes.items():
        train(tiny.run(images, steps=5, **change), tmp_path / name)
        losses.add(tuple(line["loss"] for line in tiny.history(tmp_path / name)))
    assert len(losses) == len(changes)


def kill_when(process, condition) -> bool:
    """SIGKILL as soon as `condition()` holds; False where the process ended before."""
    deadline = time.monotonic() + tiny.PATIENCE
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.002)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_with_the_same_bits(images, tmp_path):
    """SIGKILL between two saves, while a save is written and just after one."""
    changes = f"config.steps = {STEPS}\nconfig.checkpoint.every = {EVERY}"
    config = tiny.write_config(tmp_path / "config.py", images, changes)

    def start(name, cache=True):
        arguments = f"--config={config}", f"--workdir={tmp_path / name}"
        return tiny.command(*arguments, cache=cache)

    def saved(least):
        found = (tmp_path / "cut" / "checkpoints").glob("*")
        return any(path.name.isdigit() and int(path.name) >= least for path in found)

    def saving():
        return any((tmp_path / "cut" / "checkpoints").glob("*orbax-checkpoint-tmp*"))

    def steps_done(count):
        history = tmp_path / "cut" / "metrics.jsonl"
        return history.exists() and history.read_text().count("\n") >= count

    whole = start("whole", cache=False)  # compiled for itself alone
    assert tiny.finish(whole)[0] == 0
    moment = random.randrange(2 * EVERY, 4 * EVERY)
    assert kill_when(start("cut"), lambda: saved(EVERY) and steps_done(moment)), moment
    assert kill_when(start("cut"), lambda: saved(3 * EVERY) and saving())
    assert kill_when(start("cut"), lambda: saved(6 * EVERY))
    assert not steps_done(STEPS)
    code, out, _ = tiny.finish(start("cut"))
    assert code == 0 and "Going on from step" in out

    assert tiny.history(tmp_path / "cut") == tiny.history(tmp_path / "whole")
    run = tiny.run(
        images, steps=STEPS, checkpoint=Checkpointing(every=EVERY), devices=1
    )
    states = [tiny.saved_state(run, tmp_path / name) for name in ("cut", "whole")]
    assert int(states[0].step) == STEPS
    tiny.assert_identical(*states)
