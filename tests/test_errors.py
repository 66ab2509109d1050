"""Errors that a user can mend share one root, and keep the bases they are caught by."""

import inspect

import pytest

from pixelflow_jax import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_user_error(kind):
    assert issubclass(kind, errors.UserError)
    if kind is not errors.UserError:
        assert issubclass(kind, ValueError | RuntimeError)


def test_all_kinds_live_in_one_place():
    assert len(KINDS) > 10 and {kind.__module__ for kind in KINDS} == {errors.__name__}
