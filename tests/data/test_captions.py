"""Captions on their way into batches: which one, when, and read by whom."""

import logging

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.data.captions import clean, from_json, from_text
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.source import spread_captions
from pixelflow_jax.errors import DataError, NoCaption
from tests.data import words
from tests.data.batches import open_loader
from tests.data.words import Codepoints, WordReader, texts

# Workers do not find the modules of tests: send them the readers themselves.
cloudpickle.register_pickle_by_value(words)

COUNT, SIZE = 12, 4
READER = Codepoints(8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Image k has k in its red channel and the captions "k a", "k b" and "k c"."""
    root = tmp_path_factory.mktemp("captioned")
    for k in range(COUNT):
        write(root, k, "".join(f"{k} {letter}\n" for letter in "abc"))
    return root


def write(root, k, text):
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[..., 0] = k
    pixels[..., 1] = np.arange(SIZE) * 10
    Image.fromarray(pixels).save(root / f"{k:03d}.png")
    if text is not None:
        content = text if isinstance(text, bytes) else text.encode()
        (root / f"{k:03d}.txt").write_bytes(content)


def make_data(root, allow_missing=False, **fields):
    source = ImageFolder(
        path=str(root), labels=False, captions=True, allow_missing=allow_missing
    )
    return Data(source=source, **{"image_size": SIZE, "threads": 2} | fields)


def take(data, count, **options):
    options = {
        "split": "train",
        "batch_size": 4,
        "seed": 3,
        "caption_encoder": READER,
    } | options
    with open_loader(data, **options) as loader:
        return [next(loader) for _ in range(count)]


def numbers(batch):
    return np.round((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()


def pairs(batches):
    """(image, letter of its caption) in order; checks that they belong together."""
    found = []
    for batch in batches:
        for k, text in zip(numbers(batch), texts(batch), strict=True):
            number, letter = text.split()
            assert int(number) == k
            found.append((k, letter))
    return found


def test_a_caption_is_drawn_for_each_image_and_epoch(folder):
    drawn = pairs(take(make_data(folder), 90))  # thirty epochs
    epochs = [dict(drawn[i : i + COUNT]) for i in range(0, len(drawn), COUNT)]
    assert all(len(epoch) == COUNT for epoch in epochs)
    for k in range(COUNT):
        assert {epoch[k] for epoch in epochs} == set("abc")
    letters = [letter for _, letter in drawn]
    counts = np.array([letters.count(letter) for letter in "abc"])
    assert abs(counts - 120).max() < 4.5 * np.sqrt(360 * 2 / 9)


def test_the_draw_depends_on_seed_epoch_and_record_alone(folder):
    expected = pairs(take(make_data(folder), 12))
    data = make_data(folder, threads=4)
    assert pairs(take(make_data(folder, workers=2), 6, start=6)) == expected[24:]
    assert pairs(take(data, 6, batch_size=8)) == expected  # no batch counts
    parts = [take(data, 12, parts=(i,), part_count=2) for i in (0, 1)]
    assert pairs(p[k] for k in range(12) for p in parts) == expected
    assert pairs(take(data, 12, seed=4)) != expected


def test_captions_leave_images_as_they_are(folder):
    plain = take(make_data(folder), 6, caption_encoder=None)
    assert set(plain[0]) == {"image", "label"}
    for one, other in zip(plain, take(make_data(folder), 6), strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        assert set(other) == {"image", "label", "points"}


def test_a_pass_for_evaluation_takes_the_first(folder):
    batches = take(make_data(folder), 3, repeat=False, shuffle=False)
    assert pairs(batches) == [(k, "a") for k in range(COUNT)]
    assert set(batches[0]) == {"image", "label", "points", "weight"}


def test_other_captions_or_readers_are_other_data(folder, tmp_path):
    def state(root=folder, **options):
        options = {"split": "train", "batch_size": 4, "seed": 3} | options
        data = options.pop("data", make_data(root))
        with open_loader(data, **{"caption_encoder": READER} | options) as loader:
            return loader, loader.state()

    loader, saved = state()
    loader.check(saved)
    for k in range(COUNT):
        write(tmp_path, k, f"{k} z")
    changes = {
        "captions was None": {"caption_encoder": None},
        r"captions was 'points int32\[9\]": {"caption_encoder": Codepoints(9)},
        "captions was 'tokens": {"caption_encoder": WordReader(8)},
        "captions was 'points": {"root": tmp_path},
        "flip was False": {"data": make_data(folder, flip=False)},
    }
    for message, options in changes.items():
        _, other = state(**options)
        with pytest.raises(DataError, match=message):
            loader.check(other)
    # A checkpoint of before there were captions says nothing of them.
    del saved["fingerprint"]["captions"]
    loader.check(saved)


def test_unusable_captions_are_counted_and_replaced(tmp_path, caplog):
    bad = {1: None, 2: "", 3: b"caf\xe9", 4: " \n\t\n"}
    for k in range(8):
        write(tmp_path, k, bad.get(k, f"{k} a"))
    options = {"batch_size": 8, "shuffle": False, "repeat": False}
    with caplog.at_level(logging.WARNING):
        (batch,) = take(make_data(tmp_path, max_corrupt=1.0), 1, **options)
    assert numbers(batch) == [0, 5, 5, 5, 5, 5, 6, 7]
    assert texts(batch) == [f"{k} a" for k in numbers(batch)]
    for part in ("001.png: 001.txt cannot be", "002.png has no", "003.png: its cap"):
        assert part in caplog.text
    assert "not UTF-8 (byte 3)" in caplog.text and "004.png has no" in caplog.text
    with pytest.raises(DataError, match="cannot be used, more than max_corrupt"):
        take(make_data(tmp_path), 40)
    allowed = make_data(tmp_path, allow_missing=True)
    (batch,) = take(allowed, 1, **options)
    assert numbers(batch) == list(range(8)) and texts(batch)[1:5] == [""] * 4


def test_prompts_are_spread_and_skip_what_cannot_be_used(tmp_path):
    for k in range(8):
        write(tmp_path, k, None if k in (0, 4) else f"{k}")
    source = make_data(tmp_path).open("train")
    assert spread_captions(source, 4) == ("1", "2", "5", "6")
    assert spread_captions(source, 1) == ("1",)
    assert len(spread_captions(source, 20)) == 20


def test_text_is_cleaned():
    texts = ["  a\tred \n car ", "", "a red car", "b"]
    assert clean(texts, "x") == ("a red car", "b")
    assert from_text(b"\xef\xbb\xbfcaf\xc3\xa9", "x") == "caf\u00e9"
    assert from_json(b'{"captions": ["a", "b"], "text": "c"}', "x") == ("a", "b")
    assert from_json(b'{"long": "a", "text": "c"}', "x", "long") == ("a",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"other": 1}', "x has no caption"),
        (b'{"caption": 7}', "its caption is 7, not a text"),
        (b'{"caption": ["a", null]}', "its caption is None, not a text"),
        (b"{", "x: its .json file is damaged"),
        (b"[1]", "x: its .json file holds no object"),
        (b'{"caption": "\xff"}', "not UTF-8 .byte 13"),
    ],
)
def test_json_that_holds_no_caption(content, message):
    with pytest.raises(NoCaption, match=message):
        from_json(content, "x")
