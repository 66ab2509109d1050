"""The root of a config: what it refuses, and that it knows all of its parts."""

import json
import re

import jax
import pytest

from pixelflow_jax import build
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.config_io import walk
from pixelflow_jax.data.loader import Data
from pixelflow_jax.encoders.t5 import T5, T5Geometry
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment, choose_variant, node_classes
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Pyramid, Straight
from pixelflow_jax.flow.solver import AdamsBashforth, Euler
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import Lpips, PDino, Repa
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd import NeuralField
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.nn.kernels.choice import Kernels
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW
from pixelflow_jax.validate import validate, validated
from tests.training import tiny


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


def test_the_tiny_experiment_is_valid(images):
    validate(tiny.experiment(images))


GIANT = DinoV2(variant="vitx14")
FINE = DinoV2(base_patch=8)
BAD = [
    ({"steps": 0}, "steps=0 must be a whole number of at least 1"),
    ({"accumulate": 0}, "accumulate=0 must be a whole number from 1"),
    ({"seed": -1}, "seed=-1 must be a whole number from 0 to 4,294,967,295"),
    ({"seed": 2**32}, "seed=4294967296 must be a whole number from 0"),
    ({"terms": []}, "terms is empty"),
    ({"ema": (1.0,)}, "ema[0]=1.0 must be a finite number of at least 0 and below 1"),
    ({"ema": (0.9, 0.9)}, "names a decay twice"),
    ({"ema": "0.9"}, "ema='0.9' must be of type tuple"),
    ({"steps": 2.5}, "steps=2.5 must be of type int"),
    ({"batch_size": 12}, "batch_size=12 must be a multiple of 8"),
    ({"batch_size": 8, "accumulate": 2}, "must be a multiple of 16"),
    ({"batch_size": 0}, "batch_size=0 must be a whole number from 1"),
    ({"mesh": MeshShape(data=3)}, "data=3"),
    ({"mesh": MeshShape(fsdp=-1)}, "at most one axis"),
    (
        {"conditioner": ClassLabels(drop=1.5)},
        "conditioner.drop=1.5 must be",
    ),
    ({"precision": Precision(compute="float16")}, "precision.compute must be"),
    ({"precision": Precision(matmul="low")}, "precision.matmul must be"),
    (
        {"optimizer": AdamW(lr=-1.0)},
        "optimizer.lr=-1.0 must be a finite number",
    ),
    ({"optimizer": AdamW(warmup=9)}, "optimizer.warmup=9 must lie in 0..steps=6"),
    ({"optimizer": AdamW(schedule="step")}, "optimizer.schedule must be"),
    (
        {"checkpoint": Checkpointing(every=0)},
        "checkpoint.every=0 must be a whole",
    ),
    ({"log": Logging(every=0)}, "log.every=0 must be a whole number of at least 1"),
    ({"model": tiny.model(patch=5)}, "model.patch=5 does not divide"),
    ({"model": tiny.model(patch=0)}, "model.patch=0 must be a whole number from 1"),
    ({"model": tiny.model(heads=0)}, "model.heads=0 must be a whole number from 1"),
    ({"model": tiny.model(heads=5)}, "model.heads=5 must divide model.width=32"),
    (
        {"model": tiny.model(feature_layer=3)},
        "model.feature_layer=3 must lie in 0..depth=2",
    ),
    ({"kernels": Kernels(attention="fast")}, "kernels.attention must be one of 'auto'"),
    ({"kernels": Kernels(blocks="triton")}, "kernels.blocks must be one of 'auto'"),
    ({"kernels": Kernels(field="pallas")}, 'field="pallas" needs powers of two'),
    ({"kernels": Kernels(attention="cudnn")}, 'attention="cudnn" needs a GPU'),
    (
        {"model": tiny.model(stack=StackConfig(remat="some"))},
        "model.stack.remat must be",
    ),
    (
        {"model": tiny.model(decoder=NeuralField(stack=StackConfig(unroll=-1)))},
        "model.decoder.stack.unroll=-1 must be a whole number from 1",
    ),
    ({"model": tiny.model(decoder=NeuralField(encoding="fft"))}, "decoder.encoding"),
    (
        {"sampling": Sampling(batch_size=0)},
        "sampling.batch_size=0 must be",
    ),
    (
        {"sampling": Sampling(grid=Grid(steps=0))},
        "sampling.grid.steps=0 must be a whole number from 1",
    ),
    (
        {"sampling": Sampling(grid=Grid(shift=0.0))},
        "grid.shift=0.0 must be",
    ),
    (
        {"sampling": Sampling(grid=Grid(stage_steps=(3, 3)))},
        "grid.stage_steps=(3, 3) must hold 1",
    ),
    (
        {"sampling": Sampling(guidance=ClassifierFree(scale=2.0, ramp=(0.0, 1.0)))},
        "guidance.ramp=(0.0, 1.0) must hold 1 shares",
    ),
    (
        {"path": Pyramid(num_stages=0)},
        "path.num_stages=0 must be a whole",
    ),
    ({"path": Pyramid(num_stages=3)}, "must be a multiple of 32: model.patch=8 times"),
    ({"path": Straight(noise_scale=0.0)}, "path.noise_scale"),
    ({"terms": [FlowMatching(), FlowMatching()]}, "each kind may be there once"),
    ({"terms": [FlowMatching(), Lpips(patch=0)]}, "terms[1].patch=0 must be"),
    ({"terms": [FlowMatching(), PDino(layers=(12,))]}, "12"),
    ({"terms": [FlowMatching(), Repa(teacher_layer=-13)]}, "-13"),
    ({"adaptive_weight": AdaptiveWeight()}, "no term is perceptual"),
    (
        {"terms": [FlowMatching(), Repa()], "teachers": Teachers(dino=GIANT)},
        "teachers.dino",
    ),
    (
        {
            "terms": [FlowMatching(), Repa()],
            "model": tiny.model(patch=16),
            "teachers": Teachers(dino=FINE),
        },
        'grid="resize"',
    ),
    ({"model": PixelFlow(num_classes=3, patch=8, text_width=8)}, "holds none"),
    ({"conditioner": Text()}, "PixNerd reads no text"),
    ({"conditioner": Text(), "model": PixNerdText()}, "model.text_length=128 must be"),
    (
        {"conditioner": Text(length=128), "model": PixelGenText(text_width=8)},
        "model.text_width=8 must be the width of the encoder's states, 2048",
    ),
    (
        {"conditioner": ClassLabels(), "model": PixNerdText()},
        "conditioner ClassLabels needs model.num_classes",
    ),
    (
        {"conditioner": Text(), "model": PixelFlow(num_classes=0, text_width=8)},
        "model.text_width=8 must be the width of the encoder's states, 2048",
    ),
    (
        {"conditioner": ClassLabels(), "model": PixelFlow(num_classes=0, text_width=8)},
        "conditioner ClassLabels needs model.num_classes",
    ),
    (
        {"sampling": Sampling(guidance=ClassifierFree(interval="left"))},
        "guidance.interval must be",
    ),
    (
        {"sampling": Sampling(solver=AdamsBashforth(order=5))},
        "solver.order=5 must be",
    ),
    ({"sampling": Sampling(solver=Euler(step="sed"))}, "sampling.solver.step must be"),
]


@pytest.mark.parametrize(
    ("changes", "words"), BAD, ids=[words[:40] for _, words in BAD]
)
def test_a_field_that_makes_no_sense_is_refused(images, changes, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        validate(tiny.experiment(images, **changes))


def test_everything_wrong_is_listed_at_once(images):
    config = tiny.experiment(
        images,
        ema=(2.0,),
        model=tiny.model(patch=5, feature_layer=9),
        optimizer=AdamW(lr=0.0),
        checkpoint=Checkpointing(keep=0),
        log=Logging(preview_count=0),
    )
    with pytest.raises(ConfigError) as caught:
        validate(config)
    first, *lines = str(caught.value).split("\n")
    assert "'tiny' cannot run" in first and len(lines) == 6
    assert all(line.startswith("  - ") for line in lines)


def test_a_size_without_pixels_is_refused(images):
    config = tiny.experiment(images)
    config.data.image_size = 0
    with pytest.raises(ConfigError, match="data.image_size=0 must be a whole"):
        validate(config)


def test_classes_of_data_and_model_must_agree(images):
    config = tiny.experiment(images, model=tiny.model(num_classes=4))
    with pytest.raises(ConfigError, match=r"3 classes but model\.num_classes=4"):
        build.training_run(validated(config))


def test_it_survives_json(images):
    config = tiny.experiment(images, ema=(0.9, 0.99), mesh=MeshShape(data=2, fsdp=4))
    assert Experiment.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": "many"}, "steps='many' must be of type int"),
        ({"ema": 0.9}, "ema=0.9 must be of type tuple"),
        ({"model": "PixNerd"}, "model='PixNerd' must be of type DenoiserConfig"),
        ({"data": {"class": "AdamW"}}, r"data=AdamW\(...\) must be of type Data"),
        ({"data": {"class": []}}, r"a node of class \[\]"),
        ({"terms": [[]]}, r"terms\[0\]=.* must be of type Term"),
        ({"class": "AdamW"}, "AdamW"),
    ],
    ids=str,
)
def test_json_that_is_no_config_is_refused(images, change, words):
    data = tiny.experiment(images).to_dict()
    with pytest.raises(ConfigError, match=words):
        Experiment.from_dict(json.loads(json.dumps({**data, **change})))


@pytest.mark.parametrize("data", [None, [], "x", {}, {"class": 3}, {"class": "AdamW"}])
def test_what_is_no_config_at_all_is_refused(data):
    with pytest.raises(ConfigError):
        Experiment.from_dict(data)


def test_a_config_of_another_version_is_refused(images):
    data = tiny.experiment(images).to_dict()
    data["model"]["dropout"] = 0.1
    with pytest.raises(ConfigError, match=r"PixNerd\.dropout.*fields of PixNerd are"):
        Experiment.from_dict(data)


def test_every_node_reachable_from_a_default_can_be_read_back():
    reachable = {type(node) for _, node in walk(Experiment(name="x"))}
    assert reachable <= set(node_classes().values()) and len(reachable) > 12


def test_an_unknown_variant_lists_the_others():
    variants = {"a": lambda: 1, "b": lambda: 2}
    assert choose_variant("b", variants) == 2
    with pytest.raises(ConfigError, match="No variant 'c': choose from a, b"):
        choose_variant("c", variants)


def test_the_seed_fixes_weights_data_and_noise(images):
    """Two experiments of one seed build the same state and batches; of another, not."""
    states, batches = [], []
    for seed in (3, 3, 4):
        run = tiny.run(images, seed=seed)
        states.append(run.fresh_state().params)
        with run.open_data(0) as loader:
            batches.append(next(loader))
    tiny.assert_identical(states[0], states[1])
    tiny.assert_identical(batches[0], batches[1])
    with pytest.raises(AssertionError):
        tiny.assert_identical(states[0], states[2])
    assert (batches[0]["image"] != batches[2]["image"]).any()


def test_the_recipe_takes_every_part_from_the_config(images):
    config = tiny.experiment(images, accumulate=1)
    objective = build.objective(config)
    assert objective.terms.terms is config.terms
    assert objective.conditioner is config.conditioner
    assert objective.prediction is config.prediction and objective.time is config.time
    settings = build.step_settings(config)
    assert settings.seed == 3 and settings.accumulate == 1
    assert float(settings.learning_rate(6)) == pytest.approx(1e-2)
    shapes = objective.network.shapes()
    assert jax.tree.leaves(shapes)[0].dtype == "float32"


def test_data_is_opened_at_the_batch_asked_for(images):
    config = tiny.experiment(images)
    with build.open_data(config, 0) as first, build.open_data(config, 2) as later:
        for _ in range(2):
            next(first)
        tiny.assert_identical(next(first), next(later))
    assert isinstance(config.data, Data)


def test_a_text_model_traces_but_needs_captions(images):
    encoder = T5(geometry=T5Geometry(width=16, hidden=16, depth=1, heads=2))
    config = tiny.experiment(
        images,
        model=PixelFlow(
            num_classes=0, text_width=16, width=32, heads=4, depth=2, feature_layer=1
        ),
        conditioner=Text(encoder=encoder, length=8),
    )
    validate(config)
    config.data.source.labels = False  # no class names, no text files
    with pytest.raises(ConfigError, match="holds no captions, which conditioner Text"):
        build.training_run(validated(config))
