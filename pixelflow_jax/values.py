"""The range of every kind of value: of config fields, flags and arguments alike.

A field says its kind with its type, `lr: LearningRate = 1e-4`. A kind is a type with a
`Range` beside it, so that whoever asks (`problems`) and whoever explains (`describe`)
reads the same. What one value alone cannot say, such as low < high, stays with the node
that holds both.
"""

import argparse
import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union

from absl import flags

UNIONS = (Union, types.UnionType)
INFINITIES = (math.inf, -math.inf)
# The most that any count may be: it fits an int32, which devices count with.
MOST = 2**31 - 1
SMALLEST, LARGEST = 2.0**-126, 2.0**128 - 2.0**104  # of the normal float32

Interval = Literal["[]", "(]", "[)", "()"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a value may be; without bounds, all that are finite.

    `interval` says which of the bounds belong to it. `also` holds numbers outside of it
    that have a meaning of their own, such as -1 for "all". A value is a multiple of
    `multiple_of`.
    """

    low: float = -math.inf
    high: float = math.inf
    interval: Interval = "[]"
    also: tuple[float, ...] = ()
    multiple_of: int = 1

    def holds(self, value: Any) -> bool:
        """Whether a number lies in the range."""
        if value in self.also:
            return True
        if not _is_finite(value) or not _fits_float32(value):
            return False
        above = value >= self.low if self.interval[0] == "[" else value > self.low
        below = value <= self.high if self.interval[1] == "]" else value < self.high
        fits = self.multiple_of == 1 or value % self.multiple_of == 0
        return above and below and fits

    def words(self, kind: type, value: Any = 0) -> str:
        """The range of a number of that type, as what `value` must be."""
        noun = "a whole number" if kind is int else "a finite number"
        if kind is float and _is_finite(value) and not _fits_float32(value):
            noun = "a number of float32's range"
        if self.multiple_of > 1:
            noun = f"a multiple of {self.multiple_of}"
        also = "".join(f", or {number(one)}" for one in self.also)
        return f"{noun}{self._bounds(value)}{also}"

    def _bounds(self, value: Any) -> str:
        low, high = number(self.low), number(self.high)
        has_low = self.low > -math.inf
        # That counts fit their type need not be said to those whose counts do.
        has_high = self.high < math.inf and (self.high != MOST or value > MOST)
        if has_low and has_high and self.interval == "[]":
            return f" from {low} to {high}"
        bounds = []
        if has_low:
            bounds.append(
                f"{'of at least' if self.interval[0] == '[' else 'above'} {low}"
            )
        if has_high:
            bounds.append(f"{'at most' if self.interval[1] == ']' else 'below'} {high}")
        return " ".join(["", " and ".join(bounds)]) if bounds else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """The texts that a value may be: `empty` ones too, or not; none holds a NUL.

    None is longer than `longest`, which is what a system takes as a path.
    """

    empty: bool = True
    longest: int = 4095

    def holds(self, value: Any) -> bool:
        """Whether a text is one of those."""
        is_there = self.empty or bool(value.strip())
        return "\0" not in value and is_there and len(value) <= self.longest

    def words(self, kind: type, value: Any = "") -> str:
        """What a value must be."""
        if len(value) > self.longest:
            return f"a text of at most {self.longest:,} characters"
        without = self.empty or "\0" in value
        return "a text without NUL bytes" if without else "a text that is not empty"


Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(low=0, interval="(]")]
NonNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]  # and a probability
Rate = Annotated[float, Range(low=0, high=1, interval="[)")]  # never all: decays
PositiveShare = Annotated[float, Range(low=0, high=1, interval="(]")]
Fraction = Annotated[float, Range(low=0, high=1, interval="()")]
Ratio = Annotated[float, Range(low=1, high=1000)]  # of a larger thing to a smaller
# A time of the path, or an infinity for no bound.
Time = Annotated[float, Range(low=0, high=1, also=INFINITIES)]
Scale = Annotated[float, Range(low=0, high=1000)]  # of guidance; papers stay below 30
Shift = Annotated[float, Range(low=0.001, high=1000)]  # of times, either way
Steps = Annotated[int, Range(low=1, high=10_000)]  # of a solver: evaluations for each
Spread = Annotated[float, Range(low=0, high=100, interval="(]")]  # a deviation
Offset = Annotated[float, Range(low=-100, high=100)]  # of logits
Decay = Annotated[float, Range(low=0, high=100)]  # of weights, times the learning rate
# Adam moves every weight by about this much a step, so that more is never meant.
LearningRate = Annotated[float, Range(low=0, high=1, interval="(]")]

Count = Annotated[int, Range(low=1, high=MOST)]
Several = Annotated[int, Range(low=2, high=MOST)]
Natural = Annotated[int, Range(low=0, high=MOST)]
Seed = Annotated[int, Range(low=0, high=2**32 - 1)]
Pixels = Annotated[int, Range(low=1, high=16_384)]  # of one side of an image
Batch = Annotated[int, Range(low=1, high=2**20)]  # images at once
Width = Annotated[int, Range(low=1, high=2**20)]  # features, tokens, words
OptionalWidth = Annotated[int, Range(low=0, high=2**20)]  # 0 leaves a part out
Depth = Annotated[int, Range(low=1, high=1000)]  # layers
OptionalDepth = Annotated[int, Range(low=0, high=1000)]
Layer = Annotated[int, Range(low=-1000, high=1000)]  # from the end, where negative
Processes = Annotated[int, Range(low=0, high=4096)]  # and threads
AxisSize = Annotated[int, Range(low=1, high=2**20, also=(-1,))]  # -1: what is left

Name = Annotated[str, Words(empty=False)]
Title = Annotated[str, Words(empty=False, longest=200)]  # shown in every message
OptionalTitle = Annotated[str, Words(longest=200)]  # "" for none
Place = Annotated[str, Words()]  # a path, or "" for none


@functools.cache
def annotations(cls: type) -> dict[str, Any]:
    """The annotation of every field of a node's class, kinds included."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError:  # a name that only a type checker imports
        hints = {}
    return {f.name: hints.get(f.name, f.type) for f in dataclasses.fields(cls)}


def problems(path: str, value: object, annotation: Any) -> list[str]:
    """Why a value of the right type is out of its annotation's range, if it is.

    `path` names it in the messages; members of a tuple or list get their index.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        base, *ranges = arguments
        wrong = [r for r in ranges if isinstance(r, Range | Words)]
        wrong = [r for r in wrong if not r.holds(value)]
        return [f"{path}={show(value)} must be {r.words(base, value)}" for r in wrong]
    if origin in UNIONS:
        fitting = [one for one in arguments if _is_kind(value, one)]
        return problems(path, value, fitting[0]) if fitting else []
    if origin in (list, tuple) and isinstance(value, list | tuple):
        each = arguments[:1] * len(value) if _is_uniform(arguments) else arguments
        return [
            problem
            for i, (item, one) in enumerate(zip(value, each, strict=False))
            for problem in problems(f"{path}[{i}]", item, one)
        ]
    return []


def field_problems(node: object, path: str) -> list[str]:
    """Which of a node's own fields are out of their range; its parts are not asked."""
    return [
        problem
        for name, annotation in annotations(type(node)).items()
        for problem in problems(
            f"{path}.{name}".lstrip("."), getattr(node, name), annotation
        )
    ]


def describe(annotation: Any) -> str:
    """The range of a kind in words; "" where it has none."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        ranges = [r for r in arguments[1:] if isinstance(r, Range | Words)]
        return " and ".join(r.words(arguments[0]) for r in ranges)
    if origin in UNIONS:
        inside = [describe(one) for one in arguments]
        return ", or ".join(filter(None, inside))
    if origin in (list, tuple) and arguments:
        inside = describe(arguments[0])
        return f"each {inside}" if inside else ""
    return ""


def limit_flag(
    name: str, annotation: Any, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Give a flag of absl the range of a kind; a flag that is None is not asked.

    Values of flags that hold several are asked one by one.
    """

    def check(value: Any) -> bool:
        each = value if isinstance(value, list | tuple) else [value]
        for one in each:
            if one is not None and problems(name, one, annotation):
                raise flags.ValidationError(f"must be {describe(annotation)}")
        return True

    flags.register_validator(name, check, flag_values=flag_values)


def parser(annotation: Any) -> Callable[[str], Any]:
    """What argparse takes as the `type` of an argument of that kind."""
    base = typing.get_args(annotation)[0]

    def parse(text: str) -> Any:
        try:
            wrong = problems("", base(text), annotation)
        except ValueError:
            wrong = [text]
        if wrong:
            raise argparse.ArgumentTypeError(f"{text} must be {describe(annotation)}")
        return base(text)

    return parse


def show(value: Any) -> str:
    """A value as a message shows it."""
    if isinstance(value, numbers.Number):  # those of numpy show their type otherwise
        value = getattr(value, "item", lambda: value)()
    return repr(value)[:200]


def number(value: float) -> str:
    """A bound as a reader writes it: 0 and not 0.0, and 2147483647 with commas."""
    if value in INFINITIES:
        return "inf" if value > 0 else "-inf"
    return f"{int(value):,}" if value == int(value) else f"{value:.6g}"


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _fits_float32(value: Any) -> bool:
    """Whether a finite number neither overflows float32, which computes, nor vanishes.

    Whole numbers are counted, not computed with.
    """
    if isinstance(value, numbers.Integral):
        return True
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


def _is_uniform(arguments: tuple) -> bool:
    """Whether all members of a list or tuple are of one kind."""
    return len(arguments) == 1 or (len(arguments) == 2 and arguments[1] is Ellipsis)


def _is_kind(value: object, annotation: Any) -> bool:
    """Whether a value could be meant by one of a union's annotations."""
    origin = typing.get_origin(annotation)
    base = typing.get_args(annotation)[0] if origin is Annotated else origin
    base = base or annotation
    if base in (int, float):
        wanted = numbers.Integral if base is int else numbers.Real
        return isinstance(value, wanted) and not isinstance(value, bool)
    try:
        return isinstance(base, type) and isinstance(value, base)
    except TypeError:  # a protocol, which says nothing of ranges
        return False
