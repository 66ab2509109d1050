"""JSON that comes with weights: read with a limit, whatever it holds."""

import json
import pathlib

from pixelflow_jax.errors import WeightsError

MOST = 2**25  # bytes: the names of a million tensors take less


def refuse_pipes(path: pathlib.Path) -> None:
    """Raises WeightsError for a named pipe or a device, which may be read for ever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise WeightsError(f"{path} is a pipe or a device, not a file.")


def read(path: pathlib.Path) -> object:
    """What a file says; raises WeightsError, and FileNotFoundError where there is none.

    A file may be sparse, and much larger than the disk that it lies on.
    """
    refuse_pipes(path)
    with open(path, "rb") as file:
        content = file.read(MOST + 1)
    if len(content) > MOST:
        raise WeightsError(
            f"{path} is {path.stat().st_size / 1e6:,.0f} MB large, which no such file "
            "is: fetch or export the weights again."
        )
    return parsed(content, path)


def parsed(content: str | bytes, where: pathlib.Path) -> object:
    """What a text in JSON says; raises WeightsError."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        raise WeightsError(
            f"{where} cannot be read ({'nested too deeply' if deep else error}): fetch "
            "or export the weights again."
        ) from error
