"""What one benchmark measures, as data: a case, and the work it stands for."""

import dataclasses
import json
import math
import re

from benchmarks import harness, layouts, work
from pixelflow_jax import build as builders
from pixelflow_jax.config_io import to_dict
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.mesh import AXES
from pixelflow_jax.models.interface import Network
from pixelflow_jax.sampling.choices import SOLVERS
from pixelflow_jax.validate import validate

TRAIN, SAMPLE = "train", "sample"
BATCH_AXES = "data", "fsdp"  # along which a batch is split
# Short names of fields that are changed often.
FIELDS = {
    "attention": "kernels.attention",
    "depth": "model.depth",
    "field_remat": "model.decoder.stack.remat",
    "remat": "model.stack.remat",
    "scan": "model.stack.scan",
    "size": "data.image_size",
    "solver": "sampling.solver",
    "steps": "sampling.grid.steps",
    "unroll": "model.stack.unroll",
}
# Flow matching alone, without teachers: one more short name, with its only value.
FLOW = {"terms": [to_dict(FlowMatching())], "adaptive_weight": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A training step ("train") or a sampler ("sample") of a config.

    `changes` maps fields of the config, by their dotted path, to values as
    `nodes.to_dict` writes them. `layout` says how a cascade is trained (see `layouts`).
    """

    what: str
    config: str
    batch: int
    changes: dict = dataclasses.field(default_factory=dict)
    layout: str = "packed"
    name: str = ""

    @property
    def label(self) -> str:
        """The name, or a description in its place."""
        return self.name or self.key

    @property
    def key(self) -> str:
        """What is measured, whatever it is called: `parse` reads it back."""
        words = [self.what, self.config, str(self.batch)]
        if self.layout != "packed":
            words.append(f"layout={self.layout}")
        compact = {"separators": (",", ":")}
        words += [f"{k}={json.dumps(v, **compact)}" for k, v in self.changes.items()]
        return " ".join(words)

    @property
    def names_devices(self) -> bool:
        """Whether its mesh says how many devices it takes, and not all there are."""
        sizes = [self.changes.get(f"mesh.{axis}") for axis in AXES]
        return any(sizes) and -1 not in sizes

    @property
    def devices(self) -> int:
        """How many devices its mesh names; 1 where it takes what is there."""
        sizes = (self.changes.get(f"mesh.{axis}", 1) for axis in AXES)
        return math.prod(size for size in sizes if size > 0)

    def on_mesh(self, text: str) -> "Case":
        """The same on "data=2,fsdp=2", its batch a device's; "" changes nothing.

        Raises ValueError for other axes than a mesh has.
        """
        if not text:
            return self
        pairs = dict(part.split("=", 1) for part in text.split(","))
        if unknown := set(pairs) - set(AXES):
            raise ValueError(
                f"--mesh={text}: {', '.join(sorted(unknown))} is no axis; there are "
                f"{', '.join(AXES)}."
            )
        mesh = {f"mesh.{axis}": int(pairs.get(axis, 1)) for axis in AXES}
        moved = dataclasses.replace(self, changes={**self.changes, **mesh})
        split = math.prod(mesh[f"mesh.{axis}"] for axis in BATCH_AXES)
        name = self.name and f"{self.name} {text}"
        return dataclasses.replace(moved, batch=self.batch * split, name=name)

    def to_json(self) -> str:
        """The case as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Case":
        """The case that `to_json` wrote."""
        return Case(**json.loads(text))

    @staticmethod
    def parse(text: str) -> "Case":
        """A case in words: "train configs/pixnerd.py:xl16_256 32 terms=flow scan=1".

        Behind what, config and batch come changes: the short names of FIELDS (scan: 0
        or 1, whether layers are scanned or written out),
        terms=flow, layout=..., or any field's path with a value in JSON. Raises
        ValueError for anything else.
        """
        what, config, batch, *words = text.split()
        pairs = dict(word.split("=", 1) for word in words)
        layout = pairs.pop("layout", "packed")
        found = {"what": what, "config": config, "batch": int(batch), "layout": layout}
        return Case(**found, changes=changes(**pairs))

    def experiment(self) -> Experiment:
        """The config with the changes, validated."""
        tree = harness.load_config(self.config).to_dict()
        for path, value in self.changes.items():
            _put(tree, path, value)
        tree["batch_size"] = self.batch if self.what == TRAIN else tree["batch_size"]
        config = Experiment.from_dict(tree)
        validate(config)
        return config


def changes(**short: object) -> dict:
    """Changes by short names; values that are None or "" change nothing."""
    found = {}
    for name, value in short.items():
        if value in (None, ""):
            continue
        if name == "terms" and value == "flow":
            found |= FLOW
        elif name == "scan":
            found[FIELDS[name]] = bool(_value(value))
        elif name == "solver" and value in SOLVERS:
            found[FIELDS[name]] = to_dict(SOLVERS[value])
        else:
            found[FIELDS.get(name, name)] = _value(value)
    return found


def current_words(changes: dict) -> dict:
    """Changes of a row that was recorded with version 0.1 of the package."""
    current = {}
    for path, value in changes.items():
        path = path.replace("model.loop.", "model.stack.")
        if path == "model.stack.unroll" and value in (0, 1):
            path, value = "model.stack.scan", bool(value)
        current["adaptive_weight" if path == "balance" else path] = value
    return current


def build(case: Case) -> work.Work:
    """The work that a case stands for."""
    config = case.experiment()
    if case.what == SAMPLE:
        return work.sampling(config, case.batch)
    if case.what != TRAIN:
        raise ValueError(f"A case is {TRAIN!r} or {SAMPLE!r}, not {case.what!r}.")
    objective = builders.objective(config)
    apply = layouts.LAYOUTS[case.layout](objective.network.apply)
    network = Network(objective.network.init, apply)
    return work.training(config, dataclasses.replace(objective, network=network))


def _value(value: object) -> object:
    """What a word of the command line says: JSON where it is, else itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _put(tree: object, path: str, value: object) -> None:
    """Set the field at "a.b[0].c" in nested dicts and lists; it must be there."""
    *inside, last = re.findall(r"[^.\[\]]+", path)
    at = tree
    for name in inside:
        at = at[int(name) if isinstance(at, list) else name]
    last = int(last) if isinstance(at, list) else last
    if not isinstance(at, list) and last not in at:
        raise ValueError(f"{path}: there is no such field; there are {', '.join(at)}.")
    at[last] = value
