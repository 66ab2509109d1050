"""One of two processes that draw and measure a set together.

python process.py INDEX PORT FOLDER
"""

import json
import pathlib
import sys

import jax
import numpy as np

from pixelflow_jax import backend, build, sharding
from pixelflow_jax.evaluation.heldout import HeldoutLoss
from pixelflow_jax.evaluation.image_sets import NpzImages
from pixelflow_jax.evaluation.metrics import evaluate
from pixelflow_jax.evaluation.passes import WatchedDraw, set_features
from pixelflow_jax.evaluation.references import Reference
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.output import Described, write_samples

if __name__ == "__main__":
    import tiny

    sys.path.append(str(tiny.ROOT / "tests" / "evaluation"))
    from pixels import Pixels
else:
    from tests.evaluation.pixels import Pixels
    from tests.training import tiny

COUNT = 21
METRICS = ("fd_lite0",)


def pipeline(mesh: MeshShape) -> Pipeline:
    """A model of random weights, the same in every process."""
    config = tiny.experiment("unused", mesh=mesh)
    fresh = jax.jit(build.network(config).init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.normal(0, 0.1, leaf.shape).astype("f4"),
        jax.device_get(fresh),
    )
    return Pipeline(config=config, params=params, class_names=tiny.CLASSES, step=1)


def draw(folder: pathlib.Path, model: Pipeline) -> dict[str, float]:
    """Write the set to `folder`, and measure it against a part of itself."""
    stream = model.stream([i % 3 for i in range(COUNT)], seed=4)
    about = Described(
        shape=stream.shape,
        digest=stream.draw.digest,
        names=stream.draw.names,
        columns=3,
        labels=stream.draw.request.given["label"],
    )
    network = {"lite0": Pixels()}
    watched = WatchedDraw(stream, METRICS, network)
    paths = write_samples(folder, watched, about)
    seen = watched.features(paths["npz"])
    batches = list(NpzImages(paths["npz"]).batches(8))
    theirs = set_features(batches[:1], METRICS, network)
    reference = Reference("itself", "", "pixelflow", theirs)
    results = evaluate(METRICS, seen, reference)
    # All of it is there now, and is looked at again from the file.
    watched = WatchedDraw(stream, METRICS, network)
    write_samples(folder, watched, about)
    again = evaluate(METRICS, watched.features(paths["npz"]), reference)
    np.testing.assert_allclose(again["fd_lite0"], results["fd_lite0"], rtol=1e-6)
    return results


def heldout(model: Pipeline) -> dict[str, float]:
    """The held-out loss on random images, of which every process reads its own."""
    config, mesh = model.config, model.config.mesh.build()
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (2, 16, tiny.SIZE, tiny.SIZE, 3)).astype(np.float32)
    parts, count = sharding.batch_parts(mesh)
    rows = np.concatenate([np.split(np.arange(16), count)[part] for part in parts])
    weight = np.float32(np.arange(16) < 13)
    labels = np.arange(16, dtype=np.int32) % 3
    loss = HeldoutLoss(
        network=build.network(config),
        stages=build.stages(config),
        prediction=config.prediction,
        conditioner=config.conditioner,
        seed=config.seed,
    )
    whole = {"label": labels, "weight": weight}
    batches = [{"image": part, **whole} for part in images]
    given = [{k: v[rows] for k, v in batch.items()} for batch in batches]
    return loss(model.params, given, mesh)


def main(index: int, port: int, folder: str) -> None:
    """Join the other process and draw."""
    backend.configure()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    assert jax.process_count() == 2 and jax.device_count() == 8
    model = pipeline(MeshShape())
    results = draw(pathlib.Path(folder), model) | heldout(model)
    print(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
