"""A training split on the device, and batches that are gathered there.

For data that fit into the memory of one device: a small model does not wait for its
loader. Every caption goes through the text encoder once, before the first step.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.data.source import Record
from pixelflow_jax.data.transforms import center_crop, normalise
from pixelflow_jax.experiment import Experiment

ENCODED = 1024  # captions at once
MEASURED = 500  # images at once, of which a prediction makes its constants


class Labelled(NamedTuple):
    """Images uint8 [n, h, w, 3] with a class each, int32 [n]."""

    image: Array
    label: Array

    def batch(self, key: Array, size: int) -> dict:
        """Records, drawn with replacement."""
        chosen = jax.random.randint(key, (size,), 0, len(self.image))
        return {"image": signed(self.image[chosen]), "label": self.label[chosen]}


class Captioned(NamedTuple):
    """Images uint8 [n, h, w, 3] with captions as the text encoder's states.

    `caption` int32 [n, k] numbers the rows of `text` bfloat16 [m, length, width] and
    `mask` bool [m, length]; of a record's k the first `count` int32 [n] are its own.
    """

    image: Array
    caption: Array
    count: Array
    text: Array
    mask: Array

    def batch(self, key: Array, size: int) -> dict:
        """Records and one caption of each, drawn with replacement."""
        which, caption = jax.random.split(key)
        chosen = jax.random.randint(which, (size,), 0, len(self.image))
        share = jax.random.uniform(caption, (size,))
        place = jnp.floor(share * self.count[chosen]).astype(jnp.int32)
        row = self.caption[chosen, place]
        return {
            "image": signed(self.image[chosen]),
            "text": self.text[row],
            "mask": self.mask[row],
        }


def signed(image: Array) -> Array:
    """uint8 in 0..255 to float32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1


class Resident(NamedTuple):
    """What a run of `config` takes from the device.

    Its batches are as `config` reads them: those of text hold states, not captions.
    `frozen_params` are the null text's, `constants` the prediction's, `facts` what was
    read.
    """

    config: Experiment
    data: Labelled | Captioned
    frozen_params: dict
    constants: dict
    facts: dict


def read(config: Experiment, records: int) -> Resident:
    """The first `records` (0: all) of the train split."""
    source, size = config.data.open("train"), config.data.image_size
    number = min(len(source), records or len(source))
    image = np.empty((number, size, size, 3), np.uint8)

    def one(index: int) -> Record:
        record = source[index]
        image[index] = center_crop(record["image"], size)
        return {**record, "image": image[index]}

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        every = list(threads.map(one, range(number)))
    constants = config.prediction.constants(parts(image))
    facts = {"images": number}
    if not config.model.condition.reads_text:
        label = np.array([record["label"] for record in every], np.int32)
        data = Labelled(jnp.asarray(image), jnp.asarray(label))
        return Resident(config, data, {}, constants, facts)
    table, count, texts = rows_of([record["captions"] for record in every])
    conditioner = config.conditioner
    text, mask = encoded(conditioner, texts)
    empty = conditioner.encoder.empty(conditioner.length)
    null, null_mask = states(conditioner)(*(a[None] for a in empty))
    arrays = (jnp.asarray(a) for a in (image, table, count))
    # Batches hold states: nothing reads a file of that name.
    stored = dataclasses.replace(conditioner, features="resident")
    return Resident(
        config=dataclasses.replace(config, conditioner=stored),
        data=Captioned(*arrays, text, mask),
        frozen_params={"text": {"text": null[0], "mask": null_mask[0]}},
        constants=constants,
        facts=facts | {"texts": len(texts)},
    )


def parts(image: np.ndarray) -> Iterator[np.ndarray]:
    """Images float32 in [-1, 1], some at a time."""
    for start in range(0, len(image), MEASURED):
        yield normalise(image[start : start + MEASURED])


def rows_of(
    captions: list[tuple[str, ...]],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Numbers of captions int32 [n, k], how many count int32 [n], and all texts."""
    texts = list(dict.fromkeys(text for some in captions for text in some))
    numbers = {text: number for number, text in enumerate(texts)}
    count = np.array([len(some) for some in captions], np.int32)
    table = np.zeros((len(captions), count.max()), np.int32)
    for row, some in enumerate(captions):
        table[row, : len(some)] = [numbers[text] for text in some]
    return table, count, texts


def states(conditioner: Text):
    """The encoder as a program: tokens and mask [b, l] -> states bfloat16, mask."""
    frozen_params = jax.device_put(conditioner.load())

    @jax.jit
    def encode(frozen_params: dict, tokens: Array, mask: Array):
        given = {"tokens": tokens, "mask": mask}
        return conditioner.encode(frozen_params, given).text.astype(jnp.bfloat16), mask

    return functools.partial(encode, frozen_params)


def encoded(conditioner: Text, texts: list[str]) -> tuple[Array, Array]:
    """States bfloat16 [m, length, width] and mask bool [m, length] of all texts."""
    encode, tokenised = states(conditioner), conditioner.caption_encoder()(texts)
    padding = -len(texts) % min(ENCODED, len(texts))
    tokens, mask = (
        np.pad(tokenised[n], ((0, padding), (0, 0))) for n in ("tokens", "mask")
    )
    mask[len(texts) :, 0] = True  # no row without a token that counts
    blocks = len(tokens) // min(ENCODED, len(texts))
    pairs = zip(np.split(tokens, blocks), np.split(mask, blocks), strict=True)
    done = [encode(*pair)[0] for pair in pairs]
    return jnp.concatenate(done)[: len(texts)], jnp.asarray(mask[: len(texts)])
