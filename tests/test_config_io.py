"""Config nodes as JSON, back, compared and checked."""

import dataclasses
import json
import math

import pytest

from pixelflow_jax.config_io import differences, from_dict, to_dict, walk
from pixelflow_jax.config_types import type_errors


@dataclasses.dataclass(kw_only=True)
class Leaf:
    """A part of a config."""

    rate: float = 1.0
    low: float = -math.inf
    names: tuple[str, ...] = ("a",)
    on: bool = True


@dataclasses.dataclass(kw_only=True)
class Root:
    """A config."""

    title: str
    count: int = 3
    leaf: Leaf = dataclasses.field(default_factory=Leaf)
    leaves: list[Leaf] = dataclasses.field(default_factory=list)
    limit: int | None = None
    pair: tuple[float, ...] = ()


CLASSES = (Leaf, Root)


def example() -> Root:
    return Root(
        title="t",
        leaf=Leaf(rate=0.1, names=("x", "y")),
        leaves=[Leaf(), Leaf(low=2.0)],
        limit=4,
        pair=(0.1, 0.30000000000000004),
    )


def test_it_survives_json_to_the_last_bit():
    text = json.dumps(to_dict(example()), allow_nan=False)
    back = from_dict(json.loads(text), CLASSES)
    assert back == example() and type(back.leaf.names) is tuple
    assert type(back.leaves) is list and back.leaf.low == -math.inf


def test_fields_that_are_not_there_take_their_defaults():
    back = from_dict({"class": "Root", "title": "t"}, CLASSES)
    assert back == Root(title="t")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"class": "Stem"}, "class 'Stem'.*knows Leaf, Root"),
        ({"title": "t"}, "class None"),
        ({"class": "Root"}, "lacks Root.title, which has no default"),
        ({"class": "Root", "title": "t", "size": 1}, "sets Root.size.*title, count"),
        ({"class": "Root", "title": "t", "leaf": {"class": "X"}}, "class 'X'"),
    ],
    ids=str,
)
def test_what_another_version_wrote_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        from_dict(data, CLASSES)


def test_differences_are_named_by_their_path():
    old, new = to_dict(example()), to_dict(example())
    assert differences(old, new) == {}
    new["leaf"]["rate"], new["leaves"][1]["on"] = 0.2, False
    assert differences(old, new) == {
        "leaf.rate": (0.1, 0.2),
        "leaves[1].on": (True, False),
    }
    new = to_dict(dataclasses.replace(example(), leaves=[Leaf()]))
    ((path, _),) = differences(old, new).items()
    assert path == "leaves"


def test_a_node_of_another_class_is_one_difference():
    old = {"leaf": {"class": "Leaf", "rate": 1.0}}
    new = {"leaf": {"class": "Stem", "size": 1}}
    assert differences(old, new) == {"leaf": ("Leaf", "Stem")}


def test_a_field_only_one_has_is_absent_in_the_other():
    (path, pair) = differences({"a": None}, {"a": None, "b": None}).popitem()
    assert (path, repr(pair)) == ("b", "(absent, None)")
    (path, pair) = differences({"b": 1}, {}).popitem()
    assert (path, repr(pair)) == ("b", "(1, absent)")


def test_walking_finds_every_node_with_its_path():
    assert [path for path, _ in walk(example())] == [
        "",
        "leaf",
        "leaves[0]",
        "leaves[1]",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 3.0}, "count=3.0 must be of type int"),
        ({"count": True}, "count=True must be of type int"),
        ({"title": 3}, "title=3 must be of type str"),
        ({"limit": "4"}, "limit='4' must be of type int | None"),
        ({"pair": (1, "b")}, "pair=(1, 'b') must be of type tuple[float, ...]"),
        ({"pair": 0.5}, "pair=0.5 must be of type tuple[float, ...]"),
        ({"leaf": Leaf(on=1)}, "leaf.on=1 must be of type bool"),
        ({"leaf": Leaf(rate="fast")}, "leaf.rate='fast' must be of type float"),
        ({"leaves": [Leaf(), Leaf(names=(1,))]}, "leaves[1].names=(1,) must be of"),
    ],
    ids=str,
)
def test_values_of_another_type_are_named(changes, message):
    (problem,) = type_errors(dataclasses.replace(example(), **changes))
    assert problem.startswith(message)


def test_whole_numbers_are_floats_too():
    assert type_errors(example()) == []
    assert type_errors(Root(title="t", leaf=Leaf(rate=1), pair=(1, 2))) == []
