"""Which jax goes with which flax, and a clear error for the pairs that fail.

pip accepts pairs that break at `from flax import nnx`, so the package checks them when
it is imported. Only the standard library is used here: setup.py reads PAIRS before
anything is installed.
"""

import importlib.metadata
import re
import sys
import warnings
from typing import NamedTuple


class Pair(NamedTuple):
    """Versions of jax and flax that work together, and the Pythons that get them."""

    marker: str
    jax: str
    flax: str


# Python 3.12 and newer get the newest pair; Python 3.11 the last one that supports it.
PAIRS = (
    Pair('python_version < "3.12"', ">=0.10.2,<0.11", ">=0.12.7,<0.12.9"),
    Pair('python_version >= "3.12"', ">=0.11.2,<0.13", ">=0.12.10,<0.13"),
)


class Failure(NamedTuple):
    """A range of pairs that is known to fail; an empty range means any version."""

    jax: str
    flax: str
    reason: str


FAILURES = (
    Failure("<0.10.2", "", "jax is too old"),
    Failure("", "<0.12.7", "flax is too old"),
    Failure(">=0.11", ">=0.12.7,<0.12.9", "flax 0.12.7 and 0.12.8 fail on jax 0.11"),
    Failure("", ">=0.12.9,<0.12.10", "flax 0.12.9 fails on every supported jax"),
    Failure("<0.11", ">=0.12.10", "flax 0.12.10 and newer require jax 0.11"),
)


def check(jax_version: str | None = None, flax_version: str | None = None) -> None:
    """Refuses a jax and a flax that are known not to work together.

    Versions left out are those of the installed distributions. A package that is not
    installed is not checked: the import that needs it says so. A pair that is neither
    known to work nor known to fail gives a UserWarning.

    Raises:
      ImportError: names the pair found, the pairs that work and the command to mend it.
    """
    jax_version = jax_version or _installed("jax")
    flax_version = flax_version or _installed("flax")
    if jax_version is None or flax_version is None:
        return
    if any(_matches(pair, jax_version, flax_version) for pair in PAIRS):
        return
    for failure in FAILURES:
        if _matches(failure, jax_version, flax_version):
            raise ImportError(_explain(jax_version, flax_version, failure.reason))
    reason = "this pair has not been tried"
    warnings.warn(_explain(jax_version, flax_version, reason), stacklevel=3)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _matches(pair: Pair | Failure, jax_version: str, flax_version: str) -> bool:
    return _inside(jax_version, pair.jax) and _inside(flax_version, pair.flax)


def _inside(version: str, bounds: str) -> bool:
    """Whether a version lies within bounds such as ">=0.10.2,<0.11"."""
    for sign, limit in re.findall(r"(>=|<)([\d.]+)", bounds):
        if (_release(version) >= _release(limit)) != (sign == ">="):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "0.12.0.1.dev3" is (0, 12, 0, 1)."""
    leading = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(n) for n in leading[0].split(".")] if leading else []
    while numbers and not numbers[-1]:
        numbers.pop()  # 0.11 and 0.11.0 are one version
    return tuple(numbers)


def _explain(jax_version: str, flax_version: str, reason: str) -> str:
    working = " or ".join(f"jax{pair.jax} with flax{pair.flax}" for pair in PAIRS)
    mend = PAIRS[sys.version_info >= (3, 12)]
    return (
        f"pixelflow_jax found jax {jax_version} with flax {flax_version}: {reason}. "
        f"What works is {working}. To mend it: "
        f"{sys.executable} -m pip install 'jax{mend.jax}' 'flax{mend.flax}'"
    )
