"""A copy of the package that strangers may add files to, and its commands."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

from tests.training import tiny
from tests.xla_flags import QUICK, add_xla_flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARTS = ("pixelflow_jax", "configs", "assets")


class House:
    """A folder in which commands run; `copied`: the package lies there, too."""

    def __init__(self, folder: pathlib.Path, *, copied: bool = True):
        self.folder = folder
        for part in PARTS if copied else ():
            ours, theirs = ROOT / part, folder / part
            shutil.copytree(ours, theirs, ignore=shutil.ignore_patterns("__pycache__"))
        paths = [folder] if copied else [folder, ROOT]
        self.environment = {
            **tiny.environment(),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }
        add_xla_flags(self.environment, **QUICK)  # its commands compile more than run

    def drop(self, name: str, content: str) -> None:
        """Write a file that was not there before."""
        path = self.folder / name
        assert not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def run(self, commands: Sequence[Sequence[str]]) -> list[dict]:
        """Code, output and errors of `pixelflow VERB ...`; every one must succeed."""
        lines = [[f"--mode={verb}", *words] for verb, *words in commands]
        done = self.python(str(ROOT / "tests" / "commands.py"), given=json.dumps(lines))
        assert done.returncode == 0, done.stderr
        outcomes = json.loads(done.stdout)
        for words, outcome in zip(commands, outcomes, strict=True):
            assert outcome["code"] == 0, f"{words}\n{outcome['error'][-3000:]}"
        return outcomes

    def python(
        self, *arguments: str, given: str | None = None
    ) -> subprocess.CompletedProcess:
        """Run Python with this house's package."""
        return subprocess.run(
            [sys.executable, *arguments],
            input=given,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment,
            timeout=900,
        )
