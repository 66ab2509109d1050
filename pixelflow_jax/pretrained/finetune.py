"""How a run begins with the weights of another model: what is taken, what is not.

The rule. Parameters of the same path and shape are taken. How a trunk is cut into
stacks does not matter: its layers are counted through. All others begin anew, as in a
run from scratch, and are listed; each belongs to the kinds of difference that change
its shape, which are groups of the model's fields (`KINDS`). Kinds other than
"resolution", which only changes tables that are computed, must be asked for by name.
A difference that no kind explains, such as another width, is refused.

Projectors of loss terms and the optimizer's state always begin anew.
"""

import dataclasses
import re
import tempfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pixelflow_jax.config_io import differences, is_under, to_dict
from pixelflow_jax.errors import InitialError
from pixelflow_jax.models.interface import DenoiserConfig, network
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.tensors.paths import by_path, nested
from pixelflow_jax.training.checkpoint import FREE

# Which fields of a model make up each kind of difference.
KINDS = {
    "resolution": ("image_size",),
    "classes": ("num_classes",),
    "text": ("text_width", "text_length"),
    "patch": ("patch", "channels", "bottleneck"),
    "context": ("context_length",),
    "decoder": ("decoder",),
}
COMPUTED = "resolution"
EXPLAINED = tuple(f"model.{field}" for fields in KINDS.values() for field in fields)
STACKS = ("early", "middle", "late")
STACK = re.compile(rf"(?:^|(?<=/))({'|'.join(STACKS)})/(?=blocks/)")

Shape = tuple[int, ...]


class Difference(NamedTuple):
    """A parameter that differs, by its path without the stack; None: it is absent."""

    name: str
    theirs: Shape | None
    ours: Shape | None
    kinds: tuple[str, ...]

    def __str__(self) -> str:
        if self.theirs is None:
            return f"{self.name} {self.ours}: not there"
        if self.ours is None:
            return f"{self.name} {self.theirs}: there only"
        return f"{self.name} {self.ours}: {self.theirs} there"


@dataclasses.dataclass(frozen=True)
class Compatibility:
    """What one model may take over from another, by their configs alone."""

    theirs: DenoiserConfig
    ours: DenoiserConfig
    shapes: dict[str, Shape]  # of our parameters
    differences: tuple[Difference, ...]

    def check(self, reset: tuple[str, ...]) -> None:
        """Raises InitialError for differences whose kinds are not all in `reset`."""
        if type(self.theirs) is not type(self.ours):
            raise InitialError(
                f"They are the weights of a {type(self.theirs).__name__}, but this run "
                f"trains a {type(self.ours).__name__}: start from weights of the same "
                "kind of model."
            )
        strange = [d for d in self.differences if not d.kinds]
        if strange:
            unexplained = changed_fields(
                {"model": self.theirs}, {"model": self.ours}, EXPLAINED
            )
            fields = [f"field {line}" for line in unexplained]
            parameters = [f"parameter {one}" for one in strange]
            raise InitialError(
                "Their model differs from this run's in more than may begin anew "
                f"(theirs -> ours):{_listed([*fields, *parameters])}"
            )
        wanted = {kind for d in self.differences for kind in d.kinds} - {COMPUTED}
        if not wanted <= set(reset):
            enough = tuple(sorted(wanted | set(reset)))
            raise InitialError(
                f"Not all of them fit this run's model. What differs:"
                f"{_listed(map(_reason, self.differences))}\nIf this may begin anew, "
                f'say so: --config.init_reset="{enough}".'
            )

    def take(self, params: dict) -> dict:
        """Of their parameters those that fit, cut into our stacks (numpy)."""
        have = by_path(params)
        differing = {d.name for d in self.differences}
        sources, taken = _places(have), {}
        for name, places in _places(self.shapes).items():
            if name in differing:
                continue
            parts = [np.asarray(have[place]) for place in sources[name]]
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            depths = [self.shapes[place][0] for place in places[:-1]]
            cut = np.split(whole, np.cumsum(depths)) if depths else [whole]
            taken |= dict(zip(places, cut, strict=True))
        return nested(taken)

    def report(self) -> list[str]:
        """What is taken and what is not, in lines."""
        want = _joined(self.shapes)
        differing = {d.name for d in self.differences}
        sizes = {name: int(np.prod(shape)) for name, shape in want.items()}
        taken = [size for name, size in sizes.items() if name not in differing]
        lines = [
            f"taken over: {len(taken)} of {len(want)} parameters, {sum(taken):,} of "
            f"{sum(sizes.values()):,} numbers"
        ]
        if self.differences:
            lines += ["not taken over:", *(f"  {_reason(d)}" for d in self.differences)]
        return lines


def changed_fields(
    theirs: dict[str, object], ours: dict[str, object], without: Iterable[str] = ()
) -> list[str]:
    """In which fields nodes differ that go by the same names; a line each.

    Fields that change no step are left out, like those is_under `without`.
    """
    old, new = ({k: to_dict(v) for k, v in nodes.items()} for nodes in (theirs, ours))
    return [
        f"{path}: {before!r} -> {after!r}"
        for path, (before, after) in differences(old, new).items()
        if not is_under(path, (*FREE, *without))
    ]


def compare(theirs: DenoiserConfig, ours: DenoiserConfig) -> Compatibility:
    """Which parameters of model `ours` differ from those of model `theirs`, and why."""
    known: dict[str, dict[str, Shape]] = {}

    def shapes_of(model: DenoiserConfig) -> dict[str, Shape]:
        # What is taken back is often theirs, and a network takes a second to trace.
        if repr(model) not in known:
            known[repr(model)] = _shapes(model)
        return known[repr(model)]

    shapes = shapes_of(ours)
    if type(theirs) is not type(ours):
        return Compatibility(theirs, ours, shapes, ())
    have, want = _joined(shapes_of(theirs)), _joined(shapes)
    names = sorted(n for n in {*have, *want} if have.get(n) != want.get(n))
    # A parameter belongs to the kinds that change it when taken back one by one; taken
    # back together, they must leave no difference.
    back = {kind: _back(theirs, ours, (kind,)) for kind in KINDS}
    back = {kind: model for kind, model in back.items() if model != ours}
    alone = {kind: _joined(shapes_of(model)) for kind, model in back.items()}
    together = _joined(shapes_of(_back(theirs, ours, tuple(back))))
    listed = []
    for name in names:
        kinds = tuple(k for k in back if alone[k].get(name) != want.get(name))
        explained = together.get(name) == have.get(name)
        shape = have.get(name), want.get(name)
        listed.append(Difference(name, *shape, kinds if explained else ()))
    return Compatibility(theirs, ours, shapes, tuple(listed))


def _reason(difference: Difference) -> str:
    computed = ", computed anew" if difference.kinds == (COMPUTED,) else ""
    return f"{' and '.join(difference.kinds)}: {difference}{computed}"


def _back(
    theirs: DenoiserConfig, ours: DenoiserConfig, kinds: tuple[str, ...]
) -> DenoiserConfig:
    """Our model with their fields of these kinds."""
    node: Any = ours  # a dataclass, which its Protocol does not say
    named = {field for kind in kinds for field in KINDS[kind]}
    fields = [f.name for f in dataclasses.fields(node) if f.name in named]
    return dataclasses.replace(node, **{name: getattr(theirs, name) for name in fields})


def _shapes(model: DenoiserConfig) -> dict[str, Shape]:
    """Every parameter's shape, by its path."""
    shapes = network(model, Precision()).shapes()
    flat = by_path(shapes)
    return {name: leaf.shape for name, leaf in flat.items()}


def _places(names: Iterable[str]) -> dict[str, list[str]]:
    """Paths by what they are without the stack, the first layers first."""

    def rank(name: str) -> int:
        match = STACK.search(name)
        return STACKS.index(match[1]) if match else 0

    places: dict[str, list[str]] = {}
    for name in sorted(names, key=rank):
        places.setdefault(STACK.sub("", name), []).append(name)
    return places


def _joined(shapes: dict[str, Shape]) -> dict[str, Shape]:
    """Shapes with all stacks of a trunk as one."""
    whole = {}
    for name, places in _places(shapes).items():
        parts = [shapes[place] for place in places]
        depth = sum(shape[0] for shape in parts) if STACK.search(places[0]) else None
        whole[name] = parts[0] if depth is None else (depth, *parts[0][1:])
    return whole


def _listed(lines: Iterable[str], most: int = 3) -> str:
    """The first ones in a line; where there are more, all of them in a file."""
    lines = list(lines)
    shown = f"\n  {'; '.join(lines[:most])}"
    if len(lines) <= most:
        return shown
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix="differences-", suffix=".txt", delete=False
    ) as file:
        file.write("\n".join(lines) + "\n")
    return f"{shown}; all {len(lines)} are in {file.name}"
