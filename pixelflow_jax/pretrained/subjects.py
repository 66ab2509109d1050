"""What a model can be asked to draw: classes, by number or name, or prompts."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.conditioning.labels import label_problems
from pixelflow_jax.conditioning.prompts import Prompts
from pixelflow_jax.config_io import to_dict
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.experiment import Experiment

LISTED = 30  # names of classes in a message
# The parts of a config that decide images besides its sampling settings.
DECISIVE = ("model", "path", "prediction", "precision", "kernels")


def decisive_settings(config: Experiment, size: tuple[int, int]) -> dict[str, Any]:
    """The part of a config that decides images of (height, width), as JSON."""
    written = to_dict(config)
    sampling = {k: v for k, v in written["sampling"].items() if k != "batch_size"}
    height, width = size
    own = {name: written[name] for name in DECISIVE}
    return {**own, "sampling": sampling, "height": height, "width": width}


class Subjects(Protocol):
    """Turns requests into what the conditioner reads."""

    conditioner: Conditioner  # the model's, made to read requests
    example: int | str  # something that can be asked for, whatever it is

    def read(
        self, wanted: Sequence[int | str], negative: str | Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Arrays [n, ...] of what is wanted and of what guidance leads away from."""
        ...

    def load(self, mesh: Mesh) -> dict:
        """Parameters of the conditioner's frozen networks on the devices, by name."""
        ...


def subjects(config: Experiment, class_names: tuple[str, ...]) -> Subjects:
    """What the model of a config can be asked for."""
    if config.model.condition.reads_text:
        return Prompts(config.conditioner)
    return Classes(config.conditioner, class_names, config.model.num_classes)


@dataclasses.dataclass
class Classes:
    """Classes by number or name; `names` may be empty."""

    conditioner: Conditioner
    names: tuple[str, ...]
    count: int
    example: int | str = 0

    def read(
        self, wanted: Sequence[int | str], negative: str | Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Labels, int32 [n], as "label"; PipelineError for negative prompts."""
        if negative:
            raise PipelineError(
                "This model draws classes, which have no negative prompts."
            )
        return {"label": self.labels(wanted)}

    def load(self, mesh: Mesh) -> dict:
        """Nothing."""
        return {}

    def labels(self, classes: Sequence[int | str]) -> np.ndarray:
        """Labels int32 [n] from class numbers or names; PipelineError for unknown ones.

        A name may be written as on disk: "smileys-emotion" for "Smileys & Emotion".
        """
        numbers = [self._label(c) for c in classes]
        problems = label_problems(sorted(set(numbers)), self.count)
        if problems:
            raise PipelineError(f"{problems[0]}: {self._listed()}.")
        return np.asarray(numbers, np.int32)

    def _listed(self) -> str:
        """The names of the classes, of which a message holds not too many."""
        shown, more = self.names[:LISTED], len(self.names) - LISTED
        return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")

    def _label(self, c: int | str) -> int:
        if not isinstance(c, str):
            return int(c)
        if c in self.names:
            return self.names.index(c)
        if re.fullmatch(r"-?\d+", c.strip()):
            return int(c)
        alike = [i for i, n in enumerate(self.names) if slug(n) == slug(c)]
        if len(alike) != 1:
            problem = "several classes like" if alike else "no class"
            near = difflib.get_close_matches(c, self.names, 1)
            meant = f" Did you mean {near[0]!r}?" if near and not alike else ""
            raise PipelineError(
                f"There is {problem} {c!r}.{meant} The classes are {self._listed()}."
            )
        return alike[0]


def slug(name: str) -> str:
    """Lower-case letters and digits, everything else as single hyphens."""
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-")
