"""Captions through the frozen encoder once, ahead of training.

What lies on disk afterwards is described in `data/features.py`.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from pixelflow_jax import distributed, sharding
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
from pixelflow_jax.data.index import IndexedFile, find_damage, write_index
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

    `batch_size` captions are encoded at a time, spread over the devices of `mesh`, or
    over those of all processes: with several of them each has a mesh of its own, and
    encodes whole shards, the same bytes as one would. What an earlier, interrupted call
    finished is kept. States of padding are stored only where `model` reads them. Raises
    DataError, or WeightsError without weights.
    """
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
    distributed.agree({f"the shards of {shards}": counts})
    options = _options(conditioner, model)
    header: Header = {
        "listing": _digest(counts),
        "options": {"version": FORMAT.version, **options},
    }
    done = distributed.of_first(lambda: _begin(out, header, [*sources], overwrite))
    encode = Encoder(conditioner, model, mesh, batch_size)
    with _writing(out):
        if distributed.is_main():
            states, mask = encode.empty()
            np.savez(out / EMPTY, states=states, mask=mask)
        _encode_all(out, sources, done, encode, options["padding"])
        if not distributed.is_main():
            return out
        files = [done[file] for file in counts]
        write_index(out, FORMAT, {**options, "shards": counts, "files": files})
    total = sum(entry["count"] for entry in files)
    tqdm.write(
        f"{total} captions of {sum(counts.values())} images in {len(files)} files"
    )
    return out


def _begin(
    out: Path, header: Header, splits: list[str], overwrite: bool
) -> dict[str, IndexedFile]:
    """Makes the folders; returns what an earlier call finished."""
    with _writing(out):
        for name in (FORMAT.name, EMPTY) if overwrite else ():
            (out / name).unlink(missing_ok=True)
        return begin(out, header, splits, overwrite)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Errors of the disk as DataErrors."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror or error}): free some space, or "
            "correct its permissions, and run the same command again; it continues "
            "where it stopped."
        ) from error


def _encode_all(
    out: Path,
    sources: dict[str, ShardSource],
    done: dict[str, IndexedFile],
    encode: "Encoder",
    padding: bool,
) -> None:
    """Encode what is not `done`, and add it there: a shard a process, then the next.

    After each round process 0 notes what all have written.
    """
    main, count, own = distributed.is_main(), jax.process_count(), jax.process_index()
    left = [shard for shard in _shards(sources) if shard.file not in done]
    images = sum(len(source) for source in sources.values())
    before = images - sum(len(shard.records) for shard in left)
    bar = tqdm(
        total=images, initial=before, unit="image", desc="features", disable=not main
    )
    with bar:
        for start in range(0, len(left), count):
            together = left[start : start + count]
            entry = None
            if own < len(together):
                entry = _write(out, together[own], encode, padding)
            written = distributed.everyones(entry)[: len(together)]
            for shard, entry in zip(together, written, strict=True):
                done[shard.file] = entry
                if main:
                    _note(out, entry)
                bar.update(len(shard.records))


def _note(out: Path, entry: IndexedFile) -> None:
    """Remember a finished file; DataError where this process does not see it."""
    if find_damage(out, entry):
        raise DataError(
            f"Another process wrote {entry['file']}, but process 0 does not find it in "
            f"{out}: the shards must lie on a disk that all processes share."
        )
    note(out, entry)


class Encoder:
    """Captions -> states and masks, one compiled program for every batch."""

    def __init__(
        self,
        conditioner: Text,
        model: DenoiserConfig,
        mesh: jax.sharding.Mesh,
        batch_size: int,
    ):
        # A device has as many captions as it would have of one process with all.
        devices = sharding.batch_shards(mesh)
        each = -(-max(1, batch_size) // (devices * jax.process_count()))
        self._size = each * devices
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


class Shard(NamedTuple):
    """A file of shards by its path, and its records in the source of its split."""

    file: str
    source: ShardSource
    records: range


def _shards(sources: dict[str, ShardSource]) -> Iterator[Shard]:
    for split, source in sources.items():
        first = 0
        for name, count in source.shards.items():
            yield Shard(f"{split}/{name}", source, range(first, first + count))
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


def _write(out: Path, shard: Shard, encode: Encoder, padding: bool) -> IndexedFile:
    """Writes the states of one shard's captions, and their keys."""
    texts, file = _captions(shard.source, shard.records), shard.file
    path = out / file
    with whole_file(path) as writer:
        for states, mask in encode(list(texts.values())):
            writer.write(pack_features(states, mask, padding))
    np.save(out / (file + KEYS), np.array(list(texts), np.uint64))
    return {"file": file, "bytes": path.stat().st_size, "count": len(texts)}


def _digest(counts: dict[str, int]) -> str:
    return hashlib.sha256(json.dumps(counts).encode()).hexdigest()
