"""Loaders for tests, by flat arguments."""

from pixelflow_jax.data.loader import BatchLoader, Data
from pixelflow_jax.data.plan import Batching, CaptionEncoder


def open_loader(
    data: Data,
    *,
    start: int = 0,
    caption_encoder: CaptionEncoder | None = None,
    **options,
) -> BatchLoader:
    """The loader of `Batching(**options)`, of the train split where none is named."""
    batching = Batching(**{"split": "train"} | options)
    return data.loader(batching, start=start, caption_encoder=caption_encoder)
