"""A Fréchet distance of what a run draws, every so many steps of training."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np

from pixelflow_jax.data.images import to_uint8
from pixelflow_jax.evaluation.features import Extractor
from pixelflow_jax.evaluation.metrics import METRICS, evaluate
from pixelflow_jax.evaluation.passes import set_features
from pixelflow_jax.evaluation.references import Reference
from pixelflow_jax.sampling.batches import Generator, Request, Weights
from pixelflow_jax.sampling.stream import check_finite
from pixelflow_jax.values import Count, Place, Several

Distance = Literal["fid", "fd_dinov2", "fd_dinov2_b", "fd_lite0"]
MOST = 50_000  # training images behind a reference, at most


@dataclasses.dataclass(kw_only=True)
class OnlineMetric:
    """Measure `metric` of `num_samples` images every `every` steps of training.

    They are drawn from the first average with the config's sampling, always from the
    same noise and for the same classes or captions. `weights` is the file of the
    metric's network ("": as for `pixelflow evaluate`), `reference` a file of
    statistics; without one the training images are what is compared with. The value is
    logged under its name and count, "fid_5000", since a distance of fewer images is a
    larger one: it ranks the checkpoints of a run, and is no FID to report. The best
    checkpoint by it is kept in WORKDIR/best.
    """

    metric: Distance = "fid"
    every: Count = 10_000
    num_samples: Several = 5000
    weights: Place = ""
    reference: Place = ""

    @property
    def extractor(self) -> str:
        """The name of the network behind the metric."""
        return METRICS[self.metric].extractor


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineEvaluation:
    """Carries out an `OnlineMetric`: called with parameters, returns its value.

    `given` is what the conditioner reads for the images to draw; `compared` makes the
    reference, when it is first needed.
    """

    policy: OnlineMetric
    generator: Generator
    given: dict[str, np.ndarray]
    seed: int
    extractor: Extractor
    compared: Callable[[], Reference]

    @property
    def every(self) -> int:
        """How many steps lie between two measurements."""
        return self.policy.every

    @functools.cached_property
    def reference(self) -> Reference:
        """What samples are compared with."""
        return self.compared()

    def __call__(self, params: dict, frozen_params: dict) -> dict[str, float]:
        """The value, by its name and the number of images.

        `frozen_params` may hold those of other networks, too. Raises PipelineError for
        an image that is not finite, EvaluationError for a reference that does not fit.
        """
        name, reference = self.policy.metric, self.reference
        sets = set_features(
            self._images(Weights(params, frozen_params)),
            [name],
            {self.extractor.name: self.extractor},
            self.policy.num_samples,
        )
        value = evaluate([name], sets, reference)[name]
        return {f"{name}_{self.policy.num_samples}": value}

    def _images(self, weights: Weights) -> Iterator[tuple[int, np.ndarray]]:
        generator = self.generator
        request = Request(self.given, self.seed)
        per_device = generator.per_device(request.count)
        for place, drawn in generator.iterate(weights, request, per_device=per_device):
            check_finite(drawn.images, place)
            yield place, to_uint8(drawn.images)


def first_of(
    batches: Iterable[dict[str, np.ndarray]], names: Iterable[str], count: int
) -> dict[str, np.ndarray]:
    """The arrays called `names` of the first `count` images of one pass.

    They come again from the first on where there are fewer. A "weight" of 0 marks what
    only fills a batch.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    seen = 0
    for batch in batches:
        real = batch["weight"] > 0
        for name, part in parts.items():
            part.append(batch[name][real])
        seen += int(real.sum())
        if seen >= count:
            break
    places = np.arange(count) % seen
    return {name: np.concatenate(part)[places] for name, part in parts.items()}


def reference_of(
    batches: Iterable[dict[str, np.ndarray]], metric: str, extractor: Extractor
) -> Reference:
    """A reference made of the first images of one pass over a data set, 50,000 at most.

    A batch holds "image" float32 [b, h, w, 3] in [-1, 1], and "weight" as above; every
    process is given all.
    """

    def numbered() -> Iterator[tuple[int, np.ndarray]]:
        first = 0
        for batch in batches:
            images = to_uint8(batch["image"][batch["weight"] > 0])
            yield first, images
            first += len(images)
            if first >= MOST:
                return

    sets = set_features(numbered(), [metric], {extractor.name: extractor})
    count = sets[extractor.name].count
    return Reference(
        path="the training images", sha256="", kind="data", sets=sets, count=count
    )
