"""One of several processes that train the tiny run together.

python process.py INDEX COUNT PORT IMAGES WORKDIR STEPS
"""

import pathlib
import sys

import jax
import tiny

from pixelflow_jax import backend
from pixelflow_jax.sharding import MeshShape
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.loop import train


def main(index: int, count: int, port: int, images: str, workdir: str, steps: int):
    """Join the others and train."""
    backend.configure()
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    assert jax.process_count() == count and jax.device_count() == 8
    config = tiny.experiment(
        images,
        steps=steps,
        mesh=MeshShape(data=2, fsdp=4),
        log=Logging(every=1, preview_every=2, preview_count=6),
    )
    state = train(config.run(), pathlib.Path(workdir))
    print(f"process {index} of {count} ended after step {int(state.step)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:6], int(sys.argv[6]))
