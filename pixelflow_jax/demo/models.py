"""The models that the demo offers: read when they are first chosen, and kept."""

import pathlib
import threading
from collections.abc import Sequence

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.pretrained.pipeline import Pipeline

SHIPPED = ("emoji", "emoji_t2i")


class Models:
    """Pipelines by name. `weights` are what `Pipeline.from_pretrained` takes.

    Written as NAME=WEIGHTS they have that name; otherwise the last part of the path.
    Raises WeightsError for two of one name.
    """

    def __init__(self, weights: Sequence[str]):
        self.places: dict[str, str] = {}
        for one in weights:
            name, found, place = one.partition("=")
            if not found:
                name, place = pathlib.PurePath(one).name or one, one
            if name in self.places:
                raise WeightsError(
                    f"Two models would be called {name!r}, {self.places[name]} and "
                    f"{place}: name them, --weights A={place}."
                )
            self.places[name] = place
        self._pipelines: dict[str, Pipeline] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """All names, in the order that they were given."""
        return list(self.places)

    def __getitem__(self, name: str) -> Pipeline:
        """The pipeline of that name; raises what reading its weights raises."""
        with self._lock:
            if name not in self._pipelines:
                place = self.places[name]
                self._pipelines[name] = Pipeline.from_pretrained(place)
            return self._pipelines[name]
