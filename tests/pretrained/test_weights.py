"""Published folders: written, read back bit for bit, and refused where damaged."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import traverse_util
from PIL import Image
from safetensors import safe_open
from safetensors.flax import load_file, save_file

from pixelflow_jax import Pipeline, atomic, resources
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.config_files import load_config
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.interface import count
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.models.registry import denoiser_classes
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.pretrained.card import VERSION, Description
from tests.training import tiny


@pytest.fixture(scope="module")
def images(tiny_run):
    return tiny_run.images


@pytest.fixture(scope="module")
def workdir(tiny_run, tmp_path_factory):
    return tiny_run.copy(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pipeline(workdir):
    return Pipeline.from_pretrained(workdir)


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "emoji"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """A folder to damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def refused(path, words, **options):
    with pytest.raises(PipelineError, match=words) as caught:
        Pipeline.from_pretrained(path, **options)
    return str(caught.value)


@pytest.mark.parametrize("ema", ["", "0.5", "raw"])
def test_a_folder_draws_the_same_image_as_its_run_bit_for_bit(workdir, tmp_path, ema):
    run = Pipeline.from_pretrained(workdir, ema=ema)
    run.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    tiny.assert_identical(loaded.params, run.params)
    one, other = (p.generate(["flags", 2], seed=4).images for p in (run, loaded))
    tiny.assert_identical(one, other)
    assert dataclasses.replace(loaded, params={}) == dataclasses.replace(run, params={})
    which = {"": "decay 0.9", "0.5": "decay 0.5", "raw": "without averaging"}[ema]
    assert re.fullmatch(f"step 6 of the run 'tiny', .*{which}", loaded.origin)


def test_what_is_written(folder, pipeline):
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    data = json.loads((folder / "config.json").read_text())
    assert data["format"] == "pixelflow_jax" and data["version"] == 2
    assert data["config"] == pipeline.config.to_dict() and data["step"] == 6
    assert tuple(data["class_names"]) == tiny.CLASSES
    with safe_open(folder / "model.safetensors", "flax") as file:
        assert file.metadata() == {"format": "pixelflow_jax"}
        keys = set(file.keys())
    assert keys == set(traverse_util.flatten_dict(pipeline.params, sep="/"))


def test_bfloat16_halves_the_folder_and_stays_close(folder, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, dtype="bfloat16")
    sizes = [(f / "model.safetensors").stat().st_size for f in (tmp_path, folder)]
    assert sizes[0] < 0.6 * sizes[1]
    half = Pipeline.from_pretrained(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("f4")}
    one, other = (p.generate([0, 1], seed=4).images for p in (half, pipeline))
    # Eight bits of mantissa in the weights, through three guided steps.
    assert 0 < np.abs(one - other).max() < 0.05
    with pytest.raises(PipelineError, match="'float16' must be one of float32"):
        pipeline.save_pretrained(tmp_path / "other", dtype="float16")


def shards(folder, pieces=3):
    """Splits the weights of a folder among files, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {}
    for k in range(pieces):
        name = f"model-{k + 1:05d}-of-{pieces:05d}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[k::pieces]}
        save_file(part, folder / name, metadata={"format": "pixelflow_jax"})
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sorted(set(where.values()))


def test_shards_are_read_and_those_that_lack_are_named(copy, pipeline):
    names = shards(copy)
    tiny.assert_identical(Pipeline.from_pretrained(copy).params, pipeline.params)
    (copy / names[1]).unlink()
    refused(copy, f"lacks shards: {names[1]}")
    index = copy / "model.safetensors.index.json"
    (copy.parent / "model.safetensors").write_bytes((copy / names[0]).read_bytes())
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    refused(copy, r"lacks shards: \.\./model.safetensors")
    for broken in ("{", "[]", '{"weight_map": []}', "{}", '{"weight_map": 3}'):
        index.write_text(broken)
        refused(copy, "index.json cannot be read")


def test_a_folder_is_written_anew_in_place(copy, workdir, pipeline):
    shards(copy)
    (copy / "samples.png").write_bytes(b"old")
    (copy / "LICENSE").write_text("mine")
    raw = Pipeline.from_pretrained(workdir, ema="raw")
    raw.save_pretrained(copy)
    tiny.assert_identical(Pipeline.from_pretrained(copy).params, raw.params)
    assert not (copy / "model.safetensors.index.json").exists()
    assert not (copy / "samples.png").exists() and (copy / "LICENSE").exists()


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_failure_leaves_what_was_there(copy, pipeline, workdir, monkeypatch):
    def full(path, *_):
        (path.parent / "half").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = contents(copy)
    monkeypatch.setattr(published.safe, "write", full)
    raw = Pipeline.from_pretrained(workdir, ema="raw")
    for folder in (copy, copy.parent / "new" / "folder"):
        with pytest.raises(PipelineError, match="cannot be written .*No space left"):
            raw.save_pretrained(folder)
    assert contents(copy) == before and not (copy.parent / "new").exists()


@pytest.mark.parametrize("last", ["model.safetensors", "config.json"])
def test_moving_that_was_cut_short_leaves_nothing_to_load(
    copy, pipeline, monkeypatch, last
):
    move = atomic.os.replace

    def stop(source, target):
        if source.parent.name == ".partial" and source.name == last:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(atomic.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.save_pretrained(copy)
    names = {"README.md", "model.safetensors"}
    assert contents(copy).keys() == names
    refused(copy, "holds no config.json .*cut short")
    monkeypatch.undo()
    (copy / ".partial").mkdir()  # of a process that was killed
    pipeline.save_pretrained(copy)
    assert contents(copy).keys() == names | {"config.json"}
    tiny.assert_identical(Pipeline.from_pretrained(copy).params, pipeline.params)


def test_a_workdir_is_not_exported_into(workdir, pipeline):
    before = (workdir / "config.json").read_text()
    with pytest.raises(PipelineError, match="is the workdir of a training run"):
        pipeline.save_pretrained(workdir)
    assert (workdir / "config.json").read_text() == before


def test_what_cannot_be_written_says_so(copy, pipeline):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").mkdir()
    with pytest.raises(PipelineError, match="cannot be written .*Is a directory"):
        pipeline.save_pretrained(copy)


def edit(folder, **changes):
    path = folder / "config.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def test_configs_that_are_not_ours_are_refused(copy):
    for version in (3, 0, "2", [1]):
        edit(copy, version=version)
        assert "-U pixelflow_jax" in refused(copy, "version .* of the format")
    edit(copy, version=2, step=None, class_names=None)
    refused(copy, "lacks class_names, step")
    edit(copy, format="diffusers")
    refused(copy, "not of the format 'pixelflow_jax'.*pixelflow_jax.convert")
    (copy / "config.json").write_text("[]")
    refused(copy, "not of the format")
    (copy / "config.json").write_bytes(b"\xff{")
    refused(copy, "config.json cannot be read")
    (copy / "config.json").write_text("{")
    refused(copy, "config.json cannot be read")


def test_folders_of_the_first_version_are_read(copy, pipeline):
    edit(copy, version=1)
    tiny.assert_identical(Pipeline.from_pretrained(copy).params, pipeline.params)


def test_a_config_of_another_version_of_the_code_is_refused(copy, pipeline):
    config = pipeline.config.to_dict()
    edit(copy, config=config | {"model": config["model"] | {"novel": 1}})
    refused(copy, r"another version of pixelflow_jax.*PixNerd\.novel")
    edit(copy, config=config["model"] | {"version": config["version"]})
    refused(copy, "This is no Experiment, but a PixNerd")
    edit(copy, config=config | {"model": {"class": "PixFuture"}})
    refused(copy, "another version of pixelflow_jax.*'PixFuture'")


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
def test_truncated_weights_are_refused(copy, keep):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(copy, "model.safetensors cannot be read .*is it whole")


def test_other_tensors_than_the_config_describes_are_listed(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["extra"] = jnp.zeros(2)
    tensors["patch_embed/bias"] = jnp.zeros(7)
    del tensors["decoder/norm/weight"]
    save_file(tensors, copy / "model.safetensors")
    message = refused(copy, "does not hold the weights of the model")
    assert "missing: decoder/norm/weight" in message
    assert "unexpected: extra" in message
    assert "misshapen: patch_embed/bias (7,), not (32,)" in message


def test_what_lacks_is_named(copy, tmp_path):
    (copy / "model.safetensors").unlink()
    refused(copy, "neither model.safetensors nor its index")
    (copy / "config.json").unlink()
    refused(copy, "holds no config.json. A published")
    (copy / "last.ckpt").write_bytes(b"")
    refused(copy, r"no config.json \(only last.ckpt\).*pixelflow_jax.convert")
    refused(copy / "last.ckpt", "No weights at .*pixelflow_jax.convert")


def test_a_run_that_has_not_saved_is_told_from_a_folder(workdir, tmp_path):
    shutil.copy(workdir / "config.json", tmp_path)
    refused(tmp_path, "nor the workdir of a run that has saved something")


def test_a_folder_has_neither_averages_nor_revisions(folder):
    refused(folder, r"no average '0\.9' to choose", ema="0.9")
    refused(folder, "has no revision 'v1'", revision="v1")


def test_the_card_shows_samples_that_the_model_drew(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, samples=["flags", 2])
    card = (tmp_path / "README.md").read_text()
    assert "![samples of the model](samples.png)" in card
    picture = np.asarray(Image.open(tmp_path / "samples.png"))
    drawn = pipeline(["flags"] * 4 + [2] * 4)
    # The last cells of the two rows, in their padding of two pixels.
    column, end = picture[:, -2 - tiny.SIZE : -2], 2 + tiny.SIZE
    np.testing.assert_array_equal(column[2:end], drawn[3])
    np.testing.assert_array_equal(column[-end:-2], drawn[7])
    with pytest.raises(PipelineError, match="no class 'dogs'"):
        pipeline.save_pretrained(tmp_path, samples=["dogs"])


def front_matter(card: str) -> tuple[dict, str]:
    nothing, front, body = card.split("---\n", 2)
    assert nothing == ""
    return yaml.safe_load(front), body


def test_the_card_tells_what_the_model_is(folder, pipeline):
    front, body = front_matter((folder / "README.md").read_text())
    assert front["library_name"] == "pixelflow_jax" and "license" not in front
    assert front["pipeline_tag"] == "unconditional-image-generation"
    assert {"pixnerd", "class-conditional", "jax"} <= set(front["tags"])
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", body, re.MULTILINE))
    millions = count(pipeline.params) / 1e6
    assert rows["parameters"] == f"{millions:.4g} million, float32"
    assert rows["trained"] == "6 steps of batch 8"
    assert rows["weights"] == "step 6 of the run 'tiny', average with decay 0.9"
    assert rows["3 classes"] == "Cats & Dogs, flags, plants"
    assert "Grid(steps=3" in rows["steps"] and "ImageFolder(" in rows["data"]
    assert rows["paper"].startswith("[PixNerd: Pixel Neural Field Diffusion](https://")
    assert "@article{wang2025pixnerd" in body and "samples.png" not in body
    config = body.split("```json\n")[1].split("```")[0]
    assert Experiment.from_dict(json.loads(config)) == pipeline.config


def test_the_lines_of_the_card_load_and_draw(folder):
    body = (folder / "README.md").read_text()
    lines = body.split("```python\n")[1].split("```")[0]
    assert str(folder) in lines
    names: dict = {}
    exec(lines, names)
    assert names["images"].shape == (1, tiny.SIZE, tiny.SIZE, 3)


def test_every_model_has_its_citation_and_texts_are_asked_for_in_words():
    for model in denoiser_classes().values():
        assert model.paper.title and "title = {" in model.paper.bibtex
        assert model.paper.url.startswith("https://")
    names = {"class_names": (), "step": 0, "origin": "a | b\nc"}
    reader = PixNerdText(width=16, heads=2, depth=1, feature_layer=0)
    texts = Experiment(name="t", model=reader, conditioner=Text())
    card = Description(config=texts, **names).card("some/name", "bfloat16", False)
    front, body = front_matter(card)
    assert front["pipeline_tag"] == "text-to-image" and "0 classes" not in body
    assert 'from_pretrained("some/name")' in body and "red fox" in body
    assert "| weights | a \\| b c |" in body
    classes = Experiment(
        name="c", model=PixelFlow(width=16, heads=2, depth=1, feature_layer=0)
    )
    card = Description(config=classes, **names).card("some/name", "float32", False)
    assert "chen2025pixelflow" in card and "pipeline([0], seed=0)" in card
    assert "| trained |" not in card  # after 0 steps, or for a time nobody knows


def test_a_set_is_opened_in_its_own_types_and_read_when_asked_for(folder, copy):
    tensors = load_file(copy / "model.safetensors")
    name = "decoder/norm/weight"
    tensors[name] = tensors[name].astype("bfloat16")
    save_file(tensors, copy / "model.safetensors")
    found = published.find(copy)
    opened = found.open(found.choose(""))
    assert {k for k, one in opened.items() if one.dtype != np.float32} == {name}
    assert opened[name].dtype == jnp.bfloat16
    tiny.assert_identical({k: v.read() for k, v in opened.items()}, tensors)
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        opened[name].read()


def test_what_has_our_formats_is_told_from_the_rest(workdir, copy, pipeline, tmp_path):
    pipeline.save(tmp_path / "ours.safetensors")
    save_file({"a": jnp.zeros(2)}, tmp_path / "theirs.safetensors")
    ours = (workdir, copy, tmp_path / "ours.safetensors")
    assert all(map(published.is_ours, ours))
    edit(copy, format="diffusers")
    others = (copy, tmp_path / "theirs.safetensors", tmp_path, tmp_path / "absent")
    assert not any(map(published.is_ours, others))


def test_the_shipped_model_is_what_its_config_trains():
    shipped = Pipeline.from_pretrained("emoji")
    assert shipped.config == load_config("emoji:shipped")
    assert shipped.step == shipped.config.steps


@pytest.mark.parametrize("name", ["emoji", "emoji_t2i"])
def test_models_of_the_package_are_small_and_name_no_folder_of_their_training(name):
    asset = resources.asset(name)
    assert asset.stat().st_size < 16_000_000
    with safe_open(asset, "numpy") as file:
        config = json.loads(file.metadata()["pixelflow_jax"])["config"]
    given = json.dumps(config["data"])
    assert '": "/' not in given, given
    trained = "emoji" if name == "emoji" else "emoji_t2i_styles"
    assert config["name"] == trained


def test_a_model_of_the_package_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = published.find("emoji")
    assert shipped.description.config.name == "emoji"
    with safe_open(resources.asset("emoji"), "numpy") as file:
        assert json.loads(file.metadata()["pixelflow_jax"])["version"] == VERSION
    folder = tmp_path / "emoji"  # but what lies there wins
    folder.mkdir()
    with pytest.raises(PipelineError, match="holds no config.json"):
        published.find("emoji")
