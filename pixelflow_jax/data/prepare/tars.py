"""WebDataset tars: each image beside its caption, under one key."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

from pixelflow_jax.data.captions import (
    MAX_CAPTION,
    check_length,
    clean,
    first_readable,
    from_json,
    from_text,
    most_bytes,
)
from pixelflow_jax.data.decoding import MAX_FILE_BYTES, MAX_PIXELS, PixelLimit
from pixelflow_jax.data.encoded import EncodedSource, say_first_frames
from pixelflow_jax.data.files import find_files
from pixelflow_jax.data.limits import Limits
from pixelflow_jax.data.prepare.tar_samples import (
    IMAGES,
    TEXTS,
    Place,
    Sample,
    list_samples,
)
from pixelflow_jax.data.source import Split, check_split, choose_split
from pixelflow_jax.errors import UnreadableImage
from pixelflow_jax.paths import portable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tars:
    """Uncompressed tars of samples such as 0001.jpg with 0001.txt or 0001.json.

    `path` is a file, a folder or a pattern (see `files.find_files`). A .txt is one
    caption; a .json holds one or a list of them under `caption_key`, or else under
    "caption", "captions" or "text". Where both are there the .txt counts, unless it is
    empty. A sample without an image, a second image of one key, and each part that a
    damaged tar lost count as one unreadable image, a sample without a caption too,
    unless `allow_missing`, or one above `max_pixels` or `max_caption` (characters).
    `holdout` is the share kept for the test split, by a hash of the key. Raises
    DataError.
    """

    path: str
    caption_key: str = ""
    allow_missing: bool = False
    holdout: float = 0.0
    max_pixels: PixelLimit = MAX_PIXELS
    max_caption: int = MAX_CAPTION

    def open(self, split: Split, image_size: int = 0) -> EncodedSource:
        """Opens one split; reads the headers of all tars."""
        check_split(split, self.holdout)
        limits = Limits(max_pixels=self.max_pixels, max_caption=self.max_caption)
        samples = choose_split(
            (s for file in find_files(self.path, ".tar") for s in list_samples(file)),
            lambda sample: sample.key,
            split,
            self.holdout,
            nothing=f"{self.path} holds no samples",
        )
        say_first_frames([s.name for s in samples if s.image and s.image.is_gif])
        return EncodedSource(
            TarImages(samples, self.caption_key, limits),
            contiguous=True,
            allow_missing=self.allow_missing,
            limits=limits,
        )


class TarImages:
    """The `EncodedImages` of samples, in their order."""

    def __init__(self, samples: list[Sample], caption_key: str, limits: Limits):
        self._samples, self._caption_key = samples, caption_key
        self._limits = limits

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, index: int) -> str:
        """The tar's name and the key."""
        return self._samples[index].name

    def origin(self, index: int) -> str:
        """The tar."""
        return portable(str(self._samples[index].tar))

    def read(self, index: int) -> bytes:
        """The image file as it is; UnreadableImage where there is none."""
        sample = self._samples[index]
        if sample.damage:
            raise UnreadableImage(sample.damage)
        if sample.image is None:
            is_there = f"only a .{sample.foreign}" if sample.foreign else "no image"
            raise UnreadableImage(
                f"{sample.name} has {is_there} ({', '.join(IMAGES)}). Pack the tar "
                "again, or leave it out."
            )
        return _bytes(sample, sample.image, MAX_FILE_BYTES)

    def captions(self, index: int) -> tuple[str, ...]:
        """That of the .txt, or those of the .json; NoCaption without both."""
        sample = self._samples[index]
        reads: dict[str, Callable] = {"txt": self._from_txt, "json": self._from_json}
        there = [reads[suffix] for suffix in TEXTS if suffix in sample.texts]
        if not there:
            return clean([], sample.name)
        return first_readable(functools.partial(read, sample) for read in there)

    def _from_txt(self, sample: Sample) -> tuple[str, ...]:
        text = from_text(self._text(sample, "txt"), sample.name)
        return clean([text], sample.name, self._limits.max_caption)

    def _from_json(self, sample: Sample) -> tuple[str, ...]:
        return from_json(
            self._text(sample, "json"),
            sample.name,
            self._caption_key,
            self._limits.max_caption,
        )

    def _text(self, sample: Sample, suffix: str) -> bytes:
        most = most_bytes(self._limits.max_caption)
        if sample.texts[suffix].size > most:
            size = sample.texts[suffix].size
            check_length(size, sample.name, self._limits.max_caption)
        return _bytes(sample, sample.texts[suffix], most)

    def listing(self) -> Iterator[str]:
        """A line for each sample: tar, key, and where its image lies."""
        for sample in self._samples:
            yield f"{sample.tar.name} {sample.key} {sample.image} {sample.damage}"

    def identity(self) -> Iterator[str]:
        """The same: all headers were read already."""
        return self.listing()


def _bytes(sample: Sample, place: Place, most: int) -> bytes:
    if place.offset < 0:
        raise UnreadableImage(
            f"The .{place.suffix} of {sample.name} is a link to nothing, or has holes. "
            "Pack the tar again with the files themselves."
        )
    if place.size > most:
        raise UnreadableImage(
            f"The .{place.suffix} of {sample.name} has {place.size:,} bytes, above "
            f"{most:,}. Leave it out."
        )
    try:
        with sample.tar.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.size)
    except OSError as error:
        raise UnreadableImage(
            f"{sample.tar} cannot be read ({error.strerror}). Check that it is still "
            "there, and its permissions."
        ) from error
