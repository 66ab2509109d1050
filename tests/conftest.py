"""What every test shares: eight CPU devices, parsed flags and the reference arrays."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()

import pytest  # noqa: E402
from absl import flags  # noqa: E402

# grain's worker processes read absl flags, which nothing parses under pytest.
flags.FLAGS.mark_as_parsed()

ROOT = pathlib.Path(__file__).resolve().parents[1]


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
