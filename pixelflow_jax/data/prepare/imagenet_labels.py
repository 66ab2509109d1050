"""What the classes of ImageNet are called, and which the validation images are of.

Classes are numbered by their sorted WordNet ids ("n01440764" is 0), as all published
models have them. The validation images come without folders; which file tells their
classes depends on where they were fetched.
"""

import collections
import csv
import io
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pixelflow_jax.errors import DataError
from pixelflow_jax.paths import printable

WNID = re.compile(r"n\d{8}")
NUMBER = re.compile(r"val_0*(\d+)")
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
# Where else they are told, below the folder: by Kaggle, by TensorFlow, by Caffe.
WORDS = ("LOC_synset_mapping.txt", "synset_words.txt")
SOLUTION = "LOC_val_solution.csv"
LABELS = ("imagenet_2012_validation_synset_labels.txt", "val_labels.txt")
TOLD_BY = (DEVKIT, SOLUTION, LABELS[0])


class Synset(NamedTuple):
    """A class of the development kit: its number there, and its words."""

    number: int
    wnid: str
    words: str


def words_of(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    """A name for each class, all different: its first word where words are at hand.

    "crane" is a bird and a machine: such names have the id behind them. Without words
    the ids are the names.
    """
    words = {s.wnid: s.words for s in synsets(folder)} or _listed_words(folder)
    first = [words.get(wnid, wnid).partition(",")[0].strip() for wnid in wnids]
    counts = collections.Counter(first)
    return tuple(
        name if counts[name] == 1 else f"{name} ({wnid})"
        for name, wnid in zip(first, wnids, strict=True)
    )


def synsets(folder: Path) -> list[Synset]:
    """The classes of the development kit, packed or not; none where it is absent."""
    content = _devkit_file(folder, META)
    if content is None:
        return []
    from scipy import io as matlab  # jax brings it; workers need not wait for it

    try:
        rows: Any = matlab.loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        leaves = rows[rows["num_children"] == 0]
        return [
            Synset(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"]))
            for row in leaves
        ]
    except Exception as error:  # scipy reports damage through many types
        raise DataError(
            f"meta.mat of the development kit in {printable(str(folder))} cannot be "
            f"read ({error}): fetch {DEVKIT} again."
        ) from error


def validation_classes(folder: Path) -> Callable[[str], str]:
    """From the name of a validation image to the id of its class.

    Raises DataError where no file in `folder` tells them.
    """
    by_name = _solution(folder)
    if by_name:
        return lambda name: _looked_up(by_name, Path(name).stem, name)
    by_number = _by_number(folder)
    if by_number:
        return lambda name: _looked_up(by_number, _number(name), name)
    raise DataError(
        f"Nothing in {printable(str(folder))} tells the classes of the validation "
        f"images: put one of {', '.join(TOLD_BY)} there, or sort the images into a "
        "folder for each class (n01440764, ...)."
    )


def _looked_up(classes: Mapping, key: object, name: str) -> str:
    if key not in classes:
        raise DataError(
            f"{printable(name)} is no validation image of the {len(classes):,} whose "
            "classes are told: take it away, or fetch the file of classes again."
        )
    return classes[key]


def _number(name: str) -> int:
    found = NUMBER.search(name)
    return int(found[1]) if found else -1


def _by_number(folder: Path) -> dict[int, str]:
    """From the number of a validation image, from 1 on, to the id of its class."""
    truth = _devkit_file(folder, TRUTH)
    if truth is not None:
        wnids = {synset.number: synset.wnid for synset in synsets(folder)}
        numbers = [int(line) for line in truth.split()]
        if not set(numbers) <= set(wnids):
            raise DataError(
                f"The development kit in {printable(str(folder))} names classes that "
                f"its meta.mat does not have: fetch {DEVKIT} again."
            )
        return {k: wnids[number] for k, number in enumerate(numbers, 1)}
    for file in (folder / name for name in LABELS):
        if file.is_file():
            lines = file.read_text("utf-8").split()
            return {k: wnid for k, wnid in enumerate(lines, 1) if WNID.match(wnid)}
    return {}


def _solution(folder: Path) -> dict[str, str]:
    """From the name of a validation image, without suffix, to its class: Kaggle's."""
    file = folder / SOLUTION
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    try:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (KeyError, IndexError, AttributeError) as error:
        raise DataError(
            f"{printable(str(file))} is not Kaggle's table of ImageId and "
            "PredictionString: fetch it again."
        ) from error


def _listed_words(folder: Path) -> dict[str, str]:
    """Words by id, of a file with a line for each: "n01440764 tench, Tinca tinca"."""
    for file in (folder / name for name in WORDS):
        if file.is_file():
            lines = file.read_text("utf-8").splitlines()
            pairs = (line.partition(" ") for line in lines if WNID.match(line))
            return {wnid: words for wnid, _, words in pairs}
    return {}


def _devkit_file(folder: Path, name: str) -> bytes | None:
    """A file of the development kit; None where it is absent."""
    for place in (folder, folder / DEVKIT.removesuffix(".tar.gz")):
        if (place / name).is_file():
            return (place / name).read_bytes()
    if not (folder / DEVKIT).is_file():
        return None
    try:
        with tarfile.open(folder / DEVKIT, "r:gz") as kit:
            for member in _files(kit):
                if member.name.endswith(name):
                    return kit.extractfile(member).read()  # pyright: ignore (a file)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{printable(str(folder / DEVKIT))} cannot be read ({error}): fetch it "
            "again."
        ) from error
    return None


def _files(kit: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in kit if member.isfile())
