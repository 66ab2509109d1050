"""Digests of files: every small damage is seen, in whatever part of a file."""

import random

import numpy as np
import pytest

from pixelflow_jax import digests

SIZES = (0, 1, 7, 8, 4096, digests.PART - 1, digests.PART + 9, 3 * digests.PART)


def digest(path, content: bytes, kind=digests.SUMS) -> tuple[int, str]:
    path.write_bytes(content)
    return next(digests.of_files([path], kind))


@pytest.mark.parametrize("kind", digests.KINDS)
def test_a_digest_depends_on_the_content_alone(tmp_path, kind):
    contents = [random.Random(size).randbytes(size) for size in SIZES]
    for k, content in enumerate(contents):
        (tmp_path / f"{k}").write_bytes(content)
    paths = [tmp_path / f"{k}" for k in range(len(SIZES))]
    found = list(digests.of_files(paths, kind))
    assert [size for size, _ in found] == list(SIZES)
    assert len({text for _, text in found}) == len(SIZES)
    assert found == list(digests.of_files(paths, kind))


def test_large_files_are_hashed_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "BLOCK", digests.PART)
    content = bytearray(random.Random(0).randbytes(3 * digests.PART + 5))
    whole = digest(tmp_path / "a", content)
    part = digests.PART
    swapped = content[part : 2 * part] + content[:part] + content[2 * part :]
    assert digest(tmp_path / "a", swapped) != whole
    content[-1] ^= 1
    assert digest(tmp_path / "a", content) != whole


def flips(content: bytes, rng) -> bytes:
    bits = bytearray(content)
    for bit in rng.sample(range(8 * len(bits)), rng.choice((1, 2))):
        bits[bit // 8] ^= 1 << bit % 8
    return bits


def swap(content: bytes, rng) -> bytes:
    words = np.frombuffer(content, np.uint64).copy()
    length = rng.choice((1, 2, 64, 512, 1024))  # words; up to a row
    one, other = sorted(rng.sample(range(len(words) // length), 2))
    first, second = (slice(k * length, (k + 1) * length) for k in (one, other))
    words[first], words[second] = words[second].copy(), words[first].copy()
    return words.tobytes()


def zeros(content: bytes, rng) -> bytes:
    start, length = rng.randrange(len(content)), rng.choice((1, 512, 4096))
    end = min(len(content), start + length)
    return content[:start] + bytes(end - start) + content[end:]


def shift(content: bytes, rng) -> bytes:
    place = rng.randrange(len(content))
    return content[place:] + content[:place]


@pytest.mark.parametrize("damage", [flips, swap, zeros, shift])
def test_damages_change_the_digest(tmp_path, damage):
    rng = random.Random(1)
    content = rng.randbytes(5 * 8192)
    whole = digest(tmp_path / "a", content)
    for _ in range(100):
        damaged = bytes(damage(content, rng))
        same = digest(tmp_path / "a", damaged) == whole
        assert same == (damaged == content)
