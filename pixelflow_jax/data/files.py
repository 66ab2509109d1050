"""Files named by a path, a folder, a glob pattern, or numbers in braces."""

import glob
import re
from pathlib import Path

from pixelflow_jax.errors import DataError


def find_files(pattern: str, suffix: str) -> list[Path]:
    """The files of that suffix that `pattern` names, sorted.

    A folder stands for all files in it and below; "a{000..012}.tar" and "{a,b}.tar"
    stand for each of them. Raises DataError where there is none, or one is absent.
    """
    paths: list[Path] = []
    for name in _alternatives(str(Path(pattern).expanduser())):
        path = Path(name)
        if path.is_dir():
            paths += path.rglob(f"*{suffix}")
        elif path.is_file():
            paths.append(path)
        else:
            matches = [Path(match) for match in glob.glob(name, recursive=True)]
            if not matches:
                raise DataError(
                    f"There is no file {name!r}: give a file, a folder, a pattern such "
                    f"as 'data/*{suffix}' or numbers such as 'data/{{000..012}}"
                    f"{suffix}', in quotes."
                )
            paths += matches
    files = sorted({path for path in paths if path.is_file()})
    if not files:
        raise DataError(f"{pattern!r} holds no {suffix} files: correct the path.")
    return files


def _alternatives(pattern: str) -> list[str]:
    """The names that braces stand for; the pattern alone where it has none."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    if numbers:
        first, last = numbers.groups()
        middles = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        middles = brace[1].split(",")
    before, after = pattern[: brace.start()], pattern[brace.end() :]
    return [
        name for middle in middles for name in _alternatives(before + middle + after)
    ]
