"""One of two processes that train the tiny run together.

python process.py INDEX PORT IMAGES WORKDIR STEPS
"""

import pathlib
import sys

import jax

from pixelflow_jax import backend, build
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.loop import train
from pixelflow_jax.validate import validated

if __name__ == "__main__":
    import tiny
else:
    from tests.training import tiny


def experiment(images: str | pathlib.Path, steps: int) -> Experiment:
    """The run, on eight devices wherever they are."""
    return tiny.experiment(
        images,
        steps=steps,
        mesh=MeshShape(data=2, fsdp=4),
        log=Logging(every=1, preview_every=2, preview_count=6),
    )


def main(index: int, port: int, images: str, workdir: str, steps: int) -> None:
    """Join the other process and train."""
    backend.configure()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    assert jax.process_count() == 2 and jax.device_count() == 8
    state = train(
        build.training_run(validated(experiment(images, steps))), pathlib.Path(workdir)
    )
    print(f"process {index} ended after step {int(state.step)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5], int(sys.argv[5]))
