"""A loss that is not finite, or a spike: back to a good state, past what led there."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from pixelflow_jax.errors import DIVERGED, DivergedError
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.guard import Guard, Watch
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.loop import train
from tests.marks import long
from tests.training import tiny
from tests.training.test_loop import poison, saved, with_batch

SPIKES = Guard(spike=20, window=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


def run_of(images, every=1, **fields):
    fields = {"checkpoint": Checkpointing(every=2)} | fields
    return tiny.run(images, log=Logging(every=every), **fields)


class Without:
    """A loader that passes over the batches `left_out`, counted from 0."""

    def __init__(self, loader, left_out, start):
        self._loader, self._left_out, self._number = loader, left_out, start

    def __iter__(self):
        return self

    def __next__(self):
        while True:
            batch, number = next(self._loader), self._number
            self._number += 1
            if number not in self._left_out:
                return batch

    def __getattr__(self, name):
        return getattr(self._loader, name)


def without(run, *left_out):
    """The run, as if those batches did not exist; from its beginning alone."""
    open_data = lambda start: Without(run.open_data(start), left_out, start)
    return dataclasses.replace(run, open_data=open_data)


def brighten(batch):
    batch["image"] = batch["image"] * 30


def events(workdir, kind="rollback"):
    lines = (workdir / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def wanted(images, tmp_path_factory):
    """The last state of the run that never sees batch 4."""
    return train(without(run_of(images), 4), tmp_path_factory.mktemp("wanted"))


@pytest.mark.parametrize(
    ("spoil", "guard", "every"),
    [
        (poison, Guard(), 3),
        (brighten, SPIKES, 1),
        long(poison, Guard(), 1),
        long(brighten, SPIKES, 3),
    ],
)
def test_a_run_goes_on_without_what_led_to_the_fault(
    images, wanted, tmp_path, capfd, every, spoil, guard
):
    """Batch 4 spoils step 5; the checkpoint before is of step 4."""
    run = run_of(images, every, guard=guard)
    state = train(with_batch(run, 4, spoil), tmp_path / "run")
    assert int(state.step) == 6 and saved(tmp_path / "run") == [2, 4, 6]
    tiny.assert_identical(state, wanted)

    (event,) = events(tmp_path / "run")
    assert (event["step"], event["to"], event["skipped"]) == (5, 4, [4, 4])
    assert "loss" in event["metrics"] and event["losses_before"]
    assert "Back to step 4, without the batches 4 to 4" in capfd.readouterr().out
    # The steps that led there stay in the history; those that replaced them follow.
    lines = tiny.history(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 5, 6]
    bad, good = (float(line["loss"]) for line in lines[4:6])
    assert not bad < 20 * good


def test_what_was_passed_over_stays_so_after_a_restart(images, tmp_path):
    run = run_of(images, checkpoint=Checkpointing(every=3))
    spoiled = with_batch(run, 1, poison)
    train(dataclasses.replace(spoiled, steps=3), tmp_path / "run")
    assert events(tmp_path / "run")[0]["skipped"] == [0, 1]  # it began anew
    state = train(run, tmp_path / "run")
    wanted = train(without(run, 0, 1), tmp_path / "wanted")
    tiny.assert_identical(state, wanted)


def test_it_gives_up_after_so_many_times_and_doubts_the_checkpoint(images, tmp_path):
    """Every batch from number 4 on is spoiled."""
    run = run_of(images, guard=Guard(rollbacks=2))
    spoiled = run
    for number in range(4, 12):
        spoiled = with_batch(spoiled, number, poison)
    with pytest.raises(
        DivergedError, match=r"Step \d is not finite.* 2 times"
    ) as error:
        train(spoiled, tmp_path)
    assert error.value.code == DIVERGED
    steps = [(event["step"], event["to"]) for event in events(tmp_path)]
    assert steps == [(5, 4), (5, 2)]
    assert len(events(tmp_path, "diverged")) == 1
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"2", "suspect-4"}
    # Nothing that is not finite was ever saved.
    state = tiny.saved_state(run, tmp_path)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(state.params))


def test_a_spike_is_measured_against_the_median_of_the_last_steps():
    watch = Watch(Guard(spike=3, window=4))
    quiet = [(step, {"loss": 1.0 + step / 100}) for step in range(1, 9)]
    assert watch.examine(quiet) is None
    assert watch.losses == [1.05, 1.06, 1.07, 1.08]
    assert watch.examine([(9, {"loss": 3.1}), (10, {"loss": 1.0})]) is None
    trouble = watch.examine([(11, {"loss": 1.0}), (12, {"loss": 3.3})])
    assert trouble.step == 12 and "more than 3 times the 1.0" in trouble.reason
    # Before half of the window is full nothing is usual yet.
    assert Watch(Guard(spike=3, window=4)).examine([(1, {"loss": 1e6})]) is None
    assert Watch(Guard()).examine(quiet + [(9, {"loss": 1e9})]) is None
    assert Watch(Guard(), [1.0]).losses == []


def test_an_infinite_gradient_is_noticed_though_the_loss_is_finite():
    watch = Watch(Guard())
    trouble = watch.examine([(7, {"loss": 1.0, "grad_norm": math.inf, "lr": 1e-3})])
    assert "Step 7 is not finite in grad_norm (" in trouble.reason
    assert trouble.facts["metrics"]["grad_norm"] == "inf"
