"""Data that cannot be used: images, captions, folders, options."""

import os
import pathlib
from collections.abc import Callable

from pixelflow_jax.cli import prepare
from pixelflow_jax.data.captions import from_json
from pixelflow_jax.data.files import find_files
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.plan import Batching
from pixelflow_jax.data.prepare.parquet import Parquet
from pixelflow_jax.data.prepare.shard_writer import Encoding, ShardOptions
from pixelflow_jax.data.prepare.tars import Tars
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.source import decode_image
from pixelflow_jax.data.tfds import Tfds
from tests.bad_input import data_files
from tests.bad_input import hostile as h
from tests.bad_input.row import Row
from tests.bad_input.row import command as verb


def image(name: str, content: Callable[[], bytes], *says: str) -> Row:
    """A file that is no image that is read; the record's name is in the message."""
    return Row(
        f"image: {name}",
        lambda _: decode_image(content(), "x.png"),
        ("x.png cannot be decoded", *(says or ("no format that is read",))),
    )


def caption(name: str, content: bytes | str, *says: str) -> Row:
    """A caption file that holds none."""
    return Row(
        f"caption: {name}",
        lambda folder: h.captioned(folder, content),
        ("x.png", *says, "--allow-missing-captions"),
    )


def in_json(name: str, content: bytes, *says: str, key: str = "") -> Row:
    """A .json that holds no caption."""
    return Row(
        f"json: {name}",
        lambda _: from_json(content, "x.png", key),
        ("x.png", *says, "--allow-missing-captions"),
    )


def folder(name: str, files: dict, *says: str, sub: str = "", **fields) -> Row:
    """A folder of files that cannot be read as `fields` ask for."""

    def run(place: pathlib.Path) -> object:
        h.put(place / "in", files)
        return ImageFolder(**{"path": str(place / "in" / sub)} | fields).open("train")

    return Row(f"folder: {name}", run, says)


def source(name: str, config: object, *says: str, split: str = "train") -> Row:
    """A source that cannot be opened, whatever lies on the disk."""
    return Row(f"source: {name}", lambda _: config.open(split), says)  # pyright: ignore


def option(name: str, make: Callable[[], object], *says: str) -> Row:
    """An option of `prepare` out of its range."""
    return Row(f"option: {name}", lambda _: make(), says)


def command(name: str, arguments: str, *says: str) -> Row:
    """A command line of `prepare`; {} is an empty folder."""

    def run(place: pathlib.Path) -> None:
        h.put(place / "in", {"a/x.png": h.picture()})
        code = prepare.main([text.format(place) for text in arguments.split()])
        raise SystemExit(code)

    return Row(f"prepare: {name}", run, says)


def loader(name: str, says: str, batch: dict | None = None, **fields) -> Row:
    """Settings of the data that no batch can be made of."""

    def run(place: pathlib.Path) -> object:
        h.put(place / "in", {"a/x.png": h.picture()})
        data = Data(source=ImageFolder(path=str(place / "in")), **fields)
        settings = {"split": "train", "batch_size": 2, "seed": 0} | (batch or {})
        return data.loader(Batching(**settings))

    return Row(f"loader: {name}", run, (says,))


def _named_pipe(place: pathlib.Path) -> object:
    h.put(place, {"x.png": h.picture()})
    os.mkfifo(place / "x.txt")
    return ImageFolder(path=str(place), labels=False, captions=True).open("train")[0]


def _narrow(place: pathlib.Path) -> object:
    h.put(place / "in", {"x.png": h.encoded(h.Image.new("RGB", (1, 65_000)))})
    config = ImageFolder(path=str(place / "in"), labels=False)
    return h.prepared(config, place / "out", Encoding(size=64))


def _only_a_pipe(place: pathlib.Path) -> object:
    os.mkfifo(place / "x.png")
    return ImageFolder(path=str(place), labels=False).open("train")


def _huge_image(place: pathlib.Path) -> object:
    h.sparse(place / "x.png", 3 * h.GB)
    return ImageFolder(path=str(place), labels=False).open("train")[0]


def _huge_caption(place: pathlib.Path) -> object:
    h.put(place, {"x.png": h.picture()})
    h.sparse(place / "x.txt", 3 * h.GB)
    return ImageFolder(path=str(place), labels=False, captions=True).open("train")[0]


def _not_ours(place: pathlib.Path) -> object:
    h.put(place / "out", {"thesis.txt": "years of work"})
    h.put(place / "in", {"x.png": h.picture()})
    config = ImageFolder(path=str(place / "in"), labels=False)
    return h.prepared(config, place / "out", overwrite=True)


def _odd_progress(place: pathlib.Path) -> object:
    h.put(place / "out", {"progress.jsonl": "[]\n5\n"})
    h.put(place / "in", {"x.png": h.picture()})
    return h.prepared(ImageFolder(path=str(place / "in"), labels=False), place / "out")


def _other_options(place: pathlib.Path) -> object:
    h.shards(place)
    config = ImageFolder(path=str(place / "images"))
    return h.prepared(config, place / "shards", Encoding(size=8), shards=1)


def _all_bad(place: pathlib.Path) -> object:
    h.put(place / "in", {"x.png": b"junk"})
    config = ImageFolder(path=str(place / "in"), labels=False)
    return h.prepared(config, place / "out", max_corrupt=1.0)


CLAIM = "max_pixels=110,000,000"

IMAGES = [
    image("postscript called .png", lambda: h.EPS),
    image("pdf", lambda: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n"),
    image("svg", lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="4"/>'),
    image("html page", lambda: b"<!DOCTYPE html><html>404</html>"),
    image("pointer of git-lfs", lambda: b"version https://git-lfs.github.com/spec/v1"),
    image("empty file", lambda: b"", "the file is empty"),
    image("zip", lambda: b"PK\x03\x04" + bytes(60)),
    image("heic", lambda: b"\0\0\0\x18ftypheic" + bytes(60)),
    image("ico", lambda: h.picture("ICO")),
    image("tga", lambda: h.picture("TGA")),
    image("photoshop", lambda: b"8BPS\0\1" + bytes(60)),
    image("xbm", lambda: b"#define x_width 8\n#define x_height 8\n"),
    image("windows metafile", lambda: b"\xd7\xcd\xc6\x9a" + bytes(60)),
    image("half a png", lambda: h.noise("PNG")[:2000], "truncated"),
    image("half a jpeg", lambda: h.noise("JPEG")[:1000], "truncated"),
    image("half a webp", lambda: h.noise("WEBP")[:1000], "x.png"),
    image("half a gif", lambda: h.noise("GIF")[:1000], "truncated"),
    image("no pixels", lambda: h.png_that_claims(0, 7), "x.png"),
    image("16,000 x 11,000", lambda: h.png_that_claims(16000, 11000), CLAIM),
    image("60,000 x 60,000", lambda: h.png_that_claims(60000, 60000), CLAIM),
    image("grey floats", lambda: h.grey_tiff("float32"), "floats", "8 or 16 bits"),
    image("grey of 32 bits", lambda: h.grey_tiff("int32"), "32 bits", "white"),
    image("grey with a sign", h.signed_tiff, "a sign", "8 or 16 bits"),
]

LONG = "x" * 1_000_001

CAPTIONS = [
    caption("empty", "", "no caption"),
    caption("spaces", " \n\t\n", "no caption"),
    caption("byte-order mark alone", "\ufeff\r\n", "no caption"),
    caption("zero-width space", "\u200b\n\u2060", "no caption"),
    caption("latin-1", "caf\u00e9".encode("latin-1"), "not UTF-8 (byte 3)"),
    caption("utf-16", "a cat".encode("utf-16"), "not UTF-8"),
    caption("a million characters", LONG, "1,000,001", "max_caption=1,000,000"),
    Row("caption: a pipe", _named_pipe, ("x.txt cannot be read", "pipe")),
    Row("caption: 3 GB", _huge_caption, ("x.txt", "3,221,225,472 bytes")),
    in_json("nested deeply", h.DEEP, "nested too deeply"),
    in_json("damaged", b'{"caption": ', "damaged"),
    in_json("a list", b"[1, 2]", "no object"),
    in_json("null", b'{"caption": null}', "no caption"),
    in_json("a number", b'{"caption": 7}', "its caption is 7, not a text"),
    in_json("an object", b'{"caption": {"a": 1}}', "not a text"),
    in_json("a list with null", b'{"caption": ["a", null]}', "None, not a text"),
    in_json("half a surrogate pair", b'{"caption": "a \\ud83d"}', "surrogate"),
    in_json("another key", b'{"caption": "a"}', "no caption", key="long"),
    in_json("not UTF-8", b'{"caption": "\xff"}', "not UTF-8"),
    in_json("too many digits", b'{"caption": ' + b"1" * 9000 + b"}", "damaged"),
]

PNG = {"x.png": h.picture()}

CLASS = {"a/x.png": h.picture()}

FOLDERS = [
    folder("absent", {}, "does not exist", sub="nowhere"),
    folder("a file", PNG, "is a file, not a folder", sub="x.png"),
    folder("without images", {"a/x.md": "x"}, "holds no images", ".png"),
    folder("of other formats", {"a/x.heic": b"x"}, "holds no images", ".heic: 1"),
    folder(
        "a class of other formats",
        {**CLASS, "b/x.heic": b"x"},
        *("'b'", "1 (b/x.heic)", "Convert"),
    ),
    folder("without classes", PNG, "no sub-folders", "--no-labels"),
    folder("an empty path", {}, "is empty", path=""),
    folder("a bucket", {}, "gs://", "Mount the bucket", path="gs://bucket/images"),
    folder("nobody's home", {}, "no such user", path="~nobody_at_all/x"),
    folder("a zero byte", {}, "zero byte", path="a\0b"),
    folder("holdout 1", CLASS, "below 1", holdout=1.0),
    folder("holdout nan", CLASS, "holdout", "nan", holdout=float("nan")),
    folder("holdout below 0", CLASS, "at least 0", holdout=-0.1),
    folder("no pixels allowed", CLASS, "--max-pixels", max_pixels=0),
    folder("all pixels allowed", CLASS, "178,956,970", max_pixels=10**9),
    folder("no caption allowed", CLASS, "--max-caption", max_caption=0),
    Row(
        "folder: 1 x 65,000 pixels", _narrow, ("x.png: the image is 1x65000", "narrow")
    ),
    Row("folder: only a pipe", _only_a_pipe, ("holds no images", "pipes")),
    Row("folder: an image of 3 GB", _huge_image, ("x.png cannot be read", "bytes")),
    source("no such split", ImageFolder(path="."), "train, test", split="dev"),
    source("shards of a bucket", Shards(path="az://b/x"), "az://", "copy it"),
    source("no path of shards", Shards(), "is empty"),
    source("absent shards", Shards(path="nowhere"), "not a finished folder", "prepare"),
    source("tfds of a bucket", Tfds(data_dir="gs://b"), "gs://"),
    source("absent tars", Tars(path="x/{0..2}.tar"), "no file 'x/0.tar'", "in quotes"),
    source("too many tars", Tars(path="{0..99999999}.tar"), "more than 1,000,000"),
    source("absent parquet", Parquet(path="x.parquet"), "no file 'x.parquet'"),
]

NAN = float("nan")

BUCKETS = [
    Row(
        f"bucket: {' '.join(words[:2])}",
        lambda _, w=words: verb(*w),
        ("://", "copy it"),
    )
    for words in (
        ("train", "--workdir=az://b/run", "--config=emoji:tiny"),
        ("sample", "--workdir=az://b/run"),
        ("sample", "--out=gs://b/images", "--weights=x"),
        ("export", "--out=s3://b/x", "--weights=shipped"),
        ("quickstart", "--workdir=gs://b/run"),
    )
]
BUCKETS += [
    Row(
        f"bucket: {name} --workdir=s3://b/run",
        lambda _, w=name: verb(w, "--workdir=s3://b/run", "--config=emoji:tiny"),
        ("s3://b/run", "as in gs://bucket/runs/mine"),
    )
    for name in ("train",)
]

OPTIONS = [
    option("no workers", lambda: ShardOptions(workers=0), "--workers is 0", "least 1"),
    option("shards below 0", lambda: ShardOptions(shards=-2), "--shards is -2"),
    option("max-corrupt 5", lambda: ShardOptions(max_corrupt=5), "from 0 to 1"),
    option("max-corrupt nan", lambda: ShardOptions(max_corrupt=NAN), "from 0 to 1"),
    option("size 0", lambda: Encoding(size=0), "--size must be at least 1"),
    option("size 60,000", lambda: Encoding(size=60_000), "at most 8192"),
    option("quality 101", lambda: Encoding(quality=101), "from 1 to 100"),
    option("unknown format", lambda: Encoding(format="gif"), "png, jpeg, webp"),  # pyright: ignore
    option(
        "keep and size", lambda: Encoding(format="keep", size=8), "leave out --size"
    ),
    option("aspect of what", lambda: Encoding(keep_aspect=True), "needs --size"),
    option("braces", lambda: find_files("", ".tar"), "is empty"),
    command("preview as text", "preview {0}/in {0}/x.txt", "ends in .png"),
    command("preview of nothing", "preview {0}/in {0}/x.png --rows 0", "at least 1"),
    command("preview of all", "preview {0}/in {0}/x.png --size 90000", "keep it below"),
    command("shards to a bucket", "shards {0}/in gs://b/x --size 8", "gs://", "OUT"),
    command("no workers", "shards {0}/in {0}/o --workers 0", "--workers: '0'"),
    command("shards below 0", "shards {0}/in {0}/o --shards -2", "--shards: '-2'"),
    command("no pixels", "shards {0}/in {0}/o --max-pixels 0", "--max-pixels"),
    command("no OUT", "shards {0}/in", "Give SOURCE and OUT"),
    Row("prepare: OUT is another's", _not_ours, ("choose another OUT",)),
    Row("prepare: odd progress", _odd_progress, ("progress.jsonl", "--overwrite")),
    Row("prepare: other options", _other_options, ("--overwrite", "another OUT")),
    Row("prepare: nothing but damage", _all_bad, ("None of the 1 images", "x.png")),
]

LOADERS = [
    loader("no pixels", "data.image_size=0 must be a whole", image_size=0),
    loader("no threads", "data.threads=0 must be a whole number", threads=0),
    loader("workers below 0", "data.workers=-3 must be a whole number", workers=-3),
    loader("max_corrupt", "data.max_corrupt=5 must be a finite", max_corrupt=5),
    loader("no batch", "must be a positive multiple", {"batch_size": 0}),
    loader("a seed below 0", "seed must be at least 0", {"seed": -1}),
]

ROWS: list[Row] = [
    *IMAGES,
    *CAPTIONS,
    *FOLDERS,
    *data_files.ROWS,
    *BUCKETS,
    *OPTIONS,
    *LOADERS,
]
