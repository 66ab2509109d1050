"""Whether a data set is large enough for what is asked of it, in words."""

from collections.abc import Iterator, Sequence

import numpy as np

from pixelflow_jax.data.plan import Batching, Bucket
from pixelflow_jax.data.source import Source

PROBES = 8  # images to look at where the sizes of all are not known


def size_warnings(
    source: Source, buckets: Sequence[Bucket], batching: Batching
) -> Iterator[str]:
    """What a user should know before training: few images, or small ones.

    Nothing in passes for evaluation, which only read what there is.
    """
    if not batching.repeat:
        return
    total = sum(len(bucket.records) for bucket in buckets)
    if total < batching.batch_size:
        yield (
            f"There are {total} images and a batch takes {batching.batch_size}: every "
            "batch holds images several times. Get more, or lower batch_size."
        )
    for bucket in buckets:
        sizes, looked_at = _sizes(source, bucket)
        small = (sizes < np.array(bucket.shape)).any(axis=1)
        if small.any():
            height, width = sizes[np.argmin(sizes.prod(axis=1))]
            yield (
                f"{int(small.sum())} of {looked_at} images are smaller than "
                f"{bucket.shape[1]} x {bucket.shape[0]} pixels, the smallest {width} x "
                f"{height}: they are enlarged. Lower the size, or leave them out with "
                'crop.small="error".'
            )


def _sizes(source: Source, bucket: Bucket) -> tuple[np.ndarray, str]:
    """Heights and widths [n, 2] of a bucket's images, all or some, and how many."""
    records = np.asarray(bucket.records)
    if source.sizes is not None:
        return np.asarray(source.sizes)[records], f"{len(records)}"
    places = np.unique(np.linspace(0, len(records) - 1, PROBES).astype(int))
    sizes = []
    for record in records[places]:
        try:
            sizes.append(source[int(record)]["image"].shape[:2])
        except Exception:  # reading it for a batch will tell
            continue
    return np.array(sizes, int).reshape(-1, 2), f"{len(sizes)} looked at,"
