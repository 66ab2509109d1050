"""Runs made longer: the learning rates are those that were said, and stay so."""

import dataclasses
import json

import pytest

from pixelflow_jax.cli import extending
from pixelflow_jax.cli.train import run_training
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.training.optimizer import AdamW
from tests.training import tiny

STEPS = 4
COSINE = AdamW(lr=1e-2, schedule="cosine", final=0.1)


def experiment(images, steps, optimizer=COSINE):
    return tiny.experiment(images, steps=steps, optimizer=optimizer, ema=(0.5,))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run of four steps with a decaying learning rate."""
    workdir = tmp_path_factory.mktemp("run")
    run_training(experiment(images, STEPS), workdir)
    return workdir


def test_another_number_of_steps_says_what_it_does_and_how_to_go_on(finished, images):
    with pytest.raises(ConfigError) as caught:
        extending.resumed(experiment(images, 8), finished, None)
    message = str(caught.value)
    jump = experiment(images, 8).optimizer.learning_rate(8)(STEPS)
    for part in (
        "cosine",
        "0.001",
        f"{float(jump):.3g}",
        "--extend=restart",
        "-constant",
    ):
        assert part.strip("-") in message
    assert len(message.splitlines()) == 3


def test_a_restarted_run_learns_at_the_rates_of_a_new_one(finished, images, tmp_path):
    """Also in later sittings, which give no flag."""
    longer = experiment(images, 7)
    config = extending.resumed(longer, finished, "restart")
    run_training(longer, finished, "restart")
    rates = [line["lr"] for line in tiny.history(finished)]
    anew = COSINE.learning_rate(3)
    assert rates[STEPS:] == pytest.approx([float(anew(k)) for k in range(3)])
    written = json.loads((finished / "config.json").read_text())
    assert written["optimizer"]["extended"] == [
        {"class": "Extension", "step": STEPS, "planned": STEPS, "kind": "restart"}
    ]
    assert extending.resumed(longer, finished, None) == config
    run_training(longer, finished)
    twice = extending.resumed(experiment(images, 9), finished, "constant")
    assert [one.step for one in twice.optimizer.extended] == [STEPS, 7]
    with pytest.raises(ConfigError, match="at step 7, so that nothing is left"):
        extending.resumed(experiment(images, STEPS), finished, None)


def test_an_extension_that_was_not_saved_yet_is_known_from_the_config(
    finished, images, tmp_path
):
    begun = extending.begun(finished)
    assert begun is not None
    longer = dataclasses.replace(begun.config, steps=begun.config.steps + 3)
    extended = extending.resumed(longer, finished, "constant")
    before = (finished / "config.json").read_text()
    (finished / "config.json").write_text(json.dumps(extended.to_dict()))
    again = extending.resumed(longer, finished, None)
    (finished / "config.json").write_text(before)
    assert again.optimizer.extended == extended.optimizer.extended


def test_a_rate_that_has_faded_is_not_kept(finished, images, monkeypatch):
    faded = dataclasses.replace(COSINE, final=0.0)
    run = extending.Begun(STEPS, experiment(images, STEPS, faded))
    monkeypatch.setattr(extending, "begun", lambda workdir: run)
    longer = experiment(images, 8, faded)
    with pytest.raises(ConfigError, match="Take --extend=restart"):
        extending.resumed(longer, finished, "constant")
    with pytest.raises(ConfigError, match="for nothing"):
        extending.resumed(longer, finished, None)


def test_a_constant_rate_goes_on_without_a_word(images, finished, monkeypatch):
    constant = AdamW(lr=1e-2, warmup=2)
    run = extending.Begun(STEPS, experiment(images, STEPS, constant))
    monkeypatch.setattr(extending, "begun", lambda workdir: run)
    longer = experiment(images, 8, constant)
    assert extending.resumed(longer, finished, None) == longer


def test_a_warm_up_shrinks_with_the_run_and_says_so(images, capsys):
    config = experiment(images, 100, AdamW(warmup=50))
    assert extending.with_steps(config, 80).optimizer.warmup == 50
    assert not capsys.readouterr().out
    assert extending.with_steps(config, 30).optimizer.warmup == 3
    assert "steps=30: the warm-up takes 3 of them, not 50." in capsys.readouterr().out


def test_only_a_run_that_has_begun_is_extended(images, tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        extending.resumed(experiment(images, 8), tmp_path, "constant")
