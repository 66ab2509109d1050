"""Weights & Biases, with the real package and without its service."""

import importlib.util

import numpy as np
import pytest

from pixelflow_jax.training import wandb_events
from pixelflow_jax.training.log import Logging
from tests.training.test_log import open_log


def records(workdir) -> list[bytes]:
    """What the package has written for each sitting, in order."""
    return [
        path.read_bytes()
        for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb"))
    ]


@pytest.mark.slow
def test_a_run_is_written_and_gone_on_with(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the package wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    picture = np.zeros((4, 6, 3), np.uint8)
    given = {"wandb": "emoji", "config": {"name": "mine", "steps": 7}}
    for start in (0, 4):
        with open_log(tmp_path, start=start, **given) as log:
            log.metrics(start + 2, [(start + 2, {"loss": 0.625, "lr": 1e-4})])
            log.picture(start + 2, picture)
            log.text("parameters", "a <b> & c")
            log.event(start, "resume", devices=8)
    run_id = (tmp_path / wandb_events.ID).read_text().strip().encode()
    first, second = records(tmp_path)
    for record in (first, second):
        for part in (run_id, b"emoji", b"mine", b"loss", b"0.625", b"data_wait"):
            assert part in record
    pages = [
        path.read_text()
        for path in tmp_path.rglob("wandb/offline-run-*/files/media/html/*")
    ]
    assert any("a &lt;b> &amp; c" in page for page in pages)
    assert any('"resume"' in page for page in pages)
    assert (
        len(list(tmp_path.rglob("wandb/offline-run-*/files/media/images/samples*.png")))
        == 2
    )


def test_what_cannot_be_written_to_is_said_with_the_config(monkeypatch):
    assert Logging().problems() == []
    (problem,) = Logging(wandb="team/project").problems()
    assert "log.wandb='team/project'" in problem
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = Logging(wandb="emoji").problems()
    assert "pip install 'pixelflow_jax[wandb]'" in problem
