"""What digests add to saving a checkpoint, as a share of the save, in one run.

python -m benchmarks.digests [--size 1.0] [--rounds 5]

Saves a state of random float32 arrays (of `--size` GB, as of a model) as training
does, several times, and times the digests inside each save: by the clock, and by the
processor time of the whole process, which is what other work of the machine loses.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from pixelflow_jax.training import integrity
from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from pixelflow_jax.training.state import TrainState

LAYERS, WIDTHS = 16, (1, 3, 4)  # of a transformer: a vector, and two of its matrices


class Timed:
    """Calls a function and adds up what its calls took, by both clocks."""

    def __init__(self, function):
        self.function, self.wall, self.cpu = function, 0.0, 0.0

    def __call__(self, *arguments):
        wall, cpu = time.perf_counter(), time.process_time()
        result = self.function(*arguments)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        return result


def state(size: float) -> TrainState:
    """Parameters, two moments and one average: four copies, `size` GB in all."""
    width = int((size * 1e9 / 4 / 4 / LAYERS / sum(WIDTHS)) ** 0.5)
    rng = np.random.default_rng(0)

    def arrays() -> dict:
        shapes = {f"w{k}": (LAYERS, width, k * width) for k in WIDTHS}
        return {n: jnp.asarray(rng.random(s, np.float32)) for n, s in shapes.items()}

    moments = {"mu": arrays(), "nu": arrays()}
    params = {"denoiser": arrays()}
    step = jnp.zeros((), jnp.int32)
    return TrainState(
        step=step, params=params, opt_state=moments, ema={"0.9999": arrays()}, carry={}
    )


def measure(size: float, rounds: int) -> list[dict]:
    """Wall and processor seconds of whole saves and of the digests in them."""
    whole, rows = state(size), []
    with tempfile.TemporaryDirectory() as folder:
        saver = Checkpointer(pathlib.Path(folder), Checkpointing(keep=2))
        digests = Timed(integrity.write)
        integrity.write = digests
        for step in range(rounds + 1):
            digests.wall = digests.cpu = 0.0
            wall, cpu = time.perf_counter(), time.process_time()
            saver.save(step, whole, {"next_batch": step}, {})
            saver.wait()
            seconds = time.perf_counter() - wall, time.process_time() - cpu
            if step:  # the first one warms up
                rows.append(
                    {
                        "save_s": seconds[0],
                        "save_cpu_s": seconds[1],
                        "digests_s": digests.wall,
                        "digests_cpu_s": digests.cpu,
                    }
                )
        saver.close()
        integrity.write = digests.function
    return rows


def main() -> None:
    """Print the median shares, and each save, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=1.0, help="GB of the state")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines to add to")
    arguments = parser.parse_args()
    rows = measure(arguments.size, arguments.rounds)

    def share(of: str, whole: str) -> float:
        return statistics.median(row[of] / row[whole] for row in rows)

    result = {
        "gb": arguments.size,
        "share_of_time": round(share("digests_s", "save_s"), 4),
        "share_of_processor": round(share("digests_cpu_s", "save_cpu_s"), 4),
    }
    print(json.dumps(result))
    harness.append(arguments.out, {**harness.record(rows), **result})


if __name__ == "__main__":
    main()
