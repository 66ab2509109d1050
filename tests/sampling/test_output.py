"""What sampling leaves on disk."""

import json

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.errors import PipelineError
from pixelflow_jax.sampling import output, spool
from pixelflow_jax.sampling.batches import Generated
from pixelflow_jax.sampling.output import Described, write_samples

NAMES = ("Food & Drink", "flags")


def images(n, size=8):
    values = np.linspace(-1.2, 1.2, n, dtype=np.float32)
    return np.broadcast_to(values[:, None, None, None], (n, size, size, 3)).copy()


def batches(generated, size=2, stop=None):
    """Images that were drawn, batch by batch; `stop` fails after so many batches."""

    def drawn(start):
        for number, place in enumerate(range(start, len(generated.images), size)):
            if number == stop:
                raise KeyboardInterrupt
            clean, part = generated.clean, slice(place, place + size)
            yield (
                place,
                Generated(
                    generated.images[part],
                    None if clean is None else clean[:, part],
                    tuple(states[part] for states in generated.stages),
                ),
            )

    return drawn


def described(generated, names, columns=2, **fields):
    return Described(
        shape=generated.images.shape[1:],
        **{"digest": "d", "names": names, "columns": columns} | fields,
    )


def written(folder, generated, labels, columns=2, **fields):
    """Samples of classes on disk."""
    names = [NAMES[label] for label in labels]
    fields |= {"trajectory": generated.clean is not None}
    about = described(generated, names, columns, labels=labels, **fields)
    return write_samples(folder, batches(generated), about)


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
    about = described(drawn, prompts, first=2, facts=facts)
    paths = write_samples(tmp_path, batches(drawn), about)
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
    names = output._row_labels([["a" * 50] * 2, ["b"] * 2])
    assert names == ["a" * 29 + "...", "b"]


def test_a_grid_is_at_most_a_page_of_whole_rows(tmp_path):
    drawn = Generated(images(1, 100))
    about = described(drawn, ["a"] * 1500 + ["b"] * 1500, columns=1500)
    rows = about.shown()
    assert [row[0] for row in rows] == [0, 1500] and len(rows[0]) == 2048 // 102
    about = described(drawn, [str(i) for i in range(1000)], columns=1)
    assert len(about.shown()) == 2048 // 102


def test_many_images_lie_in_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "FOLDER", 2)
    paths = written(tmp_path, Generated(images(3)), np.zeros(3, int), first=1)
    files = [path.relative_to(paths["images"]) for path in paths["images"].rglob("*")]
    assert sorted(map(str, files)) == [
        *("000000", "000000/000001_Food-Drink.png"),
        *("000002", "000002/000002_Food-Drink.png", "000002/000003_Food-Drink.png"),
    ]
    listed = json.loads(paths["json"].read_text())["images"]
    named = [str(file) for file in sorted(files) if file.suffix]
    assert [one["file"] for one in listed] == named


def content(folder):
    """Every file below a folder, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_what_was_cut_short_goes_on_and_ends_in_the_same_bytes(
    tmp_path, monkeypatch, stop
):
    monkeypatch.setattr(spool, "SAFE_SECONDS", 0.0)
    drawn = Generated(images(5))
    about = described(drawn, ["a"] * 5)
    write_samples(tmp_path / "whole", batches(drawn), about)
    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        write_samples(folder, batches(drawn, stop=stop), about)
    assert not (folder / "samples.json").exists()
    starts = []

    def rest(start):
        starts.append(start)
        return batches(drawn)(start)

    write_samples(folder, rest, about)
    assert starts == [2 * stop] and content(folder) == content(tmp_path / "whole")
    write_samples(folder, rest, about)
    assert len(starts) == 1  # it is finished


def test_another_draw_replaces_the_whole_of_an_earlier_one(tmp_path):
    folder = tmp_path / "out"
    many, few = Generated(images(5)), Generated(images(2))
    clean = few._replace(clean=images(2)[None])
    written(folder, many, np.zeros(5, int))
    (folder / "notes.txt").write_text("mine")
    about = described(clean, ["b"] * 2, digest="e", trajectory=True)
    with pytest.raises(KeyboardInterrupt):
        write_samples(folder, batches(clean, size=1, stop=1), about)
    assert not (folder / "samples.npz").exists()  # nor is it taken for a result
    written(folder, few, np.ones(2, int), digest="f")
    alone = tmp_path / "alone"
    written(alone, few, np.ones(2, int), digest="f")
    assert content(folder) == {**content(alone), "notes.txt": b"mine"}


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"mine")
    with pytest.raises(PipelineError, match="holiday.png.*--out"):
        written(tmp_path, Generated(images(2)), np.zeros(2, int))
    with pytest.raises(PipelineError, match="is a file"):
        written(tmp_path / "holiday.png", Generated(images(2)), np.zeros(2, int))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


def test_a_full_disk_is_one_paragraph_and_loses_nothing(tmp_path, monkeypatch):
    drawn = Generated(images(4))
    about = described(drawn, ["a"] * 4)
    save_png, calls = output.save_png, []

    def full(path, image):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device", str(path))
        save_png(path, image)

    monkeypatch.setattr(output, "save_png", full)
    with pytest.raises(PipelineError, match="No space left.* 2 of 4 images are kept"):
        write_samples(tmp_path / "a", batches(drawn), about)
    monkeypatch.undo()
    starts = []
    rest = lambda start: (starts.append(start), batches(drawn)(start))[1]
    write_samples(tmp_path / "a", rest, about)
    write_samples(tmp_path / "b", batches(drawn), about)
    assert starts == [2] and content(tmp_path / "a") == content(tmp_path / "b")


def test_more_than_the_disk_holds_is_refused_before_anything_is_drawn(tmp_path):
    about = described(Generated(images(1)), range(10**13))
    with pytest.raises(PipelineError, match="need .* MB .* has .* MB: make room"):
        write_samples(tmp_path / "a", batches(Generated(images(1))), about)
    assert not any(tmp_path.iterdir())


def test_two_commands_do_not_write_to_one_folder(tmp_path):
    folder, labels = tmp_path / "new" / "drawn", np.array([0, 1, 1])
    with spool.only_writer(folder), pytest.raises(PipelineError) as refused:
        written(folder, Generated(images(3)), labels)
    assert "Another command is writing to" in str(refused.value)
    assert not folder.parent.exists()  # nothing was written
    written(folder, Generated(images(3)), labels)
    with spool.only_writer(folder):  # its lock has ended
        assert (folder / "samples.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="Writing to .* failed: Not a directory"):
        spool.only_writer(tmp_path / "file" / "drawn").__enter__()
