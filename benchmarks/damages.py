"""Random damages to the newest checkpoint, and what a run then goes on from.

python -m benchmarks.damages [--count 200] [--seed 0]

Saves two checkpoints as training does. Then, on a copy for each damage: bits flip,
files are cut, lost, swapped, zeroed or longer in the newest one, and it is opened and
restored as a run that goes on does it. Counts what came out, bit by bit: the newest one
as it was written ("read right": what was damaged bears no content), the one before with
a line that says so ("fallen back"), a CheckpointError ("refused"), another error, or
other numbers ("silently wrong"). Exits with 1 unless all were read right or fallen
back.
"""

import argparse
import collections
import contextlib
import io
import json
import pathlib
import random
import shutil
import sys
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from pixelflow_jax.errors import CheckpointError
from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from pixelflow_jax.training.state import TrainState

STEPS = (3, 6)
CONFIG = {"optimizer": {"schedule": "constant"}, "steps": 6}
OUTCOMES = ("read right", "fallen back", "refused", "other error", "silently wrong")
Damage = Callable[[pathlib.Path, list[pathlib.Path], random.Random], None]


def flip(path: pathlib.Path, _: list[pathlib.Path], rng: random.Random) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def burst(path: pathlib.Path, _: list[pathlib.Path], rng: random.Random) -> None:
    """Up to 64 random bytes in a row."""
    content = path.read_bytes()
    at = rng.randrange(len(content))
    length = min(len(content) - at, rng.randrange(1, 65))
    other = rng.randbytes(length)
    path.write_bytes(content[:at] + other + content[at + length :])


def cut(path: pathlib.Path, _: list[pathlib.Path], rng: random.Random) -> None:
    """The end is lost."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def delete(path: pathlib.Path, *_: object) -> None:
    """The file is lost."""
    path.unlink()


def swap(path: pathlib.Path, files: list[pathlib.Path], rng: random.Random) -> None:
    """Two files have each other's content."""
    content = path.read_bytes()
    other = rng.choice([p for p in files if p.read_bytes() != content])
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def zeros(path: pathlib.Path, _: list[pathlib.Path], rng: random.Random) -> None:
    """A sector that was never written."""
    content = path.read_bytes()
    at = rng.randrange(len(content)) // 512 * 512
    zeroed = bytes(len(content[at : at + 512]))
    path.write_bytes(content[:at] + zeroed + content[at + 512 :])


def longer(path: pathlib.Path, *_: object) -> None:
    """Something behind the end."""
    content = path.read_bytes()
    path.write_bytes(content + content[-8:])


def older(path: pathlib.Path, _: list[pathlib.Path], rng: random.Random) -> None:
    """The file of the checkpoint before, where it has one of that name."""
    place = path.parts.index(str(STEPS[-1]))
    before = pathlib.Path(*path.parts[:place], str(STEPS[0]), *path.parts[place + 1 :])
    if before.is_file() and before.read_bytes() != path.read_bytes():
        shutil.copyfile(before, path)
    else:
        flip(path, [], rng)


DAMAGES: tuple[Damage, ...] = (
    *(flip, flip, burst, cut, delete),
    *(swap, zeros, longer, older),
)


def state(step: int) -> TrainState:
    """Arrays that no other step has."""
    rng = np.random.default_rng(step)

    def arrays() -> dict:
        shapes = {"kernel": (64, 96), "bias": (96,)}
        return {k: jnp.asarray(rng.random(v, np.float32)) for k, v in shapes.items()}

    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={"denoiser": arrays()},
        opt_state={"mu": arrays(), "nu": arrays()},
        ema={"0.9999": arrays()},
        carry={},
    )


def content(step: int, whole: TrainState, data: dict) -> bytes:
    """What was restored as one text of bytes."""
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(whole)]
    return b"".join([str(step).encode(), json.dumps(data).encode(), *leaves])


def restored(folder: pathlib.Path) -> tuple[str, bytes]:
    """What a run that goes on in `folder` says, and begins with."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        with contextlib.closing(Checkpointer(folder, Checkpointing(keep=2))) as one:
            step = one.latest()
            if step is None:
                return said.getvalue(), b""
            abstract = jax.eval_shape(lambda: state(0))
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            abstract = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device),
                abstract,
            )
            result = one.restore(step, abstract, CONFIG, dict)
    return said.getvalue(), content(step, *result)


def outcome(folder: pathlib.Path, expected: list[bytes]) -> str:
    """One of OUTCOMES."""
    try:
        said, found = restored(folder)
    except Exception as error:  # also what should never come out
        return "refused" if isinstance(error, CheckpointError) else "other error"
    if found == expected[-1]:
        return "read right"
    named = f"{STEPS[-1]} is damaged" in said
    return "fallen back" if found == expected[0] and named else "silently wrong"


def measure(count: int, seed: int) -> dict[str, collections.Counter]:
    """How often each outcome followed each kind of damage."""
    rng = random.Random(seed)
    found: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as place:
        whole = pathlib.Path(place, "whole")
        with contextlib.closing(Checkpointer(whole, Checkpointing(keep=2))) as saver:
            for step in STEPS:
                saver.save(step, state(step), {"next_batch": step}, CONFIG)
        expected = [content(s, state(s), {"next_batch": s}) for s in STEPS]
        for number in range(count):
            folder = pathlib.Path(place, str(number))
            shutil.copytree(whole, folder)
            newest = (folder / str(STEPS[-1])).rglob("*")
            files = sorted(path for path in newest if path.is_file())
            # Large files are as rare among these as small ones: each has its turn.
            damage = DAMAGES[number % len(DAMAGES)]
            filled = [path for path in files if path.stat().st_size]
            damage(rng.choice(filled), filled, rng)
            found[damage.__name__][outcome(folder, expected)] += 1
            shutil.rmtree(folder)
    return found


def markdown(found: dict[str, collections.Counter]) -> str:
    """The counts as a table."""
    lines = [f"| damage | {' | '.join(OUTCOMES)} |", "|---" * (1 + len(OUTCOMES)) + "|"]
    total = sum(found.values(), collections.Counter())
    for name, counts in [*found.items(), ("**all**", total)]:
        lines.append(f"| {name} | {' | '.join(str(counts[o]) for o in OUTCOMES)} |")
    return "\n".join(lines)


def main() -> int:
    """Print the counts; 1 where something was refused or silently wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines to add to")
    arguments = parser.parse_args()
    found = measure(arguments.count, arguments.seed)
    print(markdown(found))
    rows = [{"damage": name, **counts} for name, counts in found.items()]
    harness.append(arguments.out, harness.record(rows))
    return int(any(set(counts) - set(OUTCOMES[:2]) for counts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
