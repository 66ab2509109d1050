"""The index of a folder: versions, fields that were renamed, damage."""

import dataclasses
import json

import pytest

from pixelflow_jax.data.features import FORMAT as FEATURES
from pixelflow_jax.data.index import IndexFormat, read_index, write_index
from pixelflow_jax.data.shards import FORMAT as SHARDS
from pixelflow_jax.errors import DataError

FORMAT = IndexFormat(
    name="index.json",
    field="files",
    version=3,
    oldest=1,
    contents="things",
    files="things",
    absent="is not a folder of things",
    command="make things",
    renamed={2: {"entries": "files", "how_many": "number"}, 3: {"number": "count"}},
)
ENTRY = {"file": "a", "bytes": 2}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").write_bytes(b"xx")
    return tmp_path


def write(folder, content):
    (folder / "index.json").write_text(json.dumps(content))


def refused(folder, format=FORMAT):
    with pytest.raises(DataError) as error:
        read_index(folder, format)
    return str(error.value)


def test_what_is_written_is_read(folder):
    content = {"files": [ENTRY | {"count": 5}], "more": None}
    write_index(folder, FORMAT, content)
    assert read_index(folder, FORMAT) == {"version": 3, **content}
    text = (folder / "index.json").read_text()
    assert text.startswith('{"version": 3, ') and len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    [
        {"version": 1, "entries": [ENTRY | {"how_many": 5}], "how_many": 5},
        {"version": 2, "files": [ENTRY | {"number": 5}], "number": 5},
        {"version": 3, "files": [ENTRY | {"count": 5}], "count": 5},
    ],
)
def test_earlier_versions_are_read_in_todays_names(folder, content):
    write(folder, content)
    index = read_index(folder, FORMAT)
    assert index["count"] == 5 and index["files"] == [ENTRY | {"count": 5}]


@pytest.mark.parametrize("version", [0, None, "3"])
def test_unknown_versions_are_refused(folder, version):
    write(folder, {"version": version, "files": []})
    message = refused(folder)
    assert f"version {version} and this program reads version 3" in message
    assert "prepare the things again" in message


def test_newer_versions_ask_for_a_newer_program(folder):
    write(folder, {"version": 4, "files": []})
    message = refused(folder)
    assert "has version 4 and this program reads version 3" in message
    assert "a newer pixelflow_jax wrote it" in message


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"version": 3}', '{"version": 3, "files": [{}]}']
)
def test_a_damaged_index_is_named(folder, text):
    (folder / "index.json").write_text(text)
    assert "index.json is damaged" in refused(folder)


def test_an_absent_index_and_damaged_files_are_named(folder):
    message = refused(folder)
    assert "is not a folder of things (no index.json)" in message
    assert "`make things`" in message
    entries = [ENTRY, ENTRY | {"bytes": 3}, ENTRY | {"file": "b"}]
    write(folder, {"version": 3, "files": entries})
    message = refused(folder)
    assert "2 of 3 things in" in message and "a has 2 bytes instead of 3" in message
    assert "b is missing" in message


@pytest.mark.parametrize("format", [SHARDS, FEATURES])
def test_the_formats_rename_towards_versions_that_they_read(format):
    """A rename that no version leads to would never be applied."""
    assert 1 <= format.oldest <= format.version
    assert set(format.renamed) <= set(range(format.oldest + 1, format.version + 1))
    assert dataclasses.replace(format) == format
