"""Weights and shards in object stores, read through a local server of the protocols."""

import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax import remote, resources
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.prepare.shard_writer import (
    Encoding,
    ShardOptions,
    write_shards,
)
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.errors import DataError, PipelineError, UserError
from pixelflow_jax.pretrained import weights
from tests.store_server import serving

SCHEMES = ("gs", "s3")


@pytest.fixture(scope="module")
def served():
    """The server; TensorStore reads the environment once in a process."""
    with serving() as (store, address), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        yield store


@pytest.fixture
def store(served, tmp_path, monkeypatch):
    served.buckets.clear(), served.sent.clear(), served.denied.clear()
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
    return served


def put(store, folder, key):
    """A folder of this machine in the bucket."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name = f"{key}/{file.relative_to(folder).as_posix()}"
            store.write("bucket", name, file.read_bytes())


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    place = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for k in range(12):
        (place / "in" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(place / "in" / "ab"[k % 2] / f"{k:02d}.png")
    write_shards(
        {"train": ImageFolder(path=str(place / "in")).open("train")},
        place / "out",
        Encoding(size=8),
        description="",
        options=ShardOptions(shards=4),
    )
    return place / "out"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shards_are_brought_once(store, shards, scheme):
    put(store, shards, "data/set one")
    store.write("bucket", "data/set one more/other", b"of another folder")
    url = f"{scheme}://bucket/data/set one"
    here = Shards(path=str(shards)).open("train")
    for sent in (True, False):
        there = Shards(path=url).open("train")
        assert len(there) == len(here) == 12
        for k in range(12):
            assert there.stored(k).image == here.stored(k).image
        assert bool(store.sent) == sent
        assert not [key for key in store.sent if "more" in key]
        store.sent.clear()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_changed_is_brought_again(store, scheme):
    store.write("bucket", "w/a.bin", b"one")
    store.write("bucket", "w/b.bin", b"two")
    folder = remote.readable_path(f"{scheme}://bucket/w", "it")
    store.sent.clear()
    store.write("bucket", "w/b.bin", b"three")
    assert remote.readable_path(f"{scheme}://bucket/w/", "it") == folder
    assert store.sent == ["w/b.bin"] and (folder / "b.bin").read_bytes() == b"three"
    store.sent.clear()
    os.utime(folder / "a.bin")  # touched, not changed
    remote.readable_path(f"{scheme}://bucket/w", "it")
    assert not store.sent
    (folder / "a.bin").write_bytes(b"0ne")  # a bad disk
    remote.readable_path(f"{scheme}://bucket/w/a.bin", "it")
    assert store.sent == ["w/a.bin"] and (folder / "a.bin").read_bytes() == b"one"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights(store, scheme, tmp_path):
    file = resources.asset("emoji")
    if file.is_dir():
        put(store, file, "models/emoji")
        name = f"{scheme}://bucket/models/emoji"
    else:
        store.write("bucket", f"models/{file.name}", file.read_bytes())
        name = f"{scheme}://bucket/models/{file.name}"
    found, here = weights.find(name), weights.find("emoji")
    assert found.description == here.description
    assert str(tmp_path / "cache") in found.where


def test_damage_on_the_way_is_seen(store, shards):
    put(store, shards, "damaged")
    files = store.buckets["bucket"]
    key = next(key for key in files if key.endswith("0-of-00004.array_record"))
    content = bytearray(files[key][0])
    content[100] ^= 1
    store.write("bucket", key, bytes(content))
    with pytest.raises(DataError, match="holds other bytes than were written"):
        Shards(path="gs://bucket/damaged").open("train")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sums_beside_the_files_are_compared(store, scheme):
    store.write("bucket", "w/x.bin", b"content")
    right = hashlib.sha256(b"content").hexdigest()
    store.write("bucket", "w/SHA256SUMS", f"{right}  x.bin\n{right} *absent\n".encode())
    folder = remote.readable_path(f"{scheme}://bucket/w", "it")
    store.write("bucket", "w/x.bin", b"c0ntent")
    with pytest.raises(UserError, match="x.bin of .* is not what its SHA256SUMS says"):
        remote.readable_path(f"{scheme}://bucket/w", "it")
    assert not (folder / "x.bin").exists()
    store.write("bucket", "w/x.bin", b"content")
    remote.readable_path(f"{scheme}://bucket/w", "it")
    assert (folder / "x.bin").read_bytes() == b"content"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_cannot_be_read_is_named(store, scheme):
    store.write("bucket", "w/x.bin", b"content")
    store.write("secret", "x", b"")
    store.denied.add("secret")
    for url, said in {
        f"{scheme}://bucket/nothing": "There is nothing at",
        f"{scheme}://bucket": "a whole bucket: name a folder in it",
        f"{scheme}://other/w": "nothing at" if scheme == "gs" else "cannot be read",
        f"{scheme}://secret/x": "that you may read",
    }.items():
        with pytest.raises(UserError, match=said) as refused:
            Shards(path=url).open("train")
        assert len(str(refused.value)) < 800
    with pytest.raises(PipelineError):
        weights.find(f"{scheme}://other/w")


def test_other_stores_are_refused_by_name():
    for name in ("az://b/x", "http://x/y", "abfs://b/x"):
        with pytest.raises(DataError, match="is neither read nor written here"):
            Shards(path=name).open("train")
    with pytest.raises(DataError, match="gs:// is neither read nor written here"):
        ImageFolder(path="gs://bucket/images").open("train")


def test_names_that_would_leave_the_cache_are_refused(store):
    store.write("bucket", "w/../../x", b"")
    with pytest.raises(UserError, match="is no name of a file"):
        remote.readable_path("s3://bucket/w", "it")
