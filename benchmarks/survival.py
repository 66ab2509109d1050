"""Attempts to lose work: kills, signals, a full disk, lost processes; what is left.

python -m benchmarks.survival [--trials kills,saves,...] [--count 20]

A tiny run is started again and again as a process of its own, and disturbed. Whatever
happened, the last start must end with the same bits as a run that nobody disturbed.
Prints a row for each trial as soon as it is done, and exits with 1 where one failed.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(FLAGS)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.processes import free_port  # noqa: E402
from benchmarks.tiny_runs import pixnerd  # noqa: E402
from pixelflow_jax import build  # noqa: E402
from pixelflow_jax import main as imported  # noqa: E402, F401
from pixelflow_jax.__main__ import main as pixelflow  # noqa: E402
from pixelflow_jax.experiment import Experiment  # noqa: E402
from pixelflow_jax.training.checkpoint import Checkpointer  # noqa: E402

STEPS, EVERY = 40, 4
HEARTBEAT = 20
LONG = 900  # seconds after which a process counts as hanging


class Child:
    """`act` in a process of its own, forked from this one, which knows no devices.

    What it says lies in `said`; `act` returns its exit code. It cannot write files of
    more than `limit` bytes (0: as large as it likes).
    """

    def __init__(self, act: Callable[[], int], said: pathlib.Path, limit: int = 0):
        self.said = said
        self.code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            self._run(act, limit)

    def _run(self, act: Callable[[], int], limit: int) -> None:
        os.setsid()
        with self.said.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            code = act()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        with contextlib.suppress(BaseException):
            jax.distributed.shutdown()
        os._exit(code)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, limit: float = LONG) -> int:
        """Its exit code; a process that hangs is killed, and fails the trial."""
        until = time.monotonic() + limit
        while self.poll() is None:
            if time.monotonic() > until:
                self.send(signal.SIGKILL)
                raise RuntimeError(f"Process {self.pid} hung: see {self.said}.")
            time.sleep(0.01)
        return self.poll() or 0

    def send(self, number: int) -> None:
        """A signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def text(self) -> str:
        """What it has said, and what was said before in the same file."""
        return self.said.read_text(errors="replace") if self.said.exists() else ""


class Trials:
    """The trials, in a folder of their own."""

    def __init__(self, folder: pathlib.Path, count: int, seed: int):
        self.folder, self.count, self.rng = folder, count, random.Random(seed)
        config = pixnerd()
        config.steps, config.checkpoint.every, config.log.every = STEPS, EVERY, 2
        config.log.preview_every, config.log.preview_count = 10, 2
        self.config = folder / "config.json"
        self.config.write_text(json.dumps(config.to_dict()))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "programs")
        self.peace = folder / "peace"
        assert self.start(self.peace).wait() == 0, self.peace

    def start(self, workdir: pathlib.Path, *more: str, limit: int = 0) -> Child:
        """The command that trains in `workdir`."""
        words = ["train", f"--config={self.config}", f"--workdir={workdir}", *more]
        return Child(lambda: pixelflow(words), workdir.with_suffix(".log"), limit)

    def differs(self, workdir: pathlib.Path) -> int:
        """0 where the last state has the bits of the run in peace."""
        both = workdir, self.peace
        said = self.folder / "compared.log"
        return Child(lambda: compared(self.config, *both), said).wait()

    def finish(self, workdir: pathlib.Path) -> str:
        """Let it run to its end, and compare; "" where it ended with the same bits."""
        code = self.start(workdir).wait()
        if code:
            return f"the last start ended with {code}"
        return "OTHER BITS" if self.differs(workdir) else ""

    def kills(self) -> str:
        """kill -9 at random moments, all in a row in one workdir."""
        workdir, reached = self.folder / "kills", []
        while len(reached) < self.count:
            child = self.start(workdir)
            before, more = steps(workdir), self.rng.randrange(4)
            pause = self.rng.random()
            while child.poll() is None and steps(workdir) < before + more:
                time.sleep(0.005)
            time.sleep(pause)
            if child.poll() is not None:  # it was done: from the beginning
                shutil.rmtree(workdir)
                continue
            child.send(signal.SIGKILL)
            child.wait()
            reached.append(steps(workdir))
        wrong = self.finish(workdir)
        return wrong or f"{self.count} kills, at steps {', '.join(map(str, reached))}"

    def saves(self) -> str:
        """kill -9 while a checkpoint is being written."""
        workdir, hit = self.folder / "saves", 0
        while hit < self.count:
            child = self.start(workdir)
            while child.poll() is None and not unfinished(workdir):
                time.sleep(0.0005)
            time.sleep(self.rng.random() * 0.05)
            child.send(signal.SIGKILL)
            child.wait()
            hit += bool(unfinished(workdir))
            if steps(workdir) >= STEPS - EVERY:
                wrong = self.finish(workdir)
                if wrong:
                    return wrong
                shutil.rmtree(workdir)
        return self.finish(workdir) or f"{hit} kills that left half a checkpoint"

    def terms(self) -> str:
        """SIGTERM in each phase of a run."""
        codes = {}
        for phase, reached in PHASES.items():
            workdir = self.folder / f"term_{phase}"
            child = self.start(workdir)
            while child.poll() is None and not reached(workdir):
                time.sleep(0.001)
            child.send(signal.SIGTERM)
            codes[phase] = child.wait()
            if codes[phase] not in (-signal.SIGTERM, 75, 0):
                return f"in {phase}: ended with {codes[phase]}"
            if wrong := self.finish(workdir):
                return f"in {phase}: {wrong}"
        return ", ".join(f"{phase}: {code}" for phase, code in codes.items())

    def pairs(self) -> str:
        """Two runs started at once in one workdir."""
        for number in range(5):
            workdir = self.folder / f"pair_{number}"
            children = [self.start(workdir) for _ in range(2)]
            codes = sorted(child.wait() for child in children)
            if codes != [0, 1] or "A run is at work in" not in children[0].text():
                return f"pair {number} ended with {codes}"
            if self.differs(workdir):
                return f"pair {number}: OTHER BITS"
        return "5 pairs: one refused, one done"

    def disk(self) -> str:
        """A disk on which no file of a checkpoint fits any more."""
        workdir = self.folder / "disk"
        child = self.start(workdir)
        while child.poll() is None and steps(workdir) < 2 * EVERY:
            time.sleep(0.005)
        child.send(signal.SIGTERM)
        child.wait()
        code = self.start(workdir, limit=40_000).wait()
        if code != 1 or "CheckpointError: Could not write" not in child.text():
            return f"ended with {code}"
        return self.finish(workdir) or "refused with a paragraph, code 1"

    def notice(self) -> str:
        """A signal to one of two processes; SIGTERM, then Ctrl-C."""
        workdir, told = self.folder / "notice", []
        for number in (signal.SIGTERM, signal.SIGINT):
            children, before = self.several(workdir, 2), steps(workdir)
            while steps(workdir) < before + 4:
                if any(child.poll() is not None for child in children):
                    return f"ended before: {[child.code for child in children]}"
                time.sleep(0.01)
            children[1].send(number)
            codes = [child.wait() for child in children]
            last = max(
                int(p.name)
                for p in (workdir / "checkpoints").glob("[0-9]*")
                if p.name.isdigit()
            )
            if codes != [75, 75] or last != steps(workdir):
                return f"{number.name}: ended with {codes}, saved {last}"
            told.append(f"{number.name}: both saved step {last}, codes 75")
        return "; ".join(told)

    def lost(self) -> str:
        """One of four processes is killed, stopped or late; two go on, then one."""
        told = []
        for what in ("killed", "stopped", "late"):
            workdir = self.folder / f"lost_{what}"
            children = self.several(workdir, 4)
            while steps(workdir) < EVERY + 2:
                if any(child.poll() for child in children):
                    return f"{what}: ended before"
                time.sleep(0.05)
            victim, others = children[2], [*children[:2], children[3]]
            begun = time.monotonic()
            victim.send(signal.SIGKILL if what == "killed" else signal.SIGSTOP)
            if what == "late":
                time.sleep(HEARTBEAT / 2)
                victim.send(signal.SIGCONT)
            codes = [child.wait() for child in others]
            took = time.monotonic() - begun
            victim.send(signal.SIGKILL)
            victim.wait()
            wanted = [0] * 3 if what == "late" else [76] * 3
            if codes != wanted:
                return f"{what}: the others ended with {codes}"
            if what != "late" and "LostError" not in others[0].text():
                return f"{what}: nobody said why"
            told.append(f"{what}: {codes[0]} after {took:.0f} s")
            two = [child.wait() for child in self.several(workdir, 2)]
            if any(two) or self.start(workdir).wait() or steps(workdir) != STEPS:
                return f"{what}: two processes did not go on ({two})"
        return "; ".join(told)

    def several(self, workdir: pathlib.Path, count: int) -> list[Child]:
        """So many processes of the run, of one device each."""
        place = f"--coordinator=localhost:{free_port()}"
        words = [place, f"--num_processes={count}", f"--heartbeat_timeout={HEARTBEAT}"]
        return [self.start(workdir, *words, f"--process_id={i}") for i in range(count)]


def steps(workdir: pathlib.Path) -> int:
    """The last step in the history; 0 where there is none."""
    try:
        last = (workdir / "metrics.jsonl").read_bytes().split(b"\n")[-2]
        return json.loads(last)["step"]
    except (OSError, ValueError, IndexError, KeyError):
        return 0


def unfinished(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints that are being written."""
    return list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"))


PHASES: dict[str, Callable[[pathlib.Path], object]] = {
    "start": lambda workdir: True,
    "opening": lambda workdir: (workdir / "run.lock").exists(),
    "compiling": lambda workdir: (workdir / "config.json").exists(),
    "steps": lambda workdir: steps(workdir) >= 6,
    "saving": unfinished,
    "preview": lambda workdir: (workdir / "previews").exists(),
    "end": lambda workdir: steps(workdir) >= STEPS,
}


def compared(config: pathlib.Path, *workdirs: pathlib.Path) -> int:
    """0 where the last checkpoints of two runs hold the same bits."""
    experiment = Experiment.from_dict(json.loads(config.read_text()))
    run, states = build.training_run(experiment), []
    for workdir in workdirs:
        with contextlib.closing(Checkpointer(workdir / "checkpoints", None)) as reader:
            last = reader.latest()
            states.append(reader.restore(last, run.abstract_state(), run.config)[0])
    leaves = zip(*map(jax.tree.leaves, states), strict=True)
    return int(any(bytes(np.asarray(a)) != bytes(np.asarray(b)) for a, b in leaves))


@contextlib.contextmanager
def folder_of(out: pathlib.Path | None) -> Iterator[pathlib.Path]:
    """The folder to work in; one that is removed if none is given."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


def main() -> None:
    """Carry out the trials, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", default="kills,saves,terms,pairs,disk,notice,lost")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    with folder_of(arguments.out) as folder:
        trials = Trials(folder, arguments.count, arguments.seed)
        print("| trial | what came out |\n|---|---|", flush=True)
        for name in arguments.trials.split(","):
            trial = getattr(trials, name)
            print(f"| {trial.__doc__} | {trial()} |", flush=True)


if __name__ == "__main__":
    main()
