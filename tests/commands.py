"""Run many command lines of pixelflow_jax.main, each in a fork that has imported it.

Reads a JSON list of argument lists from standard input, writes a JSON list of
{"code", "out", "error"} to standard output. The import takes most of a command's time.
"""

import json
import os
import sys
import tempfile

from absl import app

from pixelflow_jax import main


def run(arguments: list[str]) -> dict:
    """Exit code and output of one command."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(error.fileno(), 2)
            sys.argv = ["pixelflow_jax.main", *arguments]
            app.run(main.main, flags_parser=main.parse_flags)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        error.seek(0)
        return {"code": code, "out": out.read(), "error": error.read()}


if __name__ == "__main__":
    print(json.dumps([run(arguments) for arguments in json.load(sys.stdin)]))
