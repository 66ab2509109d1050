"""What a call returns: an array, and what belongs to its images."""

import json

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.errors import DataError, PipelineError
from pixelflow_jax.pretrained.results import Facts, Images
from pixelflow_jax.sampling.batches import Generated


@pytest.fixture
def drawn():
    """Three images of a cascade of two stages, with two steps recorded."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    clean = rng.uniform(-1, 1, (2, 3, 8, 8, 3)).astype(np.float32)
    facts = Facts(names=("a", "a", "b/<c>"), seeds=(5, 5, 5), numbers=(0, 1, 2))
    return Images.of(Generated(images, clean, (images[:, ::2, ::2], images)), facts)


def test_it_is_an_array_whose_parts_are_plain(drawn):
    assert isinstance(drawn, np.ndarray) and drawn.dtype == np.uint8
    for part in (drawn[0], drawn[1:], drawn + 1, drawn.images, next(iter(drawn))):
        assert type(part) is np.ndarray
    assert (drawn == drawn.images).all() and drawn.tobytes() == drawn.images.tobytes()
    assert np.concatenate([drawn, drawn]).shape == (6, 8, 8, 3)
    before, same = drawn.images.copy(), drawn
    same += 1  # into itself
    np.testing.assert_array_equal(drawn, before + np.uint8(1))


def test_pictures_of_it(drawn):
    assert [one.size for one in drawn.pil] == [(8, 8)] * 3
    wide = drawn.grid()
    assert wide.width > wide.height and drawn.grid(columns=1).size == wide.size[::-1]
    assert drawn.grid(captions=True).height > wide.height
    assert [stage.shape for stage in drawn.stages] == [(3, 4, 4, 3), (3, 8, 8, 3)]
    strip = drawn.stage_strip()
    assert strip.height > strip.width  # three rows of two


def test_the_trajectory_ends_in_the_images(drawn, tmp_path):
    way = drawn.trajectory
    assert way.frames.shape == (3, 3, 8, 8, 3)
    np.testing.assert_array_equal(way.frames[-1], drawn.images)
    way.save(tmp_path / "a.gif", fps=5)
    assert Image.open(tmp_path / "a.gif").n_frames == 3
    with pytest.raises(DataError, match=r"\.gif"):
        way.save(tmp_path / "a.avi")
    unrecorded = Images.of(Generated(np.zeros((1, 8, 8, 3))), Facts())
    with pytest.raises(PipelineError, match="record=True"):
        _ = unrecorded.trajectory


def test_saving_writes_all_there_is(drawn, tmp_path):
    paths = drawn.save(tmp_path / "folder")
    assert set(paths) == {"images", "grid", "stages", "trajectory", "json"}
    listed = json.loads(paths["json"].read_text("utf-8"))["images"]
    assert [one["file"] for one in listed] == [
        *("000000_a.png", "000001_a.png", "000002_b-c.png")
    ]
    assert listed[2] | {"file": ""} == dict(file="", name="b/<c>", seed=5, number=2)
    for one, image in zip(listed, drawn, strict=True):
        read = np.asarray(Image.open(tmp_path / "folder" / one["file"]))
        np.testing.assert_array_equal(read, image)
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="cannot be written"):
        drawn.save(tmp_path / "file")


def test_a_notebook_shows_a_grid_and_no_markup_of_names(drawn):
    page = drawn._repr_html_()
    assert page.startswith('<img src="data:image/png;base64,')
    assert "b/&lt;c&gt;" in page and "<c>" not in page
    assert repr(drawn) == "Images(3 of 8 x 8: a, b/<c>)"
    assert drawn.trajectory._repr_html_().startswith('<img src="data:image/gif')
