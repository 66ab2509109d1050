"""What is said where another process is lost, and what is left alone."""

import os
import signal
import subprocess
import sys

import jax
import pytest

from pixelflow_jax import peers
from pixelflow_jax.cli.terminal import refusing
from pixelflow_jax.errors import LOST, CheckpointError, LostError


@pytest.fixture
def joined(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)


GLOO = jax.errors.JaxRuntimeError("FAILED: Gloo all-reduce failed: Connection closed")


def test_a_failed_exchange_is_a_lost_process(joined):
    with pytest.raises(LostError, match=r"Gloo all-reduce failed.*the same command"):
        with peers.telling():
            raise GLOO


def test_it_is_found_behind_what_it_led_to(joined):
    with pytest.raises(LostError), peers.telling():
        try:
            raise GLOO
        except RuntimeError as error:
            raise CheckpointError("Could not write.") from error


def test_other_errors_and_processes_alone_are_left_as_they_are(joined, monkeypatch):
    memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    for error in (memory, ValueError("gloo")):
        with pytest.raises(type(error)) as caught, peers.telling():
            raise error
        assert caught.value is error
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    with pytest.raises(jax.errors.JaxRuntimeError), peers.telling():
        raise GLOO


def test_a_command_ends_with_its_own_code(joined, capsys):
    with pytest.raises(SystemExit) as caught, refusing("runs"), peers.telling():
        raise GLOO
    assert caught.value.code == LOST
    assert "LostError: An exchange with another process" in capsys.readouterr().err


def test_an_abort_from_any_thread_ends_with_a_sentence():
    """As JAX does it: in a thread of its own, while the main one waits in C."""
    code = (
        "import ctypes, threading, time; from pixelflow_jax import peers; "
        "peers.watch(); libc = ctypes.CDLL(None); "
        "threading.Timer(0.2, libc.abort).start(); libc.sleep(30)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == LOST != -signal.SIGABRT
    assert done.stderr.count("LostError: JAX ended this process") == 1
