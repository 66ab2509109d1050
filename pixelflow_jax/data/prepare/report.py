"""What a preparation tells of what it wrote: what was left out, and why."""

from collections.abc import Mapping

from tqdm import tqdm

from pixelflow_jax.data.shards import IndexedShard
from pixelflow_jax.errors import DataError
from pixelflow_jax.paths import printable

SHOWN = 20  # names that a message lists
REASONS = 5


class WrittenShard(IndexedShard):
    """A shard as progress.jsonl notes it, with its path below the output folder.

    The names of the first images without a caption, and why others are left out.
    """

    bare_names: list[str]
    unreadable: list[str]


def check_share(
    done: Mapping[str, WrittenShard], total: int, max_corrupt: float
) -> None:
    """Names what was left out; DataError where that is too large a share, or all."""
    unreadable = [text for shard in done.values() for text in shard["unreadable"]]
    for text in unreadable:
        tqdm.write(f"skipped: {text}")
    reasons = " ".join(unreadable[:REASONS])
    if len(unreadable) > REASONS:
        reasons += f" And {len(unreadable) - REASONS} more, named above."
    if len(unreadable) == total:
        raise DataError(f"None of the {total} images can be used: {reasons}")
    if len(unreadable) > max_corrupt * total:
        raise DataError(
            f"{len(unreadable)} of {total} images cannot be used, more than "
            f"--max-corrupt {max_corrupt}: {reasons} Repair them and use --overwrite, "
            "or raise --max-corrupt to leave them out."
        )


def name_bare(done: Mapping[str, WrittenShard]) -> None:
    """Names images without captions, where others have some."""
    shards = done.values()
    bare = sum(shard["bare"] for shard in shards)
    if bare and any(shard["captions"] for shard in shards):
        names = [name for shard in shards for name in shard["bare_names"]]
        more = " ..." if bare > SHOWN else ""
        shown = ", ".join(map(printable, names[:SHOWN]))
        tqdm.write(f"without caption: {shown}{more}")
