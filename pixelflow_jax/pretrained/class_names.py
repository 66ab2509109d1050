"""What the labels of a run mean."""

import logging

from pixelflow_jax.errors import DataError
from pixelflow_jax.experiment import Experiment

LOG = logging.getLogger(__name__)


def of_run(config: Experiment, saved: tuple[str, ...] | None) -> tuple[str, ...]:
    """The class names of a run, as its checkpoint has them: today's data may differ.

    Runs of earlier versions did not save them: theirs are the data set's, or numbers
    where that is not at hand. None for runs that read text.
    """
    if config.model.condition.reads_text:
        return ()
    if saved is not None:
        return saved
    try:
        return config.data.class_names
    except DataError as error:
        LOG.warning("Classes go by their numbers, without the data set: %s", error)
        return tuple(map(str, range(config.model.num_classes)))
