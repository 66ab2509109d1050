"""What sampling leaves on disk."""

import json

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.sampling import output
from pixelflow_jax.sampling.batches import Generated
from pixelflow_jax.sampling.output import write_samples

NAMES = ("Food & Drink", "flags")


def images(n, size=8):
    values = np.linspace(-1.2, 1.2, n, dtype=np.float32)
    return np.broadcast_to(values[:, None, None, None], (n, size, size, 3)).copy()


def written(folder, generated, labels, columns=2, **options):
    """Samples of classes on disk."""
    names = [NAMES[label] for label in labels]
    return write_samples(folder, generated, names, columns, labels=labels, **options)


def test_every_image_is_a_file_of_its_number_and_class(tmp_path):
    labels = np.array([0, 1, 1])
    paths = written(tmp_path, Generated(images(3)), labels, first=7)
    names = sorted(path.name for path in paths["images"].iterdir())
    assert names == ["000007_Food-Drink.png", "000008_flags.png", "000009_flags.png"]
    pixels = np.asarray(Image.open(paths["images"] / names[0]))
    assert (pixels == 0).all()  # -1.2 is clipped
    archive = np.load(paths["npz"])
    assert set(archive.files) == {"arr_0", "labels"}
    np.testing.assert_array_equal(archive["arr_0"][:, 0, 0, 0], [0, 128, 255])
    np.testing.assert_array_equal(archive["labels"], labels)
    assert "trajectory" not in paths


@pytest.mark.parametrize(
    ("labels", "columns", "expected"),
    [
        ([0, 0, 1, 1], 2, ["Food & Drink", "flags"]),
        ([0, 0, 1], 2, ["Food & Drink", "flags"]),
        ([0, 1, 1, 1], 2, None),
        ([1], 8, ["flags"]),
    ],
)
def test_rows_of_one_class_are_named(tmp_path, monkeypatch, labels, columns, expected):
    given = []
    grid = output.grid

    def recording(images, columns, row_labels=None, **options):
        given.append(row_labels)
        return grid(images, columns, row_labels=row_labels, **options)

    monkeypatch.setattr(output, "grid", recording)
    generated = Generated(images(len(labels)))
    written(tmp_path, generated, np.array(labels), columns)
    assert given == [expected]


def test_a_grid_shows_no_more_than_can_be_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "SHOWN", 4)
    generated = Generated(images(6, size=96))
    paths = written(tmp_path, generated, np.array([0] * 4 + [1] * 2))
    with Image.open(paths["grid"]) as grid:
        assert grid.height == 2 * (96 + 2) + 2
    assert len(list(paths["images"].iterdir())) == 6


def test_small_images_are_enlarged_in_the_grid_only(tmp_path):
    generated = Generated(images(2, size=8))
    paths = written(tmp_path, generated, np.array([0, 1]))
    with Image.open(paths["grid"]) as grid:
        assert grid.height == 8 * (output.SMALL // 8) + 4
    with Image.open(next(paths["images"].iterdir())) as image:
        assert image.size == (8, 8)


def test_the_trajectory_ends_with_the_image(tmp_path):
    last = images(2) * 0.8
    generated = Generated(last, np.stack([last * share for share in (0, 0.5, 0.9)]))
    paths = written(tmp_path, generated, np.array([0, 0]))
    with Image.open(paths["trajectory"]) as gif:
        assert gif.n_frames == 4
        gif.seek(3)
        assert gif.info["duration"] > 1000
        last = np.asarray(gif.convert("RGB"))
    with Image.open(paths["grid"]) as grid:
        shown = np.asarray(grid.convert("RGB"))
    assert last.shape == shown.shape and np.abs(last.astype(int) - shown).max() < 8


def test_prompts_are_shortened_in_names_and_whole_in_the_lists(tmp_path):
    long = "a red apple, " * 10
    prompts = [long, long, "\u82f9\u679c", "\u82f9\u679c"]
    facts = {"seed": 3, "negative_prompt": "blurry"}
    drawn = Generated(images(4))
    paths = write_samples(tmp_path, drawn, prompts, 2, first=2, facts=facts)
    slug = "a-red-apple-a-red-apple-a-red-apple-a-re"
    files = [f"000002_{slug}.png", f"000003_{slug}.png", "000004.png", "000005.png"]
    assert sorted(path.name for path in paths["images"].iterdir()) == files
    timestep_scale = json.loads(paths["json"].read_text(encoding="utf-8"))
    assert timestep_scale["seed"] == 3 and timestep_scale["negative_prompt"] == "blurry"
    assert [one["file"] for one in timestep_scale["images"]] == files
    assert [one["prompt"] for one in timestep_scale["images"]] == prompts
    assert [one["number"] for one in timestep_scale["images"]] == [2, 3, 4, 5]
    assert np.load(paths["npz"])["prompts"].tolist() == prompts


def test_rows_of_a_grid_are_named_after_shortened_prompts():
    names = output._row_names(["a" * 50] * 2 + ["b"] * 2, 2)
    assert names == ["a" * 29 + "...", "b"]
