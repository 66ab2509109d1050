"""Files that nobody should have to read, small and made in a moment."""

import io
import json
import os
import pathlib
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.prepare.shard_writer import Encoding, ShardOptions, write_shards
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.source import ListedSource, SourceConfig

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"
    b"(a program) print showpage\n"
)

GB = 2**30
DEEP = b'{"caption": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def picture(format: str = "PNG", size: int = 16) -> bytes:
    """A red square as a file."""
    return encoded(Image.new("RGB", (size, size), (255, 0, 0)), format)


def noise(format: str) -> bytes:
    """Noise as a file, so that half of it is half of the pixels."""
    return encoded(Image.effect_noise((64, 64), 90), format)


def grey_tiff(dtype: str) -> bytes:
    """Grey values of a type as a TIFF."""
    return encoded(Image.fromarray(np.ones((4, 4), dtype)), "TIFF")


def signed_tiff() -> bytes:
    """Grey values of 16 bits with a sign, little endian, written by hand."""
    sixteen = [(258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 4)]
    tags = [(256, 4), (257, 4), *sixteen, (279, 32), (339, 2)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 40) + bytes(32) + directory


def png_that_claims(width: int, height: int) -> bytes:
    """The header of a PNG of any size, with a few zeros behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def put(folder: pathlib.Path, files: dict[str, bytes | str]) -> pathlib.Path:
    """Writes files by their relative paths; returns the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data)
    return folder


def captioned(folder: pathlib.Path, caption: bytes | str) -> object:
    """The only record of a folder with one image and that caption."""
    put(folder, {"x.png": picture(), "x.txt": caption})
    return ImageFolder(path=str(folder), labels=False, captions=True).open("train")[0]


def tar(path: pathlib.Path, members: list[tuple[str, bytes | str]]) -> pathlib.Path:
    """A tar of members, in that order."""
    with tarfile.open(path, "w") as file:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def samples(count: int = 3) -> list[tuple[str, bytes | str]]:
    """Members of a tar: images and their captions."""
    pairs = ([(f"{k}.png", picture()), (f"{k}.txt", f"a {k}")] for k in range(count))
    return [member for pair in pairs for member in pair]


def second_header(path: pathlib.Path) -> int:
    """Where the second sample of a tar begins."""
    with tarfile.open(path) as file:
        return file.getmembers()[2].offset


def edited(path: pathlib.Path, change) -> pathlib.Path:
    """The file with `change(content, where its second sample begins)` in it."""
    path.write_bytes(change(bytearray(path.read_bytes()), second_header(path)))
    return path


def parquet(path: pathlib.Path, columns: dict, **options) -> pathlib.Path:
    """A parquet file of these columns."""
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table(columns), path, **options
    )
    return path


def prepared(
    config: SourceConfig, out: pathlib.Path, encoding: Encoding | None = None, **options
) -> pathlib.Path:
    """Shards of a source; refused where more than one image in a hundred is bad."""
    source: ListedSource = config.open("train", 0)  # pyright: ignore (a listed one)
    encoding = encoding or Encoding(format="keep")
    write_shards(
        {"train": source},
        out,
        encoding,
        description="",
        options=ShardOptions(**options),
    )
    return out


def shards(folder: pathlib.Path, classes: str = "ab") -> pathlib.Path:
    """Two images of each class as shards, in one file."""
    files = {f"{name}/{k}.png": picture() for name in classes for k in range(2)}
    images = put(folder / "images", files)
    return prepared(ImageFolder(path=str(images)), folder / "shards", shards=1)


def reindexed(folder: pathlib.Path, **changes: object) -> object:
    """Opens shards whose dataset.json says something else; None takes a field out."""
    path = shards(folder) / "train" / "dataset.json"
    index = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in index.items() if v is not None}))
    return Shards(path=str(folder / "shards")).open("train")


def reshard(folder: pathlib.Path, **changes: object) -> object:
    """Opens shards whose dataset.json says something else of its first shard."""
    path = shards(folder) / "train" / "dataset.json"
    index = json.loads(path.read_text())
    index["shards"][0] |= changes
    if "count" in changes:
        index["count"] = changes["count"]
    path.write_text(json.dumps(index))
    return Shards(path=str(folder / "shards")).open("train")


def sparse(path: pathlib.Path, size: int) -> pathlib.Path:
    """A file that claims a size, and takes up nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)
    return path
