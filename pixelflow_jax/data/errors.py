"""Errors a user can act on: one paragraph each, what is wrong and what to do."""


class DataError(ValueError):
    """Data or its configuration cannot be used as asked."""


class UnreadableImage(DataError):
    """One image cannot be decoded or is unfit; the loader replaces and counts it."""


class NoCaption(UnreadableImage):
    """One image has no caption that can be read; it is replaced and counted alike."""
