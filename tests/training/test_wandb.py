"""Weights & Biases, with the real package and without its service."""

import importlib.util
import time

import numpy as np
import pytest

from pixelflow_jax.training import wandb_events
from pixelflow_jax.training.log import Logging
from tests.training.test_log import open_log


def holds(workdir, parts: list[bytes]) -> list[bool]:
    """For each sitting, whether the package's own record holds all `parts`."""
    records = [path.read_bytes() for path in workdir.glob("wandb/offline-*/*.wandb")]
    return [all(part in record for part in parts) for record in records]


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
    parts = [run_id, b"emoji", b"mine", b"loss", b"0.625", b"data_wait"]
    end = time.monotonic() + 120  # its second process writes a little later
    while holds(tmp_path, parts) != [True, True] and time.monotonic() < end:
        time.sleep(0.2)
    assert holds(tmp_path, parts) == [True, True]
    media = sorted(tmp_path.glob("wandb/offline-*/files/media/*/*"))
    pages = [path.read_text() for path in media if path.suffix == ".html"]
    assert any("a &lt;b> &amp; c" in page for page in pages)
    assert any('"resume"' in page for page in pages)
    assert len([path for path in media if path.suffix == ".png"]) == 2


def test_what_cannot_be_written_to_is_said_with_the_config(monkeypatch):
    assert Logging().problems() == []
    (problem,) = Logging(wandb="team/project").problems()
    assert "log.wandb='team/project'" in problem
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = Logging(wandb="emoji").problems()
    assert "pip install 'pixelflow_jax[wandb]'" in problem
