"""Run command lines of pixelflow_jax.main, one after another in one process.

Every line of standard input is a JSON list of argument lists, answered by a line of
standard output: a JSON list of {"code", "out", "error"}. A process of its own for each
would import and trace for the first time, which takes most of a command's time.
"""

import contextlib
import gc
import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator

from absl import app
from absl.testing import flagsaver

from pixelflow_jax import main


@contextlib.contextmanager
def instead_of(descriptor: int) -> Iterator:
    """A file that takes what is written to a descriptor, by libraries in C as well."""
    kept = os.dup(descriptor)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield file
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)


def run(arguments: list[str]) -> dict:
    """Exit code and output of one command, which finds flags as they were defined."""
    with instead_of(1) as out, instead_of(2) as error:
        # Warnings are shown again, though an earlier command has shown them.
        with flagsaver.flagsaver(), warnings.catch_warnings():
            code = code_of(arguments)
        sys.stdout.flush(), sys.stderr.flush()
        out.seek(0), error.seek(0)
        return {"code": code, "out": out.read(), "error": error.read()}


def code_of(arguments: list[str]) -> int:
    """What a process that runs this command alone would end with."""
    sys.argv = ["pixelflow_jax.main", *arguments]
    try:
        app.run(main.main, flags_parser=main.parse_flags)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)  # as tests/conftest.py does
    for line in sys.stdin:
        print(json.dumps([run(command) for command in json.loads(line)]), flush=True)
