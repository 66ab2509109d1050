"""Run the blocks of pages in order, in the current folder, as a reader would copy them.

Reads a JSON list of pairs (kind, what) from standard input: ("pixelflow", words),
("python", code), ("shell", words). Each runs in a fork that has imported the package,
which is most of a command's time. Stops at the first that fails; writes a JSON list of
what each has printed, the last one's with its exit code.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback

from pixelflow_jax import main  # noqa: F401  imports what commands need
from pixelflow_jax.__main__ import main as pixelflow


def carry_out(kind: str, what) -> int:
    """One step; its exit code."""
    if kind == "pixelflow":
        return pixelflow(what)
    if kind == "shell":
        return subprocess.run(what).returncode
    exec(compile(what, "page", "exec"), {"__name__": "__main__"})
    return 0


def in_fork(kind: str, what) -> tuple[int, str]:
    """Exit code and output of one step."""
    with tempfile.TemporaryFile("w+") as out:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            code = 1
            try:
                code = carry_out(kind, what)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else bool(end.code)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        return code, out.read()


if __name__ == "__main__":
    done = []
    for kind, what in json.load(sys.stdin):
        done.append(in_fork(kind, what))
        if done[-1][0]:
            break
    print(json.dumps(done))
