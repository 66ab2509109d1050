"""The prompts of text suites, as their authors publish them, and the scorers' layouts.

| suite | prompts | images, as the official scorer reads them |
|---|---|---|
| geneval | evaluation_metadata.jsonl | NNNNN/metadata.jsonl, NNNNN/samples/DDDD.png |
| dpg | <id>.txt each, or dpg_bench.csv | <id>.png, a 2 x 2 grid of four images |
| t2icompbench | <category>_val.txt | <category>/samples/<prompt>_<6 digits>.png |
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pixelflow_jax.errors import EvaluationError

LONGEST = 255  # bytes of a file's name
TILES = 2  # rows and columns of a DPG image


class Item(NamedTuple):
    """A prompt of a suite: its images, by path, in the order in which they are drawn.

    `tiles`: four images in one file. `metadata` is the text of a file beside them.
    """

    prompt: str
    files: tuple[str, ...]
    tiles: bool = False
    metadata: tuple[str, str] | None = None

    @property
    def images(self) -> int:
        """How many images are drawn of the prompt."""
        return TILES**2 if self.tiles else len(self.files)


@dataclasses.dataclass(frozen=True)
class Suite:
    """How a suite's prompts are read, what is drawn of each, and where they come from.

    `read` makes the items of a file or a folder, `images` of each prompt.
    """

    read: Callable[[pathlib.Path, int], list[Item]]
    images: int
    origin: str


def read_suite(name: str, path: pathlib.Path, images: int | None = None) -> list[Item]:
    """The items of a suite, of which each is drawn `images` times (its own number).

    Raises EvaluationError where the prompts are absent, or the scorer could not read
    what would be written.
    """
    suite = SUITES[name]
    path = path.expanduser()
    if not path.exists():
        raise EvaluationError(
            f"There are no prompts of {name} at {path}: get {suite.origin}, and name "
            "it with --prompts."
        )
    if name == "dpg" and images not in (None, TILES**2):
        raise EvaluationError(
            f"dpg draws {TILES**2} images of a prompt, in one {TILES} x {TILES} grid, "
            f"not {images}: leave --count away."
        )
    items = suite.read(path, images or suite.images)
    _check_names(name, items)
    return items


def _check_names(name: str, items: list[Item]) -> None:
    """What no file can be called, or what two are called."""
    if not items:
        raise EvaluationError(
            f"The prompts of {name} are empty: get {SUITES[name].origin}."
        )
    taken: dict[str, str] = {}
    for item in items:
        for file in item.files:
            last = file.rsplit("/", 1)[-1]
            if len(last.encode()) > LONGEST or "\0" in last:
                raise EvaluationError(
                    f"The prompt {item.prompt[:60]!r}... of {name} cannot be the name "
                    f"of a file, of at most {LONGEST} bytes: shorten or remove it."
                )
            # Disks of macOS and Windows take names of another case for the same.
            if taken.setdefault(file.casefold(), item.prompt) != item.prompt:
                raise EvaluationError(
                    f"Two prompts of {name} have the file {file}: "
                    f"{taken[file.casefold()][:40]!r} and {item.prompt[:40]!r}. Give "
                    "one of them another id, or remove it."
                )


def _geneval(path: pathlib.Path, images: int) -> list[Item]:
    """A folder a line of evaluation_metadata.jsonl, numbered from 0."""
    if path.is_dir():
        path = _inside(path, "evaluation_metadata.jsonl", "geneval")
    items, seen = [], {}
    lines = [line for line in _text(path).splitlines() if line.strip()]
    for number, line in enumerate(lines):
        entry = _entry(line, path, number)
        known = seen.setdefault((str(entry.get("tag")), entry["prompt"]), number)
        if known != number:
            raise EvaluationError(
                f"{path}, lines {known + 1} and {number + 1} are the same prompt "
                f"{entry['prompt'][:60]!r}, which would count twice: remove one."
            )
        folder = f"{number:05d}"
        files = [f"{folder}/samples/{k:04d}.png" for k in range(images)]
        # One object and no second line, even an empty one: the scorer reads it whole.
        beside = (f"{folder}/metadata.jsonl", json.dumps(entry))
        items.append(Item(entry["prompt"], tuple(files), metadata=beside))
    return items


def _entry(line: str, path: pathlib.Path, number: int) -> dict:
    """An object of evaluation_metadata.jsonl with what the scorer asks of it."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise EvaluationError(
            f"{path}, line {number + 1} is no JSON ({error}): GenEval has an object a "
            "line."
        ) from error
    known = isinstance(entry, dict) and isinstance(entry.get("prompt"), str)
    if not known or not {"tag", "include"} <= set(entry):
        raise EvaluationError(
            f"{path}, line {number + 1} lacks tag, include or prompt, which GenEval's "
            "scorer reads: take the official evaluation_metadata.jsonl, where only the "
            "prompt may be rephrased."
        )
    return entry


def _dpg(path: pathlib.Path, images: int) -> list[Item]:
    """A grid of four an id: the name of a text file, or the item_id of the table."""
    if path.is_dir() and not any(path.glob("*.txt")):
        path = _inside(path, "dpg_bench.csv", "dpg")
    found: dict[str, str] = {}
    for identity, prompt in _dpg_prompts(path):
        if not identity or set(identity) & set("./\\"):
            raise EvaluationError(
                f"The id {identity!r} of {path} cannot be read by the scorer, to which "
                "the name up to the first dot is the id: rename it without dots and "
                "slashes."
            )
        if found.setdefault(identity, prompt) != prompt:
            raise EvaluationError(
                f"The id {identity!r} appears in {path} with two prompts, "
                f"{found[identity][:40]!r} and {prompt[:40]!r}: give one another id."
            )
    return [Item(p, (f"{identity}.png",), tiles=True) for identity, p in found.items()]


def _dpg_prompts(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Ids and prompts; the table repeats them, a row a question."""
    if path.is_dir():
        for file in sorted(path.glob("*.txt")):
            yield file.name.removesuffix(".txt"), _filled(_text(file), file)
        return
    rows = csv.DictReader(io.StringIO(_text(path)))
    if not {"item_id", "text"} <= set(rows.fieldnames or ()):
        raise EvaluationError(
            f"{path} has no columns item_id and text: name the folder of DPG-Bench's "
            "prompts/*.txt, or its dpg_bench.csv."
        )
    for row in rows:
        yield row["item_id"].strip(), _filled(row["text"] or "", path)


def _t2i_compbench(path: pathlib.Path, images: int) -> list[Item]:
    """Prompts by category; their images are numbered over the whole category."""
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*_val.txt")) or [
            _inside(path, "color_val.txt", "t2icompbench")
        ]
    items = []
    for file in files:
        category = file.name.removesuffix(".txt").removesuffix("_val")
        lines = [line.strip() for line in _text(file).splitlines()]
        prompts = [line for line in lines if line]
        _check_prompts(prompts, file)
        for number, prompt in enumerate(prompts):
            numbers = range(number * images, (number + 1) * images)
            names = (f"{category}/samples/{prompt}_{k:06d}.png" for k in numbers)
            items.append(Item(prompt, tuple(names)))
    return items


def _check_prompts(prompts: Iterable[str], file: pathlib.Path) -> None:
    """Refuse prompts that the scorer could not tell from a file's name."""
    seen = set()
    for prompt in prompts:
        wrong = [mark for mark in "_/" if mark in prompt]
        if wrong:
            raise EvaluationError(
                f"The prompt {prompt[:60]!r} of {file} holds {' and '.join(wrong)}, at "
                "which the scorer cuts the names of images: write it without, or "
                "remove it."
            )
        if prompt in seen:
            raise EvaluationError(
                f"The prompt {prompt[:60]!r} appears twice in {file}: remove one."
            )
        seen.add(prompt)


def _inside(folder: pathlib.Path, name: str, suite: str) -> pathlib.Path:
    path = folder / name
    if not path.is_file():
        raise EvaluationError(
            f"{folder} holds no prompts of {suite}, such as {name}: get "
            f"{SUITES[suite].origin}."
        )
    return path


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"The prompts in {path} cannot be read ({error}): they must be UTF-8."
        ) from error


def _filled(prompt: str, path: pathlib.Path) -> str:
    if not prompt.strip():
        raise EvaluationError(f"{path} holds an empty prompt: fill or remove it.")
    return prompt.strip()


SUITES = {
    "geneval": Suite(
        _geneval,
        4,
        "prompts/evaluation_metadata.jsonl of github.com/djghosh13/geneval",
    ),
    "dpg": Suite(
        _dpg,
        TILES**2,
        "dpg_bench/prompts of github.com/TencentQQGYLab/ELLA",
    ),
    "t2icompbench": Suite(
        _t2i_compbench,
        10,
        "examples/dataset/*_val.txt of github.com/Karine-Huang/T2I-CompBench",
    ),
}
