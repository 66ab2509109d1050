"""Errors that a user can mend: each is one paragraph, what is wrong and what to do."""

# What commands end with, for launchers that decide whether to start again (the table
# in docs/reliability.md). 0: done; 2: a command line that cannot be read.
WRONG = 1  # a user must mend something first, or this is a fault of the program
STOPPED = 75  # a signal: all is saved, and the same command goes on
LOST = 76  # another process of the run was lost: the same command goes on
DIVERGED = 77  # the loss is beyond help by itself
INTERRUPTED = 130  # Ctrl-C where nothing was to be saved, as shells report it


class UserError(Exception):
    """What a user can mend; commands print it as one paragraph, without a traceback.

    `code` is what they end with.
    """

    code = WRONG


class StartError(UserError, RuntimeError):
    """Processes that do not find each other, or were not given the same."""


class ConfigError(UserError, ValueError):
    """Fields that do not make sense, alone or together; lists all of them."""


class DataError(UserError, ValueError):
    """Data or its configuration cannot be used as asked."""


class UnreadableImage(DataError):
    """One image cannot be decoded or is unfit; the loader replaces and counts it."""


class NoCaption(UnreadableImage):
    """One image has no caption that can be read; it is replaced and counted alike."""


class PromptError(UserError, ValueError):
    """What was given as a prompt is none."""


class WeightsError(UserError, ValueError):
    """Weights are absent, unreadable, damaged, or another network's."""


class HubError(UserError, ValueError):
    """The Hub cannot be reached, or does not do what it was asked for."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written or read, or does not belong to this config."""


class DivergedError(UserError, RuntimeError):
    """A loss or gradient stopped being finite, or grew beyond the guard."""

    code = DIVERGED


class LostError(UserError, RuntimeError):
    """Another process of the run was lost, or cannot be reached any more."""

    code = LOST


class InitialError(UserError, ValueError):
    """Weights that a run cannot begin with."""


class PipelineError(UserError, ValueError):
    """Weights that cannot be loaded, or a request the model cannot serve."""


class ConvertError(UserError, ValueError):
    """Weights that cannot be converted; says what is wrong and what to do."""


class EvaluationError(UserError, ValueError):
    """Images, references or networks that no metric can be computed from."""
