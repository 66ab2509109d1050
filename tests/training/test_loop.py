"""The loop: it stops where it must, and says why."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from pixelflow_jax.errors import DataError, DivergedError
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.guard import Guard
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.loop import train
from pixelflow_jax.training.signals import stop_signals
from tests.marks import long
from tests.training import tiny


@pytest.fixture(scope="module")
def images(tiny_run):
    return tiny_run.images


@pytest.fixture(scope="module")
def whole(tiny_run):
    """The last state of the run that nothing disturbs."""
    return tiny_run.state


class Changed:
    """A loader whose batch number `at` is changed by `change`."""

    def __init__(self, loader, at, change, start):
        self._loader, self._at, self._change = loader, at, change
        self._number = start

    def __iter__(self):
        return self

    def __next__(self):
        batch, self._number = dict(next(self._loader)), self._number + 1
        if self._number - 1 == self._at:
            self._change(batch)
        return batch

    def __getattr__(self, name):
        return getattr(self._loader, name)


def with_batch(run, at, change):
    """The run, with batch number `at` (from 0) changed."""
    return dataclasses.replace(
        run,
        open_data=lambda start: Changed(run.open_data(start), at, change, start),
    )


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def poison(batch):
    batch["image"] = np.full_like(batch["image"], np.nan)


@pytest.mark.parametrize("every", [3, long(1), long(100)])
def test_a_run_that_is_not_finite_ends_and_saves_nothing_more(
    images, whole, tmp_path, every
):
    """Step 5 takes a bad batch; whatever the rhythm of the reports, 4 is the last."""
    policy = Checkpointing(every=2)
    log, guard = Logging(every=every), Guard(rollbacks=0)
    run = tiny.run(images, checkpoint=policy, log=log, guard=guard)
    with pytest.raises(DivergedError) as caught:
        train(with_batch(run, 4, poison), tmp_path)
    message = str(caught.value)
    assert "Step 5 is not finite in" in message and "loss=nan" in message
    for name in ("FlowMatching", "grad_norm", "--config.optimizer.lr"):
        assert name in message
    assert "\n" not in message
    assert saved(tmp_path) == [2, 4]
    *finite, last = [line["loss"] for line in tiny.history(tmp_path)]
    assert np.isfinite(finite).all() and len(finite) == 4 and last == "nan"
    # The advice holds: with a good batch the same command goes on.
    tiny.assert_identical(train(run, tmp_path), whole)


def test_a_label_the_model_does_not_know_is_refused(images, tmp_path):
    """An embedding would silently make it NaN, or the label of another class."""

    def mislabel(batch):
        batch["label"] = np.where(np.arange(8) == 3, 7, batch["label"])

    run = with_batch(tiny.run(images), 4, mislabel)
    with pytest.raises(DataError, match=r"labels \[7\] are out of range.*0 to 2"):
        train(run, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_returns_after_the_step(
    images, whole, tmp_path, number, capfd
):
    """Sent while batch 2 is read ahead, in the middle of a step's turn."""
    before = signal.getsignal(number)
    run = tiny.run(images, checkpoint=Checkpointing(every=100), log=Logging(every=50))
    send = with_batch(run, 2, lambda batch: os.kill(os.getpid(), number))
    state = train(send, tmp_path)
    assert 1 <= int(state.step) <= 3 and saved(tmp_path) == [int(state.step)]
    assert signal.getsignal(number) is before
    out, err = capfd.readouterr()
    assert f"Stopped after step {int(state.step)}" in out
    assert f"{number.name}: saving" in err
    # What was computed is in the history, and the next sitting completes it.
    assert len(tiny.history(tmp_path)) == int(state.step)
    tiny.assert_identical(train(run, tmp_path), whole)


def test_the_second_signal_has_its_usual_effect():
    with stop_signals() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_handlers_are_given_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError), stop_signals():
        assert signal.getsignal(signal.SIGINT) is not before
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_does_nothing(images, tmp_path):
    run = tiny.run(images, steps=2)
    state = train(run, tmp_path)
    history = tiny.history(tmp_path)
    again = train(run, tmp_path)
    tiny.assert_identical(again, state)
    assert tiny.history(tmp_path) == history


def test_the_state_stays_where_it_is_and_is_not_copied(images, tmp_path):
    """Donated to the step, laid out as it began: no second state in memory."""
    run = tiny.run(images, steps=2)
    first = run.fresh_state()
    layout = jax.tree.map(lambda a: a.sharding, first)
    last = train(run, tmp_path)
    assert jax.tree.map(lambda a: a.sharding, last) == layout
