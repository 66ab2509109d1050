"""What every test shares: eight CPU devices, parsed flags and the reference arrays."""

import ctypes
import gc
import os
import pathlib
import re
import sys

# As with a jax that has dropped it: all of these tests are to pass.
if os.environ.get("PIXELFLOW_WITHOUT_TRITON"):
    sys.modules["jax.experimental.pallas.triton"] = None  # type: ignore[assignment]

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from absl import flags

from tests import shapes
from tests.xla_flags import QUICK, add_xla_flags

# Eight devices on busy cores may wait for each other for more than the usual 40 s.
add_xla_flags(
    os.environ,
    xla_force_host_platform_device_count=8,
    xla_cpu_collective_call_terminate_timeout_seconds=600,
)

shapes.install()

# grain's worker processes read absl flags, which nothing parses under pytest.
flags.FLAGS.mark_as_parsed()

ROOT = pathlib.Path(__file__).resolve().parents[1]


def pytest_configure(config):
    """Tests mostly compile, and do so without optimisation (`QUICK`).

    Long ones run what users do. Where only an optimised program keeps a bound, the test
    asks for one, by `OPTIMISED` of tests/xla_flags.py or `optimised` of `environment`.
    """
    if not re.search(r"(?<!not )\blong\b", config.option.markexpr):
        add_xla_flags(os.environ, **QUICK)


def pytest_collection_finish(session):
    """Tracing makes millions of objects, to be looked through less often."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The tests of a file share what its fixtures train: one process runs them all."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


MOST_MEMORY = 4e9  # bytes that a process of tests may hold before it forgets programs


@pytest.fixture(autouse=True, scope="module")
def programs_forgotten():
    """Thousands of compiled programs took 9 GB a process before the last test."""
    yield
    if resident_memory() > MOST_MEMORY:
        import jax

        jax.clear_caches()
        gc.collect()
        # The allocator of Linux keeps what was freed: this leaves 0.4 GB of 2.7,
        # without which all would be forgotten again after every file that follows.
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)


def resident_memory() -> int:
    """Bytes of this process in memory; 0 where there is no /proc."""
    statm = pathlib.Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The run of tests/training/tiny.py, which many tests look at, trained once."""
    from pixelflow_jax.training.loop import train
    from tests.training import tiny

    images = tiny.write_images(tmp_path_factory.mktemp("tiny_images"))
    workdir = tmp_path_factory.mktemp("tiny_run")
    return tiny.Finished(images, workdir, train(tiny.run(images), workdir))


def golden_dir() -> pathlib.Path | None:
    """The folder of reference arrays, or None where there is none.

    It is $PIXELFLOW_GOLDEN_DIR, or shared/golden beside the checkout.
    """
    named = os.environ.get("PIXELFLOW_GOLDEN_DIR")
    folder = pathlib.Path(named) if named else ROOT.parent / "shared" / "golden"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def golden():
    """A function from a reference file's name to its path; skips where it is absent."""

    def path(name: str) -> pathlib.Path:
        folder = golden_dir()
        if folder is None:
            pytest.skip("no reference arrays: set PIXELFLOW_GOLDEN_DIR to their folder")
        file = folder / name
        assert file.is_file(), f"{folder} holds no {name}"
        return file

    return path
