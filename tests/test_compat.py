"""The check of the jax and flax pair."""

import subprocess
import sys

import pytest

from pixelflow_jax import compat

WORKING = [
    ("0.10.2", "0.12.7"),
    ("0.10.2", "0.12.8"),
    ("0.11.2", "0.12.10"),
    ("0.12.0.1", "0.12.12"),
    ("0.12.1.dev20270101", "0.12.13"),
]
FAILING = [
    ("0.9.1", "0.12.8", "jax is too old"),
    ("0.10.1", "0.12.12", "jax is too old"),
    ("0.10.2", "0.11.2", "flax is too old"),
    ("0.12.0", "0.12.6", "flax is too old"),
    ("0.11", "0.12.7", "fail on jax 0.11"),
    ("0.12.0.1", "0.12.8", "fail on jax 0.11"),
    ("0.10.2", "0.12.9", "0.12.9 fails"),
    ("0.12.0.1", "0.12.9", "0.12.9 fails"),
    ("0.10.2", "0.12.10", "require jax 0.11"),
]
UNTRIED = [("0.11.0", "0.12.10"), ("0.13.0", "0.12.12"), ("0.12.0.1", "0.13.0")]


def test_installed_pair_works(recwarn):
    compat.check()
    assert not recwarn


@pytest.mark.parametrize(("jax_version", "flax_version"), WORKING)
def test_working_pairs_pass(jax_version, flax_version, recwarn):
    compat.check(jax_version, flax_version)
    assert not recwarn


@pytest.mark.parametrize(("jax_version", "flax_version", "reason"), FAILING)
def test_failing_pairs_are_refused_in_one_paragraph(jax_version, flax_version, reason):
    with pytest.raises(ImportError) as error:
        compat.check(jax_version, flax_version)
    message = str(error.value)
    assert reason in message
    assert f"found jax {jax_version} with flax {flax_version}" in message
    assert f"{sys.executable} -m pip install 'jax>=" in message
    assert "\n" not in message


@pytest.mark.parametrize(("jax_version", "flax_version"), UNTRIED)
def test_untried_pairs_warn(jax_version, flax_version):
    with pytest.warns(UserWarning, match="has not been tried"):
        compat.check(jax_version, flax_version)


def test_the_command_to_mend_leads_to_a_working_pair():
    lowest = [(pair.jax, pair.flax) for pair in compat.PAIRS]
    for jax_bounds, flax_bounds in lowest:
        compat.check(*(b.split(",")[0][2:] for b in (jax_bounds, flax_bounds)))


def test_a_missing_package_is_left_to_its_import(monkeypatch):
    monkeypatch.setattr(compat, "_installed", lambda name: None)
    compat.check()


def test_importing_the_package_imports_the_standard_library_alone():
    """What takes its time (jax, flax, numpy, PIL, ...) waits until it is asked for."""
    code = (
        "import sys; before = set(sys.modules); import pixelflow_jax\n"
        "print(*(name.partition('.')[0] for name in set(sys.modules) - before))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {*run.stdout.split()} - sys.stdlib_module_names
    assert loaded == {"pixelflow_jax"}


def test_unknown_attributes_are_refused():
    import pixelflow_jax

    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        pixelflow_jax.Pipelin  # noqa: B018
