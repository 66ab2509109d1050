"""A run whose folder lies on gs://, against a local emulator of the store.

It needs gcsfs (the extra "gcs") and the package gcp-storage-emulator.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from pixelflow_jax import remote, remote_runs
from pixelflow_jax.errors import ConfigError, UserError
from pixelflow_jax.pretrained import weights
from pixelflow_jax.training.loop import train
from tests.training import tiny

URL = "gs://bkt/runs/tiny run"
# The emulator, which says the generation of a file as the real one does.
SERVER = """
import sys
from gcp_storage_emulator.handlers import objects

plain = objects.download

def download(request, response, storage, *args, **kwargs):
    names = request.params["bucket_name"], request.params["object_id"]
    try:
        response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]
    except Exception:
        pass  # it will say itself what is missing
    return plain(request, response, storage, *args, **kwargs)

objects.download = download
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bkt").run()
"""


@pytest.fixture(scope="module")
def emulator():
    """The address of an emulator with the bucket "bkt"."""
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TENSORSTORE_GCS_HTTP_URL", "STORAGE_EMULATOR_HOST"):
            patch.setenv(name, address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/storage/v1/b/bkt", timeout=2)
                break
            except OSError:
                time.sleep(0.1)
        yield address
    process.terminate()
    process.wait()


@pytest.fixture
def images(tmp_path):
    return tiny.write_images(tmp_path / "images")


def sitting(images, steps, cache, monkeypatch):
    """One start of the run on a machine whose cache is `cache`."""
    monkeypatch.setenv(remote.CACHE, str(cache))
    run = remote_runs.folder(URL, "--workdir", ConfigError)
    with remote_runs.copied(run, alone=True):
        train(tiny.run(images, steps=steps), run)
    return run


def stored() -> list[str]:
    place = remote.located(URL)
    return remote.keys_below(remote.open_store(place), place.key)


@pytest.mark.slow
def test_a_run_goes_on_from_its_store_on_another_machine(
    emulator, images, tmp_path, monkeypatch
):
    train(tiny.run(images), tmp_path / "local")
    first = sitting(images, 3, tmp_path / "one", monkeypatch)
    names = [key.removeprefix("runs/tiny run/") for key in stored()]
    assert "metrics.jsonl" in names and "config.json" in names
    assert any(name.startswith("checkpoints/3/") for name in names)
    assert "run.lock" not in names
    assert list((first / "checkpoints").iterdir()) == []
    shutil.rmtree(tmp_path / "one")  # that machine is gone
    second = sitting(images, 6, tmp_path / "two", monkeypatch)
    assert tiny.history(second) == tiny.history(tmp_path / "local")
    found = weights.find(second)
    assert found.description.step == 6
    here = weights.find(tmp_path / "local")
    for name, tensor in here.tensors("0.9").items():
        theirs = found.tensors("0.9")[name]
        tiny.assert_identical(tensor.read(), theirs.read())


@pytest.mark.slow
def test_two_machines_cannot_be_at_work_in_it(emulator, tmp_path, monkeypatch):
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "one"))
    run = remote_runs.folder("gs://bkt/runs/locked", "--workdir", ConfigError)
    with remote_runs.copied(run, alone=True):
        (run / "metrics.jsonl").write_text("{}\n")
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
            with pytest.raises(UserError, match="at work in gs://bkt/runs/locked: pro"):
                with remote_runs.copied(run, alone=True):
                    pass
        store = remote.open_store(remote.located("gs://bkt/runs/locked"))
        key = "runs/locked/run.lock"
        record = json.loads(store.read(key).result().value)
        assert record["host"] == socket.gethostname() and record["pid"] == os.getpid()
    with remote_runs.copied(run, alone=True):  # the first has ended
        pass
    record |= {"host": "elsewhere", "seen": "2020-01-01 00:00:00+00:00"}
    store.write(key, json.dumps(record).encode()).result()
    with remote_runs.copied(run, alone=True):  # nothing was heard of it for years
        pass


def test_what_a_run_cannot_be_written_to_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(remote.CACHE, str(tmp_path))
    for name in ("s3://bucket/run", "gs://bucket"):
        with pytest.raises(ConfigError, match="the folder of a run is one of this"):
            remote_runs.folder(name, "--workdir", ConfigError)
    assert remote_runs.folder("runs/mine", "--workdir", ConfigError) is None
    assert remote_runs.folder(None, "--workdir", ConfigError) is None
    with remote_runs.copied(tmp_path, alone=True):
        pass
