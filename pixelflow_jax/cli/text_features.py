"""Captions through the frozen encoder once, ahead of training.

What lies on disk afterwards is described in `data/features.py`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from pixelflow_jax import sharding
from pixelflow_jax.conditioning.grounded import GroundedText
from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.conditioning.text import Text, reads_padding
from pixelflow_jax.data.features import (
    EMPTY,
    FOLDER,
    FORMAT,
    KEYS,
    pack_features,
    text_key,
)
from pixelflow_jax.data.index import IndexedFile, write_index
from pixelflow_jax.data.prepare.progress import Header, begin, note
from pixelflow_jax.data.shards import Shards, ShardSource, whole_file
from pixelflow_jax.errors import DataError, UnreadableImage
from pixelflow_jax.models.interface import DenoiserConfig


def write_features(
    conditioner: Conditioner,
    model: DenoiserConfig,
    shards: Path,
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int = 64,
    overwrite: bool = False,
) -> Path:
    """Encodes every caption of a folder of shards; returns the folder of the features.

    `batch_size` captions are encoded at a time, spread over the devices of `mesh`. What
    an earlier, interrupted call finished is kept. States of padding are stored only
    where `model` reads them. Raises DataError, or WeightsError without weights.
    """
    if isinstance(conditioner, GroundedText):
        conditioner = conditioner.content
    if not isinstance(conditioner, Text):
        raise DataError(
            f"The config's conditioner is {type(conditioner).__name__}, which reads no "
            "captions: name a config of a text model."
        )
    conditioner = dataclasses.replace(conditioner, features="")  # the encoder itself
    sources = _open(shards)
    out = shards / FOLDER
    counts = {
        f"{split}/{file}": count
        for split, source in sources.items()
        for file, count in source.shards.items()
    }
    for name in (FORMAT.name, EMPTY) if overwrite else ():
        (out / name).unlink(missing_ok=True)
    options = _options(conditioner, model)
    header: Header = {
        "listing": _digest(counts),
        "options": {"version": FORMAT.version, **options},
    }
    try:
        done: dict[str, IndexedFile] = begin(out, header, sources, overwrite)
        encode = Encoder(conditioner, model, mesh, batch_size)
        states, mask = encode.empty()
        np.savez(out / EMPTY, states=states, mask=mask)
        for file, texts in _texts(sources, done):
            done[file] = _write(out, file, texts, encode, options["padding"])
            note(out, done[file])
        files = [done[file] for file in counts]
        write_index(out, FORMAT, {**options, "shards": counts, "files": files})
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror or error}): free some space, or "
            "correct its permissions, and run the same command again; it continues "
            "where it stopped."
        ) from error
    total = sum(entry["count"] for entry in files)
    tqdm.write(
        f"{total} captions of {sum(counts.values())} images in {len(files)} files"
    )
    return out


class Encoder:
    """Captions -> states and masks, one compiled program for every batch."""

    def __init__(
        self,
        conditioner: Text,
        model: DenoiserConfig,
        mesh: jax.sharding.Mesh,
        batch_size: int,
    ):
        devices = sharding.batch_shards(mesh)
        self._size = -(-max(1, batch_size) // devices) * devices
        self._conditioner, self._model, self._mesh = conditioner, model, mesh
        self._reader = conditioner.encoder.reader(conditioner.length)
        self._reader.check()
        self._frozen = sharding.place(conditioner.load(), mesh)
        self._program = jax.jit(self._encode)

    def __call__(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """States [length, width] bfloat16 and mask [length] of each text."""
        for start in range(0, len(texts), self._size):
            part = texts[start : start + self._size]
            filled = part + part[:1] * (self._size - len(part))
            batch = sharding.global_batch(self._reader(filled), self._mesh)
            states, mask = jax.device_get(self._program(self._frozen, batch))
            yield from zip(states[: len(part)], mask[: len(part)], strict=True)

    def empty(self) -> tuple[np.ndarray, np.ndarray]:
        """The null text's states, as 16-bit numbers, which numpy can save, and mask."""
        cond = self._conditioner.encode(self._frozen, self._reader([""]))
        null = self._conditioner.null(self._frozen, cond, self._model)
        assert null.text is not None and null.mask is not None
        states = np.asarray(null.text[0].astype(jnp.bfloat16))
        return states.view(np.uint16), np.asarray(null.mask[0])

    def _encode(self, frozen_params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        cond = self._conditioner.encode(frozen_params, batch)
        assert cond.text is not None and cond.mask is not None
        return cond.text.astype(jnp.bfloat16), cond.mask


def _open(shards: Path) -> dict[str, ShardSource]:
    config = Shards(path=str(shards))
    sources = {"train": config.open("train")}
    if not (shards / "train").is_dir():
        raise DataError(f"{shards} holds no train folder: give the folder above it.")
    if (shards / "test").is_dir():
        sources["test"] = config.open("test")
    return sources


def _options(conditioner: Text, model: DenoiserConfig) -> dict[str, Any]:
    """What the states depend on, and how they are stored."""
    return {
        "identity": conditioner.encoder.identity(),
        "length": conditioner.length,
        "width": conditioner.encoder.width,
        "padding": reads_padding(model),
    }


def _texts(
    sources: dict[str, ShardSource], done: Mapping[str, IndexedFile]
) -> Iterator[tuple[str, dict[int, str]]]:
    """The captions of each shard that is not done, by their keys; shows progress."""
    total = sum(len(source) for source in sources.values())
    with tqdm(total=total, unit="image", desc="features") as bar:
        for split, source in sources.items():
            first = 0
            for name, count in source.shards.items():
                file = f"{split}/{name}"
                if file not in done:
                    yield file, _captions(source, range(first, first + count))
                bar.update(count)
                first += count


def _captions(source: ShardSource, records: range) -> dict[int, str]:
    texts: dict[int, str] = {}
    for record in records:
        try:
            captions = source.captions(record)
        except UnreadableImage as error:
            tqdm.write(f"skipped: {error}")
            continue
        texts |= {text_key(text): text for text in captions}
    return texts


def _write(
    out: Path, file: str, texts: dict[int, str], encode: Encoder, padding: bool
) -> IndexedFile:
    """Writes the states of one shard's captions, and their keys."""
    path = out / file
    with whole_file(path) as writer:
        for states, mask in encode(list(texts.values())):
            writer.write(pack_features(states, mask, padding))
    np.save(out / (file + KEYS), np.array(list(texts), np.uint64))
    return {"file": file, "bytes": path.stat().st_size, "count": len(texts)}


def _digest(counts: dict[str, int]) -> str:
    return hashlib.sha256(json.dumps(counts).encode()).hexdigest()
