"""The ranges of values: of every config field, of flags and of arguments."""

import argparse
import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from absl import flags

from pixelflow_jax import values
from pixelflow_jax.config_types import type_errors
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment, node_classes
from pixelflow_jax.values import Range, Words

# Values for the fields that have no default.
SIZES = {"width": 16, "hidden": 16, "depth": 1, "heads": 2}


def leaves(annotation: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The annotations of the scalars that a field may hold, in tuples as well."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (*values.UNIONS, list, tuple):
        for one in arguments:
            yield from leaves(one, path)
    else:
        yield path, annotation


def classes() -> list[type]:
    """The classes of the package that a config may hold."""
    every = node_classes().values()
    return [cls for cls in every if cls.__module__.startswith("pixelflow_jax.")]


def fields() -> list[tuple[type, str, Any]]:
    """Every field of every class that a config may hold, with what it is made of."""
    return [
        (cls, name, annotation)
        for cls in classes()
        for name, whole in values.annotations(cls).items()
        for _, annotation in leaves(whole, name)
    ]


def test_every_number_and_text_of_a_config_has_a_range():
    bare = [
        f"{cls.__name__}.{name}"
        for cls, name, annotation in fields()
        if annotation in (int, float, str)
    ]
    assert not bare, f"give these a kind of values.py: {bare}"
    assert len(fields()) > 200


def outside(kind: Any) -> list[Any]:
    """Values of a kind's type that lie out of its range."""
    base, bounds = typing.get_args(kind)[:2]
    if isinstance(bounds, Words):
        return ["a\0b", *([] if bounds.empty else ["", " "])]
    wrong: list[Any] = [10**400]
    if base is float:
        wrong += [math.nan, *([] if bounds.also else [math.inf, -math.inf])]
    if bounds.low > -math.inf:
        wrong += [bounds.low - 1, base(-(2**40))]
        wrong += [] if bounds.interval[0] == "[" else [base(bounds.low)]
    if bounds.high < math.inf:
        wrong += [bounds.high + 1]
        wrong += [] if bounds.interval[1] == "]" else [base(bounds.high)]
    if bounds.multiple_of > 1:
        wrong += [bounds.low + 1]
    return [one for one in map(base, wrong[1:]) if one not in bounds.also] + wrong[:1]


def wrapped(whole: Any, value: Any) -> Any:
    """A value as a field holds it: inside as many tuples as its annotation has."""
    if typing.get_origin(whole) in (list, tuple):
        return (wrapped(typing.get_args(whole)[0], value),)
    return value


def make(cls: type) -> Any:
    """A node of a class with its defaults."""
    required = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    return cls(**{name: SIZES.get(name, "x") for name in required})


def test_every_value_out_of_its_range_is_refused_by_its_path():
    count = 0
    for cls in classes():
        assert not type_errors(make(cls)), "the defaults lie in their ranges"
        for name, whole in values.annotations(cls).items():
            for _, kind in leaves(whole, name):
                if typing.get_origin(kind) is not Annotated:
                    continue
                for value in outside(kind):
                    node = make(cls)
                    setattr(node, name, wrapped(whole, value))
                    problems = type_errors(node, "part")
                    assert any(
                        one.startswith(f"part.{name}") and " must be " in one
                        for one in problems
                    ), (cls, name, value)
                    count += 1
    assert count > 600


def test_a_config_says_all_of_them_with_their_paths():
    config = Experiment(name="x", steps=0, ema=(0.9, 1.5))
    config.optimizer.lr = math.nan
    config.data.threads = 0
    assert type_errors(config) == [
        "steps=0 must be a whole number of at least 1",
        "data.threads=0 must be a whole number from 1 to 4,096",
        "optimizer.lr=nan must be a finite number above 0 and at most 1",
        "ema[1]=1.5 must be a finite number of at least 0 and below 1",
    ]


def test_what_is_out_of_range_is_refused_from_a_file():
    written = Experiment(name="x").to_dict()
    written["model"]["heads"] = 0
    with pytest.raises(ConfigError, match=r"model\.heads=0 must be a whole number"):
        Experiment.from_dict(written)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (values.Finite, "a finite number"),
        (values.Positive, "a finite number above 0"),
        (values.Count, "a whole number of at least 1"),
        (values.Seed, "a whole number from 0 to 4,294,967,295"),
        (values.Share | None, "a finite number from 0 to 1"),
        (tuple[values.Rate, ...], "each a finite number of at least 0 and below 1"),
        (values.AxisSize, "a whole number from 1 to 1,048,576, or -1"),
        (values.Time, "a finite number from 0 to 1, or inf, or -inf"),
        (Annotated[int, Range(low=4, multiple_of=2)], "a multiple of 2 of at least 4"),
        (values.Name, "a text that is not empty"),
        (Literal["a"], ""),
    ],
)
def test_a_kind_is_described_in_words(annotation, words):
    assert values.describe(annotation) == words


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_numbers_of_numpy_are_numbers(value):
    assert values.problems("count", value, values.Count) == []
    (problem,) = values.problems("count", np.int32(0), values.Count)
    assert problem == "count=0 must be a whole number of at least 1"


def test_a_count_beyond_all_counts_is_told_the_most():
    (problem,) = values.problems("steps", 2**31, values.Count)
    assert problem.endswith("a whole number from 1 to 2,147,483,647")


class TestFlags:
    @pytest.fixture
    def flag_values(self):
        defined = flags.FlagValues()
        flags.DEFINE_float("guidance", None, "", flag_values=defined)
        flags.DEFINE_multi_float("ends", None, "", flag_values=defined)
        values.limit_flag("guidance", values.NonNegative, defined)
        values.limit_flag("ends", values.Time, defined)
        return defined

    @pytest.mark.parametrize("given", ["--guidance=nan", "--guidance=-1", "--ends=7"])
    def test_a_value_out_of_range_is_refused(self, flag_values, given):
        name = given.split("=")[0]
        with pytest.raises(flags.IllegalFlagValueError, match=f"{name}=.*: must be"):
            flag_values(["", given])

    def test_others_pass(self, flag_values):
        flag_values(["", "--guidance=2", "--ends=0.1", "--ends=1"])
        assert flag_values.guidance == 2

    def test_argparse_takes_the_same_ranges(self, capsys):
        parser = argparse.ArgumentParser()
        parser.add_argument("--workers", type=values.parser(values.Count))
        assert parser.parse_args(["--workers", "3"]).workers == 3
        with pytest.raises(SystemExit):
            parser.parse_args(["--workers", "0"])
        message = "argument --workers: 0 must be a whole number of at least 1"
        assert message in capsys.readouterr().err
