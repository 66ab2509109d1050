"""Training with all data on the device: the batches, and the pace of the clock."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.resident import Captioned, Labelled, rows_of
from benchmarks.train_resident import cosine, paced


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
