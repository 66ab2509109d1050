"""Every field of every class that a config may hold is checked against its type.

A wrong value is told in one ConfigError that names the field, whatever the value is.
"""

import dataclasses
import sys
import textwrap
import types

import pytest

from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.config_io import walk
from pixelflow_jax.config_types import field_types, fits, type_errors
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.encoders.bert import Bert
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment, node_classes, unreadable
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Straight
from pixelflow_jax.flow.solver import Euler, Heun
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.models.pixnerd import PixNerd
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.registry import implementations
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.optimizer import AdamW
from pixelflow_jax.validate import validate

CLASSES = node_classes()
WRONG = {
    "an object": object(),
    "a word": "no such word",
    "a number": 3.25,
    "a whole number": 7,
    "a complex number": 3j,
    "a truth": True,
    "bytes": b"x",
    "an empty list": [],
    "an empty tuple": (),
    "a list of objects": [object()],
    "a tuple of objects": (object(),),
    "a tuple of a list": ([3.5j],),
    "a dict": {"class": "PixNerd"},
    "a node": Precision(),
    "another node": Heun(),
    "a class": PixNerd,
    "a function": print,
    "a module": sys,
}


def paths() -> dict[type, tuple[Experiment, str]]:
    """A config for every class that holds a node of it, and where it does."""
    found: dict[type, tuple[Experiment, str]] = {}
    nodes = {cls: instance(cls) for cls in CLASSES.values()}
    # What a field may hold is put in its place, one after the other, from the root on.
    waiting = [Experiment(name="x")]
    while waiting:
        config = waiting.pop(0)
        for path, node in walk(config):
            if type(node) in found:
                continue
            found[type(node)] = (config, path)
            for name, wanted in field_types(type(node)).items():
                for node in [node for cls, node in nodes.items() if cls not in found]:
                    for value in (node, [node], (node,)):
                        if fits(value, wanted):
                            waiting.append(changed(config, path, name, value))
    return found


def instance(cls: type) -> object:
    """A node with its defaults, and 8 or "x" where there is none."""
    needed = {f.name for f in dataclasses.fields(cls) if required(f)}
    kinds = {
        name: wanted for name, wanted in field_types(cls).items() if name in needed
    }
    return cls(**{name: 8 if fits(8, kind) else "x" for name, kind in kinds.items()})


def required(field: dataclasses.Field) -> bool:
    nothing = dataclasses.MISSING
    return field.default is nothing and field.default_factory is nothing


def changed(config: Experiment, path: str, name: str, value: object) -> Experiment:
    """A copy of a config with a field of the node at `path` set."""
    copy = Experiment.from_dict(config.to_dict())
    node = dict(walk(copy))[path]
    setattr(node, name, value)
    return copy


PLACES = paths()


def test_every_class_has_a_place():
    assert set(PLACES) == set(CLASSES.values()) and len(PLACES) > 40


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_a_value_of_another_type_is_named(cls):
    config, path = PLACES[cls]
    config = Experiment.from_dict(config.to_dict())
    node = dict(walk(config))[path]
    for name, wanted in field_types(cls).items():
        where, right = f"{path}.{name}".lstrip("."), getattr(node, name)
        wrong = {k: value for k, value in WRONG.items() if not fits(value, wanted)}
        assert len(wrong) >= len(WRONG) - 5, where
        for kind, value in wrong.items():
            setattr(node, name, value)
            with pytest.raises(ConfigError) as caught:
                validate(config)
            message = str(caught.value)
            assert f"- {where}" in message, f"{kind} for {where}: {message}"
            assert "must be" in message and len(message) < 700
        setattr(node, name, right)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"prediction": Heun()},
            "prediction=Heun(...) must be of type Prediction (Pre",
        ),
        ({"path": "straight"}, "path='straight' must be of type Path (Pyramid, Strai"),
        ({"data": None}, "data=None must be of type Data"),
        ({"model": 3}, "model=3 must be of type DenoiserConfig (DeC"),
        (
            {"terms": FlowMatching()},
            "terms=FlowMatching(...) must be of type list[Term",
        ),
        (
            {"terms": [FlowMatching(), Euler()]},
            "terms[1]=Euler(...) must be of type Te",
        ),
        ({"model": PixNerd}, "model=PixNerd (a class, not a value of it) must be of"),
        ({"name": None}, "name=None must be of type str"),
        ({"steps": True}, "steps=True must be of type int"),
        ({"ema": (0.9, "0.99")}, "ema=(0.9, '0.99') must be of type tuple[float, ...]"),
        ({"ema": [0.9]}, "ema=[0.9] must be of type tuple[float, ...]"),
        ({"adaptive_weight": Heun()}, "must be of type AdaptiveWeight | None"),
        ({"sampling": Sampling(solver=ClassifierFree())}, "sampling.solver=Classifier"),
        (
            {"data": Data(source=AdamW())},
            "data.source=AdamW(...) must be of type Source",
        ),
        (
            {"model": PixNerd(stack=StackConfig(remat="all"))},
            "model.stack.remat must be one of 'none', ",
        ),
        (
            {"conditioner": Text(encoder=Bert(attention="fast"))},
            "conditioner.encoder.attention must be one of 'auto', 'xla', 'cudnn', not",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told(fields, words):
    with pytest.raises(ConfigError) as caught:
        validate(Experiment(**{"name": "x", **fields}))
    assert words in str(caught.value), str(caught.value)


def test_what_holds_itself_ends():
    config = Experiment(name="x")
    config.data = Data(source=config)
    (problem,) = type_errors(config)
    assert problem.startswith(
        "data.source=Experiment(...) must be of type SourceConfig"
    )


def test_an_attribute_that_is_no_field_is_named():
    config = Experiment(name="x")
    config.stepz, config.model.widht, config.model.tap = 3, 4, 5
    problems = type_errors(config)
    assert problems[0].startswith(
        "stepz is no field. Did you mean steps? The fields of "
    )
    assert problems[1].startswith("model.widht is no field. Did you mean width? ")
    assert (
        "model.tap is no field. PixNerd.tap is called feature_layer now." in problems[2]
    )
    with pytest.raises(ConfigError, match="stepz is no field"):
        validate(config)


def test_what_objects_remember_for_themselves_is_no_field():
    config = Experiment(name="x")
    config.data.source = ImageFolder(path="x")
    config.data._opened["train", None] = object()
    assert type_errors(config) == []


@dataclasses.dataclass(kw_only=True)
class InMemory(ImageFolder):
    """A data source of a user's own, in the user's own file."""


@dataclasses.dataclass(kw_only=True)
class Faster(AdamW):
    """A class made from one of a closed kind."""


def test_a_class_that_could_not_be_read_back_is_refused():
    config = Experiment(name="x", data=Data(source=InMemory(path="x")))
    with pytest.raises(ConfigError) as caught:
        validate(config)
    message = str(caught.value)
    assert (
        "data.source=InMemory(...) could not be read back from a checkpoint" in message
    )
    assert "put the file that defines it into pixelflow_jax/data/" in message
    assert "entry point of the group 'pixelflow_jax.data'" in message
    (problem,) = unreadable(Experiment(name="x", optimizer=Faster()))
    assert problem.endswith("use AdamW itself")


PACKAGE = """
    import dataclasses
    from pixelflow_jax.flow.time import TimeSampler

    @dataclasses.dataclass(kw_only=True)
    class Early(TimeSampler):
        power: int = 2
        def __call__(self, key, n):
            return self.transform(1.0)
        def transform(self, draw):
            return draw**self.power
"""


@pytest.fixture
def early(tmp_path, monkeypatch):
    """A law of times of a package of its own, which an entry point names."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "early.py").write_text(textwrap.dedent(PACKAGE))
    info = tmp_path / "early-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: early\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pixelflow_jax.flow]\nmine = early\n")
    implementations.cache_clear()
    yield __import__("early").Early
    implementations.cache_clear()


def test_an_entry_point_brings_a_class_of_any_kind(early):
    config = Experiment(name="x", time=early(power=3))
    assert unreadable(config) == [] and type_errors(config) == []
    assert Experiment.from_dict(config.to_dict()) == config
    assert "Early" in node_classes() and type(Experiment(name="y").time) is LogitNormal


def test_two_classes_of_one_name_are_refused(monkeypatch):
    twin = dataclasses.make_dataclass(
        "Straight", [("x", int, 3)], bases=(DenoiserConfig,), kw_only=True
    )
    module = types.ModuleType("twin")
    twin.__module__, module.Straight = "twin", twin
    brought = {**implementations(DenoiserConfig), "Straight": twin}
    monkeypatch.setattr(
        "pixelflow_jax.experiment.implementations",
        lambda kind: brought if kind is DenoiserConfig else implementations(kind),
    )
    with pytest.raises(
        ConfigError, match=r"called Straight, in (twin and|.* and twin)"
    ):
        node_classes()
    assert Straight().stages()
