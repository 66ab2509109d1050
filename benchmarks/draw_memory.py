"""Resident memory while `pixelflow sample` draws many images: it must stay flat.

python -m benchmarks.draw_memory --count 20000

Draws images of the shipped model in one process, as the command does (PNGs, npz, grid),
and prints its resident memory when 1, 5, 10 and 20 thousand were drawn, and the peak.
"""

import argparse
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator

from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.batches import Generated
from pixelflow_jax.sampling.output import Described, write_samples

MARKS = (100, 1000, 5000, 10_000, 20_000, 50_000)


def memory(field: str) -> float:
    """A figure of this process, in MB: VmRSS, or VmHWM for its peak."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1000


def main() -> None:
    """Draw, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=16, help="pixels")
    parser.add_argument("--steps", type=int, default=1)
    arguments = parser.parse_args()
    pipeline = Pipeline.from_pretrained("emoji")
    stream = pipeline.stream(
        [i % 9 for i in range(arguments.count)],
        height=arguments.size,
        width=arguments.size,
        grid=Grid(steps=arguments.steps),
        guidance=ClassifierFree(scale=1.0),
    )
    begun = time.perf_counter()
    print("| images | resident MB | images/s |\n|---|---|---|")

    def watched(start: int) -> Iterator[tuple[int, Generated]]:
        marks = [mark for mark in MARKS if mark <= arguments.count]
        for place, drawn in stream.recorded(start):
            yield place, drawn
            reached = place + len(drawn.images)
            while marks and reached >= marks[0]:
                rate = reached / (time.perf_counter() - begun)
                print(f"| {marks.pop(0):,} | {memory('VmRSS'):.0f} | {rate:.0f} |")

    with tempfile.TemporaryDirectory() as folder:
        about = Described(
            shape=stream.shape,
            digest=stream.draw.digest,
            names=stream.draw.names,
            columns=9,
            labels=stream.draw.request.given["label"],
        )
        write_samples(pathlib.Path(folder, "drawn"), watched, about)
    print(f"| written | {memory('VmRSS'):.0f} (peak {memory('VmHWM'):.0f}) | |")


if __name__ == "__main__":
    main()
