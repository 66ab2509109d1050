"""Files of object stores (gs:// and s3://), brought to this machine to be read.

They are kept in a cache folder: `--cache_dir`, or PIXELFLOW_CACHE_DIR, or else
~/.cache/pixelflow_jax. What is there already is asked for again only where it changed,
in the store or on this disk. TensorStore does the reading, which writes checkpoints as
well; it finds credentials where the tools of the stores keep them.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pixelflow_jax import digests
from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.errors import UserError
from pixelflow_jax.paths import local_path, printable

CACHE = "PIXELFLOW_CACHE_DIR"
DEFAULT_CACHE = "~/.cache/pixelflow_jax"
# One slash is left of two where the name went through a pathlib.Path.
URL = re.compile(r"(gs|s3):/{1,2}([^/]+)/*(.*?)/*")
DRIVERS = {"gs": "gcs", "s3": "s3"}
LOG_IN = {
    "gs": "`gcloud auth application-default login`",
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
SUMS = "SHA256SUMS"  # beside the files of a folder: what `sha256sum *` prints
RETRIES = {"max_retries": 4}
THREADS = 4  # files on their way at once, each of them whole in memory
MAX_REASON = 300  # characters of a store's own words


class Located(NamedTuple):
    """A place in a store."""

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"


class Staged(NamedTuple):
    """What is known of a file in the cache: beside it, in a hidden file."""

    generation: str
    size: int
    changed: int
    digest: str


def located(text: str | Path) -> Located | None:
    """The place that a name such as gs://bucket/folder means; None for other names."""
    found = URL.fullmatch(str(text))
    return None if found is None else Located(*found.groups())


def use_cache(folder: str) -> None:
    """Keep files in `folder` from now on; processes that are begun later do as well."""
    os.environ[CACHE] = str(local_path(folder, "--cache_dir").absolute())


def readable_path(
    text: str | Path, what: str, error: type[UserError] = UserError
) -> Path:
    """The path of a file or folder to read, brought here where it lies in a store.

    Raises `error` for stores that are not known here, or where it cannot be brought;
    `what` is the flag or field that named it.
    """
    place = located(text)
    if place is None:
        return local_path(text, what, error)
    if not place.key:
        raise error(f"{what} is {str(text)!r}, a whole bucket: name a folder in it.")
    try:
        return _stage(place)
    except UserError as known:
        raise error(str(known)) from known
    except OSError as failure:
        raise error(
            f"{place} cannot be kept in {cache()} ({failure.strerror or failure}): "
            "name a folder with room by --cache_dir."
        ) from failure
    except Exception as failure:  # TensorStore has ValueError for all
        raise unreachable(what, place, failure, error) from failure


def unreachable(
    what: str, place: Located, failure: Exception, error: type[UserError]
) -> UserError:
    """The error for a place that its store does not give, in the store's words."""
    said = " ".join(str(failure).split())[:MAX_REASON]
    return error(
        f"{what} is {place}, which cannot be read ({printable(said)}). Check the "
        f"name, and that you may read it ({LOG_IN[place.scheme]})."
    )


def staged_digest(path: Path) -> str | None:
    """The digest (`digests.SUMS`) of a file in the cache; None for other files."""
    known = _known(path)
    return known and known.digest


def cache() -> Path:
    """The folder in which files are kept."""
    return Path(os.environ.get(CACHE) or DEFAULT_CACHE).expanduser()


def _stage(place: Located) -> Path:
    """Brings one file, or all below a folder; returns where they lie."""
    bucket = cache() / "staged" / place.scheme / place.bucket
    store = open_store(place)
    with _alone(bucket):
        keys = _keys(store, place.key)
        if not keys:
            raise UserError(
                f"There is nothing at {place} that you may read: correct the name, or "
                f"log in ({LOG_IN[place.scheme]})."
            )
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            bring = [pool.submit(_bring, store, key, bucket / key) for key in keys]
            brought = sum(future.result() for future in bring)
        if brought:
            line = f"{brought:,} bytes of {place} were brought to {bucket / place.key}."
            print(line, file=sys.stderr)
        _check_sums(place, bucket, keys)
    return bucket / place.key


def open_store(place: Located) -> Any:
    """The bucket as a TensorStore KvStore."""
    import tensorstore  # here: few runs need it, and workers import this file

    spec: dict[str, Any] = {"driver": DRIVERS[place.scheme], "bucket": place.bucket}
    context = {f"{DRIVERS[place.scheme]}_request_retries": RETRIES}
    if place.scheme == "s3":
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:  # a store that speaks S3
            spec["endpoint"] = endpoint
            region = region or "us-east-1"
        if region:
            spec["aws_region"] = region
    return tensorstore.KvStore.open({**spec, "context": context}).result()


def keys_below(store: Any, key: str) -> list[str]:
    """The names of all files below a folder; UserError for what can be none here."""
    names = [name for name in _names(store, key) if name.startswith(f"{key}/")]
    files = [name for name in names if not name.endswith("/")]  # folders made by hand
    for name in files:
        if {"..", "."} & set(name.split("/")) or "\0" in name or "//" in name:
            raise UserError(f"{printable(name)!r} is no name of a file: rename it.")
    return sorted(files)


def _keys(store: Any, key: str) -> list[str]:
    """The file of that name, or all below the folder."""
    return [key] if key in _names(store, key) else keys_below(store, key)


def _names(store: Any, key: str) -> list[str]:
    """All names that begin with `key`, and a few others."""
    import tensorstore

    # "0" follows "/".
    span = tensorstore.KvStore.KeyRange(key, f"{key}0")
    return [name.decode() for name in store.list(span).result()]


def _bring(store: Any, key: str, path: Path) -> int:
    """Brings a file unless the one that is here is the same; returns its bytes."""
    known = _intact(path)
    options = {"if_not_equal": bytes.fromhex(known.generation)} if known else {}
    result = store.read(key, **options).result()
    if result.state == "unspecified":  # not changed
        return 0
    if result.state == "missing":
        raise UserError(f"{key} vanished from the store while it was read: try again.")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    beside.unlink(missing_ok=True)
    with atomic_write(path) as partial:
        partial.write_bytes(result.value)
    facts, generation = path.stat(), bytes(result.stamp.generation)
    [(size, digest)] = digests.of_files([path])
    if size != len(result.value):
        raise OSError(None, f"{path} has {size} of {len(result.value)} bytes")
    if generation.strip(b"\0"):  # some servers do not say one
        staged = Staged(generation.hex(), size, facts.st_mtime_ns, digest)
        with atomic_write(beside) as partial:
            partial.write_text(json.dumps(staged))
    return size


def _intact(path: Path) -> Staged | None:
    """What is known of a file in the cache, if it is as it was written."""
    known = _known(path)
    if known is None:
        return None
    facts = path.stat()
    if (facts.st_size, facts.st_mtime_ns) == (known.size, known.changed):
        return known
    [(size, digest)] = digests.of_files([path])
    return known if (size, digest) == (known.size, known.digest) else None


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.staged")


def _known(path: Path) -> Staged | None:
    try:
        known = Staged(*json.loads(_beside(path).read_text()))
        bytes.fromhex(known.generation)
        return known if path.is_file() else None
    except (OSError, ValueError, TypeError):
        return None


def _check_sums(place: Located, bucket: Path, keys: list[str]) -> None:
    """Compares files with a SHA256SUMS that lies beside them in the store."""
    for key in keys:
        if PurePosixPath(key).name != SUMS:
            continue
        folder = (bucket / key).parent
        for line in (bucket / key).read_text("utf-8").splitlines():
            expected, _, name = line.partition(" ")
            path = folder / name.lstrip(" *")
            if not path.is_file() or _checked(path, expected):
                continue
            path.unlink()
            raise UserError(
                f"{path.name} of {place} is not what its {SUMS} says: it was damaged "
                "on its way, or in the store. Try again, or write it there again."
            )


def _checked(path: Path, expected: str) -> bool:
    """Whether a file has that SHA-256; once for each content."""
    mark, known = path.with_name(f".{path.name}.sha256"), _known(path)
    said = f"{expected} {known.digest}" if known else ""
    if said and mark.is_file() and mark.read_text() == said:
        return True
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == expected.lower() and said:
        mark.write_text(said)
    return found == expected.lower()


@contextlib.contextmanager
def _alone(bucket: Path) -> Iterator[None]:
    """One process of a machine brings files of a bucket; others wait for it."""
    bucket.mkdir(parents=True, exist_ok=True)
    with (bucket / ".lock").open("a") as file:
        with contextlib.suppress(ImportError, OSError):  # a disk without locks
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
