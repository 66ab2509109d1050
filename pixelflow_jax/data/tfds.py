"""Data sets prepared by TensorFlow Datasets as ArrayRecord; needs no TensorFlow."""

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixelflow_jax.data.decoding import MAX_PIXELS, PixelLimit
from pixelflow_jax.data.index import RecordFile
from pixelflow_jax.data.limits import Limits
from pixelflow_jax.data.records import Records
from pixelflow_jax.data.source import (
    Record,
    SourceConfig,
    Split,
    check_split,
    decode_image,
)
from pixelflow_jax.errors import DataError, UnreadableImage
from pixelflow_jax.paths import local_path
from pixelflow_jax.values import Name, Place


@dataclasses.dataclass(kw_only=True)
class Tfds(SourceConfig):
    """A prepared TFDS data set such as imagenet2012, images decoded by Pillow.

    `name` may carry a config and a version ("imagenet2012/5.1.0"); without, the newest
    version under `data_dir` is taken. The captions are the class names. An image of
    more than `max_pixels` counts as unreadable. Raises
    DataError where the package, the data, a split or a feature is missing, or the
    files are not ArrayRecord.
    """

    name: Name = "imagenet2012"
    data_dir: Place = ""
    image_key: Name = "image"
    label_key: Name = "label"
    train_split: Name = "train"
    test_split: Name = "validation"
    max_pixels: PixelLimit = MAX_PIXELS

    def open(self, split: Split, image_size: int = 0) -> "TfdsSource":
        """Opens one split; see the class for its errors."""
        check_split(split)
        builder = _open_builder(str(find_prepared(self.name, self.data_dir)))
        name = self.train_split if split == "train" else self.test_split
        if name not in builder.info.splits:
            raise DataError(
                f"{self.name} has no split {name!r}, only "
                f"{', '.join(builder.info.splits)}: set {split}_split to one of them."
            )
        features = builder.info.features
        for field in ("image_key", "label_key"):
            if getattr(self, field) not in features:
                raise DataError(
                    f"{self.name} has no feature {getattr(self, field)!r}, only "
                    f"{', '.join(features)}: set {field} to one of them."
                )
        names = getattr(features[self.label_key], "names", None)
        if names is None:
            raise DataError(
                f"The feature {self.label_key!r} of {self.name} is no class label: set "
                "label_key to a ClassLabel feature."
            )
        info = builder.info.splits[name]
        return TfdsSource(
            directory=str(builder.data_dir),
            split=name,
            shards=tuple(info.shard_lengths or (info.num_examples,)),
            class_names=tuple(names),
            keys=(self.image_key, self.label_key),
            limits=Limits(max_pixels=self.max_pixels),
        )


class TfdsSource:
    """One split of a prepared TFDS data set; see Tfds."""

    sizes = None

    def __init__(
        self,
        *,
        directory: str,
        split: str,
        shards: tuple[int, ...],
        class_names: tuple[str, ...],
        keys: tuple[str, str],
        limits: Limits,
    ):
        self.directory, self.split, self.class_names = directory, split, class_names
        self._shards, self._keys = shards, keys
        self._max_pixels = limits.max_pixels

    def __len__(self) -> int:
        return sum(self._shards)

    def identity(self) -> Iterator[str]:
        """Name and version of the data set, and how many records each file has."""
        yield "/".join(Path(self.directory).parts[-2:])
        yield f"{self.split} {self._shards}"

    def __getitem__(self, index: int) -> Record:
        image_key, label_key = self._keys
        name = f"{self.split}[{index}]"
        try:
            record = self._records[index]
            encoded, label = record[image_key], int(record[label_key])
        except Exception as error:
            raise UnreadableImage(
                f"Record {name} in {self.directory} is damaged ({error}). Prepare the "
                "data set again."
            ) from error
        if "file_name" in record:
            name = bytes(record["file_name"]).decode("utf-8", "replace")
        return {
            "image": decode_image(encoded, name, self._max_pixels),
            "label": label,
            "captions": (self.class_names[label],),
            "name": name,
            "origin": self.directory,
        }

    @functools.cached_property
    def _records(self):
        import tensorflow_datasets as tfds

        builder = _open_builder(self.directory)
        source = builder.as_data_source(
            split=self.split, decoders={self._keys[0]: tfds.decode.SkipDecoding()}
        )
        # Its own keeps every file open, and ImageNet has a thousand.
        source.data_source = Records(
            [
                RecordFile(str(i.filename), i.skip, i.examples_in_shard - i.skip)
                for i in builder.info.splits[self.split].file_instructions
            ]
        )
        return source

    def __getstate__(self) -> dict:
        # Open files stay with the process that opened them.
        return {k: v for k, v in self.__dict__.items() if k != "_records"}


def find_prepared(name: str, data_dir: str) -> Path:
    """The folder with dataset_info.json of the newest prepared version.

    Raises DataError where there is none, several configs, or not ArrayRecord.
    """
    root = local_path(data_dir or ".", "data_dir", DataError) / name
    infos = sorted(root.glob("**/dataset_info.json"), key=_version)
    if not infos:
        raise DataError(
            f"No prepared data set {name!r} in data_dir {data_dir!r} (looked for "
            f"{root}/**/dataset_info.json): prepare it with `tfds build {name} "
            f"--file_format=array_record --data_dir={data_dir}`, or correct data_dir."
        )
    parents = {path.parent.parent for path in infos}
    if len(parents) > 1:
        configs = ", ".join(sorted(parent.name for parent in parents))
        raise DataError(
            f"{root} holds several configs ({configs}): name one, as in "
            f"{name}/{sorted(parent.name for parent in parents)[0]}."
        )
    newest = infos[-1]
    file_format = json.loads(newest.read_text("utf-8")).get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise DataError(
            f"{newest.parent} is stored as {file_format}, which has no random access: "
            f"prepare it with --file_format=array_record, or convert it with `tfds "
            f"convert_format --root_data_dir={newest.parent} "
            "--out_file_format=array_record`."
        )
    return newest.parent


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", path.parent.name))


def _open_builder(directory: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            "Tfds needs the package tensorflow-datasets: "
            "pip install 'pixelflow_jax[tfds]'."
        ) from error
    return tfds.builder_from_directory(directory)
