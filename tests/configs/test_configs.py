"""Every variant of every config file builds, and can be overridden from outside."""

import dataclasses
import importlib.util
import itertools
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from pixelflow_jax import build, config_files
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.config_files import load_config
from pixelflow_jax.config_io import walk
from pixelflow_jax.config_types import type_errors
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment, unreadable
from pixelflow_jax.flow.solver import AdamsBashforth
from pixelflow_jax.losses.objective import Objective
from pixelflow_jax.models.interface import count, shape_errors
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.batches import Generator
from pixelflow_jax.sampling.presets import PRESETS
from pixelflow_jax.training.step import make_step
from pixelflow_jax.validate import validate
from tests.marks import long

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHALLOW = 3  # layers: that many are traced as they are
MAX_LINES = 240  # with the rows that a reproduction is held against


def load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NAMES = config_files.names()
FILES = {name: load(ROOT / "configs" / f"{name}.py") for name in NAMES}
# A file without variants has the one that it gives without being asked for any.
ALL = [
    ":".join(filter(None, [name, variant]))
    for name in NAMES
    for variant in config_files.variants(name) or [""]
]


# What no program that a config makes depends on, or only its sampler.
ASIDE = {"name", "data", "log", "checkpoint", "sampling"}


def parts(value: object) -> object:
    """What a config, as its dict, is made of: all but how much there is of anything."""
    match value:
        case dict():
            return {k: parts(v) for k, v in value.items() if k not in ASIDE}
        case [dict(), *_]:
            return [parts(v) for v in value]
        case list():
            return bool(value)
        case bool() | str() | None:
            return value
    return value > 0


def alike() -> dict[str, str]:
    """For every config the first of its file that is like it in all but sizes."""
    first: dict[tuple[str, str], str] = {}
    found = {}
    for name in ALL:
        made_of = json.dumps(parts(load_config(name).to_dict()))
        found[name] = first.setdefault((name.partition(":")[0], made_of), name)
    return found


FIRST = alike()
FIRSTS = [name for name in ALL if FIRST[name] == name]
REST = [name for name in ALL if FIRST[name] != name]
# The first of every file: of these a whole step is traced in every run of the tests.
TRACED = [*{name.partition(":")[0]: name for name in reversed(FIRSTS)}.values()]
OTHERS = [name for name in ALL if name not in TRACED]


@pytest.fixture(params=ALL)
def config(request):
    return load_config(request.param)


def test_there_are_files_with_variants():
    methods = {"pixnerd", "pixelflow", "pixelgen"}
    assert {"emoji", *methods, *(f"{name}_t2i" for name in ("emoji", *methods))} <= set(
        FILES
    )
    assert len(ALL) >= 50


def scanned(config: Experiment) -> Experiment:
    """A copy whose layers are scanned: written out, each takes a second to trace."""
    copy = Experiment.from_dict(config.to_dict())
    if getattr(copy.model, "depth", 0) > SHALLOW:
        for _, node in walk(copy):
            if isinstance(node, StackConfig):
                node.scan = True
    return copy


@pytest.mark.parametrize("name", REST)
def test_one_that_is_like_another_is_valid(name, monkeypatch):
    """Its parameters have shapes; its programs, traced for the other, are not."""
    for traced in (Objective, Generator):
        monkeypatch.setattr(traced, "check", lambda *_: None)
    config = load_config(name)
    validate(config)
    assert build.network(config).shapes()
    assert build.step_settings(config) and config.mesh.build().size


def test_few_configs_are_like_another_one():
    """Those that are say so by their numbers alone; the others are traced."""
    assert len(FIRSTS) > 40 and {name.partition(":")[0] for name in FIRSTS} == {*NAMES}


@pytest.mark.parametrize("name", [name for name in FIRSTS if name not in TRACED])
def test_one_that_differs_from_its_file_s_first_is_valid(name):
    """Its loss and its sampler are traced, but no step."""
    validate(scanned(load_config(name)))


@pytest.mark.parametrize("name", [*TRACED, *map(long, OTHERS)])
def test_it_builds_and_validates(name):
    """The data set is not opened; a whole training step is traced, nothing computed."""
    config = load_config(name)
    assert isinstance(config, Experiment)
    config = scanned(config)
    validate(config)
    objective, settings = build.objective(config), build.step_settings(config)
    mesh = config.mesh.build()
    run = dataclasses.replace(config, data=config.data)  # a copy shares nothing mutable
    assert run == config and mesh.size == jax.device_count()
    from pixelflow_jax.training.step import abstract_state

    state = abstract_state(objective, settings, mesh)
    size = config.data.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((8, size, size, 3), "float32"),
        **config.conditioner.example(8),
    }
    frozen_params = objective.frozen_shapes()
    step = make_step(objective, settings)
    after, metrics = jax.eval_shape(step, state, batch, frozen_params)
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    assert shapes(after) == shapes(state)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == "float32"


def test_it_survives_json(config):
    text = json.dumps(config.to_dict(), allow_nan=False)
    assert Experiment.from_dict(json.loads(text)) == config


def test_its_nodes_are_known_and_well_typed(config):
    assert unreadable(config) == [] and type_errors(config) == []


def test_two_calls_share_no_node():
    """An override of one experiment must not reach another one."""
    for name in ALL:
        stem, _, variant = name.partition(":")
        one, other = (FILES[stem].get_config(*filter(None, [variant])) for _ in "ab")
        shared = {id(node) for _, node in walk(one)}
        for path, node in walk(other):
            assert id(node) not in shared, f"{name} {path}"


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_a_table_with_a_command(name):
    module = FILES[name]
    assert re.search(rf"--config=(configs/)?{name}(\.py)?\b", module.__doc__)
    assert len(pathlib.Path(module.__file__).read_text().splitlines()) <= MAX_LINES
    assert module.get_config().name  # there is a default


def test_parameter_counts_of_the_published_models():
    counts = {
        variant: count(build.network(FILES["pixnerd"].get_config(variant)).shapes())
        / 1e6
        for variant in ("xl16_256", "l16_256", "baseline_l16_256")
    }
    # Tables 2 and 3 of the paper.
    assert counts == pytest.approx(
        {"xl16_256": 700, "l16_256": 458, "baseline_l16_256": 459}, rel=0.02
    )


# Size, steps, batch, learning rate, beta 2 and time shift of the text models' stages.
STAGES = {
    ("pixnerd_t2i", "pretrain_256"): (256, 200_000, 1536, 2e-4, 0.95, 2.0),
    ("pixnerd_t2i", "pretrain_512"): (512, 80_000, 512, 1e-4, 0.95, 4.0),
    ("pixnerd_t2i", "sft_512"): (512, 60_000, 512, 1e-5, 0.999, 4.0),
    ("deco_t2i", "pretrain_256"): (256, 200_000, 1536, 2e-4, 0.95, 2.0),
    ("deco_t2i", "pretrain_512"): (512, 100_000, 512, 1e-4, 0.95, 4.0),
    ("deco_t2i", "sft_512"): (512, 60_000, 512, 1e-5, 0.999, 4.0),
    ("pixelgen_t2i", "pretrain_256"): (256, 200_000, 1536, 1e-4, 0.999, 1.0),
    ("pixelgen_t2i", "pretrain_512"): (512, 80_000, 512, 1e-4, 0.999, 1.0),
    ("pixelgen_t2i", "sft_512"): (512, 40_000, 512, 1e-5, 0.999, 1.0),
}


@pytest.mark.parametrize(("name", "variant"), STAGES, ids=":".join)
def test_the_stages_of_text_models_are_as_published(name, variant):
    config = FILES[name].get_config(variant)
    size, adam = config.data.image_size, config.optimizer
    table = (size, config.steps, config.batch_size, adam.lr, adam.b2)
    assert (*table, config.time.shift) == STAGES[name, variant]
    assert (adam.clip, adam.weight_decay, config.ema) == (1.0, 0.0, (0.9999,))
    assert (config.model.feature_layer, config.model.mask_text, config.data.flip) == (
        6,
        0,
        0,
    )
    assert config.conditioner.length == 128 and config.conditioner.drop == 0.1
    assert config.sampling == PRESETS["adams25_cfg4"]()
    sampling = config.sampling
    assert sampling.solver == AdamsBashforth(order=2)
    assert (sampling.grid.steps, sampling.grid.shift) == (25, 3.0)
    # The official solver's window is open: the step from pure noise is not guided.
    assert sampling.guidance.scale == 4.0
    assert sampling.guidance.active(np.array([0.0, 0.01, 0.99])).tolist() == [0, 1, 1]


STAGED = [name for name in FILES if name.endswith("_t2i") and name != "emoji_t2i"]


@pytest.mark.parametrize("name", STAGED)
def test_each_stage_can_begin_with_the_weights_of_the_last(name):
    """All parameters have the same shapes, but for the positions of another size."""
    stages = [
        build.network(FILES[name].get_config(variant)).shapes()
        for variant in config_files.variants(name)
        if variant != "emoji"
    ]
    for before, after in itertools.pairwise(stages):
        other = {line.split()[1] for line in shape_errors(before, after)}
        assert other <= ({"position"} if name == "pixelgen_t2i" else set())


def overridden(*arguments: str) -> Experiment:
    """A config file as the command line loads it."""
    return load_config("emoji:demo", arguments)


@pytest.mark.parametrize(
    ("argument", "path", "value"),
    [
        ("--config.steps=12", "steps", 12),
        ("--config.name=other", "name", "other"),
        ("--config.optimizer.lr=2e-4", "optimizer.lr", 2e-4),
        ("--config.model.decoder.width=24", "model.decoder.width", 24),
        ("--config.terms[0].weight=0.2", "terms[0].weight", 0.2),
        ("--config.ema=(0.9, 0.99)", "ema", (0.9, 0.99)),
        ("--config.data.flip=true", "data.flip", True),
        ("--config.data.flip", "data.flip", True),
        ("--config.adaptive_weight=build", "adaptive_weight.every", 50),
        ("--noconfig.data.flip", "data.flip", False),
        ("--config.data.source.holdout=0.5", "data.source.holdout", 0.5),
        ("--config.sampling.guidance.high=0.7", "sampling.guidance.high", 0.7),
        ("--config.sampling.grid.steps=7", "sampling.grid.steps", 7),
        ("--config.sampling.grid.stage_steps=(7,)", "sampling.grid.stage_steps", (7,)),
        ("--config.path.noise_scale=2.0", "path.noise_scale", 2.0),
        (
            "--config.teachers.dino.weights=/data/d.pth",
            "teachers.dino.weights",
            "/data/d.pth",
        ),
        ("--config.teachers.dino.variant=vits14", "teachers.dino.variant", "vits14"),
        (
            "--config.checkpoint.allow=('optimizer.lr',)",
            "checkpoint.allow",
            ("optimizer.lr",),
        ),
    ],
)
def test_the_command_line_sets_any_field(argument, path, value):
    config = overridden(argument)
    assert eval(f"config.{path}") == value
    # Nothing else has changed, and the next load is the original again.
    original = overridden()
    assert config != original or argument == "--noconfig.data.flip"
    assert original == FILES["emoji"].get_config("demo")


def test_checkpoint_advice_can_be_pasted():
    """What a refused checkpoint proposes is a valid flag, for one field and for two."""
    for names in (("seed",), ("seed", "optimizer.lr")):
        listed = ", ".join(repr(name) for name in names)
        config = overridden(f"--config.checkpoint.allow=({listed},)")
        assert config.checkpoint.allow == names


def test_a_field_that_does_not_exist_is_refused_with_the_class():
    with pytest.raises(ConfigError, match="The fields of Experiment are name"):
        overridden("--config.stepz=3")


def test_an_override_of_a_class_without_that_field_is_refused():
    with pytest.raises(ConfigError, match="The fields of ClassLabels are drop"):
        overridden("--config.conditioner.tokenizer=t5")
    assert dataclasses.fields(ClassLabels)[0].name == "drop"
