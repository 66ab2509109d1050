"""Prompts from files, and as tokens."""

import numpy as np
import pytest

from pixelflow_jax.conditioning.prompts import Prompts, read_prompts
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.errors import DataError


def test_a_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    text = (
        "\ufeff# fruit\n  a red apple \r\n\n\t\n#more\na cat, asleep\n\u82f9\u679c #1"
    )
    path.write_text(text, encoding="utf-8")
    found = read_prompts(path)
    assert found.prompts == ["a red apple", "a cat, asleep", "\u82f9\u679c #1"]
    assert (found.blank, found.comments) == (2, 2)
    # Whether the last line is ended makes no difference; only ends of lines count.
    path.write_text(text + "\n", encoding="utf-8")
    assert read_prompts(str(path)) == found
    path.write_text("a\u2028b\x0cc\n\n", encoding="utf-8")
    assert read_prompts(path) == (["a\u2028b\x0cc"], 1, 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no prompts, only 0 blank lines and 0 comments"),
        (b"\n  \n# nothing\n", "only 2 blank lines and 1 comments"),
        ("a\nb\ncaf\u00e9".encode("latin1"), r"byte 7 \(0xe9, in line 3\).*UTF-8"),
        ("a".encode("utf-16"), r"byte 0 \(0xff, in line 1\)"),
    ],
    ids=["empty", "comments", "latin1", "utf16"],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, content, words):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_prompts(path)
    assert "prompts.txt" in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "nope.txt", tmp_path):
        with pytest.raises(DataError, match="cannot be read: "):
            read_prompts(path)


def test_every_distinct_text_is_read_once(monkeypatch):
    asked = []

    def read(texts):
        asked.extend(texts)
        tokens = np.array([[len(text), 7] for text in texts], np.int32)
        return {"tokens": tokens, "mask": tokens > 6}

    monkeypatch.setattr(Text, "caption_encoder", lambda self: read)
    given = Prompts(Text()).read(["aa", "b", "aa", ""], ["", "b", "ccc", ""])
    assert sorted(asked) == ["", "aa", "b", "ccc"]
    assert given["tokens"][:, 0].tolist() == [2, 1, 2, 0]
    assert given["negative_tokens"][:, 0].tolist() == [0, 1, 3, 0]
    assert given["mask"].shape == given["negative_mask"].shape == (4, 2)
    assert sorted(given) == ["mask", "negative_mask", "negative_tokens", "tokens"]
