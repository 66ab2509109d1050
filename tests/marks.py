"""Marks that a single case of a test can have."""

import pytest


def long(*values: object, id: str | None = None):
    """A case that is like the others in all but a choice: for `make test-long`."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.long], id=id)
