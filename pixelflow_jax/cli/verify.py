"""`pixelflow verify`: are a run's checkpoints what was written?

Each file of a checkpoint is read and compared with its digest. Exit code 1 where one is
damaged.
"""

import pathlib
from collections.abc import Iterator

from pixelflow_jax.cli.parser import Parser, nonempty
from pixelflow_jax.cli.terminal import give_up, refusing
from pixelflow_jax.errors import CheckpointError
from pixelflow_jax.paths import local_path, printable
from pixelflow_jax.training import integrity

COMMAND = "pixelflow verify"
FOLDERS = ("checkpoints", "best/checkpoints")
EXAMPLES = """examples:
  pixelflow verify runs/demo
  pixelflow verify --workdir=runs/demo
  pixelflow verify ~/runs/xl && echo whole
"""


def main(arguments: list[str]) -> int:
    """Carry out the command; returns its exit code."""
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    parser.add_argument("run", metavar="WORKDIR", nargs="?", help="folder of the run")
    parser.add_argument("--workdir", type=nonempty, help="the same")
    given, unknown = parser.parse_known_args(arguments)
    parser.refuse_unknown(unknown)
    if (given.run is None) == (given.workdir is None):
        parser.error("name the folder of one run, such as `pixelflow verify runs/demo`")
    with refusing(None):
        name = given.run if given.workdir is None else given.workdir
        workdir = local_path(name, "WORKDIR", CheckpointError)
        states, findings = [], verify(workdir)
        for path, finding in findings:
            states.append(finding.state)
            shown = printable(str(path.relative_to(workdir)))
            print(f"{shown}  {printable(str(finding))}", flush=True)
    if not states:
        give_up(
            f"CheckpointError: {workdir} holds no checkpoint: is it a run's folder?"
        )
    return 1 if "damaged" in states else 0


def verify(
    workdir: pathlib.Path,
) -> Iterator[tuple[pathlib.Path, integrity.Finding]]:
    """All checkpoints of a run with what is found; a run may be at work in it."""
    for name in FOLDERS:
        for path in integrity.checkpoints(workdir / name):
            try:
                finding = integrity.examine(path)
            except FileNotFoundError:  # the run has removed it meanwhile
                finding = integrity.Finding("damaged", ("files vanish",))
            if path.exists():
                yield path, finding
