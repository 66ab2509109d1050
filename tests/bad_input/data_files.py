"""Files of many images that cannot be used: tars, parquet files, shards."""

import io
import pathlib
import tarfile
from collections.abc import Callable

from pixelflow_jax.data.features import Features
from pixelflow_jax.data.prepare.parquet import Parquet
from pixelflow_jax.data.prepare.tars import Tars
from pixelflow_jax.data.shards import Shards
from tests.bad_input import hostile as h
from tests.bad_input.row import Row


def tar(name: str, make: Callable[[pathlib.Path], pathlib.Path], *says: str) -> Row:
    """A tar of which so much is lost that it is not prepared."""

    def run(place: pathlib.Path) -> object:
        return h.prepared(Tars(path=str(make(place))), place / "out")

    return Row(f"tar: {name}", run, says)


def members(*found: tuple[str, bytes | str]) -> Callable:
    """Makes a tar of them."""
    return lambda place: h.tar(place / "a.tar", list(found))


def dotted(count: int) -> list[tuple[str, bytes | str]]:
    """Samples as `tar .` names them."""
    return [(f"./{name}", content) for name, content in h.samples(count)]


def linked(*links: tuple[str, str]) -> Callable:
    """Makes a tar of links, each with a text beside it."""

    def make(place: pathlib.Path) -> pathlib.Path:
        path = place / "a.tar"
        with tarfile.open(path, "w") as file:
            for name, target in links:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = tarfile.SYMTYPE, target
                file.addfile(info)
                text = tarfile.TarInfo(name.replace("png", "txt"))
                text.size = 1
                file.addfile(text, io.BytesIO(b"x"))
        return path

    return make


def damaged(change: Callable) -> Callable:
    """Makes a tar of three samples and changes its bytes."""
    return lambda place: h.edited(h.tar(place / "a.tar", h.samples()), change)


def parquet(name: str, columns: Callable[[], dict], *says: str, **fields) -> Row:
    """A parquet file of which so much is bad that it is not prepared."""

    def run(place: pathlib.Path) -> object:
        path = h.parquet(place / "a.parquet", columns())
        return h.prepared(Parquet(path=str(path), **fields), place / "out")

    return Row(f"parquet: {name}", run, says)


def index(name: str, says: str, **changes: object) -> Row:
    """Shards whose dataset.json is not true."""
    return Row(
        f"index: {name}",
        lambda place: h.reindexed(place, **changes),
        ("dataset.json is damaged", says, "--overwrite"),
    )


def shard(name: str, says: str, **changes: object) -> Row:
    """Shards whose dataset.json is not true of one of them."""
    return Row(
        f"shard: {name}",
        lambda place: h.reshard(place, **changes),
        (says, "again"),
    )


def _huge_index(place: pathlib.Path) -> object:
    h.sparse(place / "dataset.json", 3 * h.GB)
    return Shards(path=str(place)).open("train")


def _deep_index(place: pathlib.Path) -> object:
    h.put(place, {"dataset.json": h.DEEP})
    return Shards(path=str(place)).open("train")


def _other_test_classes(place: pathlib.Path) -> object:
    train, test = (h.shards(place / name, name) for name in ("abc", "ac"))
    return Shards(path=str(train), test_path=str(test)).open("test")


def _damaged_record(place: pathlib.Path) -> object:
    (file,) = (h.shards(place) / "train").glob("*.array_record")
    content = bytearray(file.read_bytes())
    start = content.index(b"\x89PNG")
    content[start : start + 64] = bytes(64)
    file.write_bytes(content)
    opened = Shards(path=str(place / "shards")).open("train")
    return [opened[i] for i in range(4)]


def _no_test_split(place: pathlib.Path) -> object:
    return Shards(path=str(h.shards(place))).open("test")


def _other_version(place: pathlib.Path) -> object:
    return h.reindexed(place, version=99)


def _claims_rows(place: pathlib.Path) -> object:
    columns = {"image": [None] * 200_000, "caption": ["a"] * 200_000}
    import pyarrow

    columns["image"] = pyarrow.array(columns["image"], pyarrow.binary())
    path = h.parquet(place / "a.parquet", columns)
    return h.prepared(Parquet(path=str(path)), place / "out")


def _huge_footer(place: pathlib.Path) -> object:
    content = b"PAR1" + bytes(99) + (2**31 - 1).to_bytes(4, "little") + b"PAR1"
    h.put(place, {"a.parquet": content})
    return Parquet(path=str(place)).open("train", 0)


def _no_parquet(place: pathlib.Path) -> object:
    h.parquet(place / "ok.parquet", {"image": [h.picture()], "caption": ["a"]})
    h.put(place, {"a.parquet": b"PAR1 no parquet"})
    return h.prepared(Parquet(path=str(place)), place / "out")


def _extended_header(content: bytearray, start: int) -> bytearray:
    """An extended header that wants 8 GB of memory for the names in it."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8 * h.GB - 1
    return content[:start] + info.tobuf(tarfile.GNU_FORMAT) + content[start:]


def _zeroed(content: bytearray, start: int) -> bytearray:
    content[start : start + 512] = bytes(512)
    return content


def _flipped(content: bytearray, start: int) -> bytearray:
    content[start + 5] ^= 1
    return content


TARS = [
    tar("cut between members", damaged(lambda c, at: c[:at]), "no end mark, so it was"),
    tar("cut in a header", damaged(lambda c, at: c[: at + 300]), "damaged", "cut off"),
    tar("cut in an image", damaged(lambda c, at: c[: at + 520]), "1.png is cut off"),
    tar("a zeroed header", damaged(_zeroed), "damaged", "are no header"),
    tar("a flipped bit", damaged(_flipped), "damaged", "are no header"),
    tar("8 GB of names", damaged(_extended_header), "8,589,934,591 bytes"),
    tar("one name with ./", members(*h.samples(1), *dotted(1)), "twice", "is taken"),
    tar("a few bytes of bzip2", lambda p: h.put(p, {"a.tar": b"BZh9x"}), "bzip2"),
    tar("a loop of links", linked(("a.png", "b.png"), ("b.png", "a.png")), "a link to"),
    tar("a link out", linked(("a.png", "/etc/passwd")), "a link to nothing"),
    tar(
        "1 TB of nothing", lambda p: h.sparse(p / "a.tar", 1 << 40), "holds no samples"
    ),
    tar("empty", lambda place: h.put(place, {"a.tar": b""}), "empty file"),
    tar("a page", lambda p: h.put(p, {"a.tar": b"<html>" * 200}), "it is no tar"),
    tar("gzip", lambda p: h.put(p, {"a.tar": b"\x1f\x8b" + b"x" * 900}), "gzip"),
    tar(
        "only compressed", lambda p: h.put(p, {"a.tar.gz": b"x"}), "unpack", "a.tar.gz"
    ),
    tar("no samples", members(("readme.md", "x")), "holds no samples"),
    tar("one name twice", members(*h.samples(1), *h.samples(1)), "twice", "is taken"),
    tar(
        "two images of a key",
        members(("a.png", h.picture()), ("a.jpg", h.picture()), ("a.txt", "x")),
        *("a.tar:a has an image twice", ".png and .jpg"),
    ),
    tar(
        "an image that is not read", members(("a.heic", b"x"), ("a.txt", "x")), ".heic"
    ),
    tar("no image", members(("a.txt", "x")), "a.tar:a has no image", "Pack"),
    tar("no caption", members(("a.png", h.picture())), "a.tar:a has no caption"),
    tar("deep json", members(("a.png", h.picture()), ("a.json", h.DEEP)), "too deeply"),
]

TEXTS = {"caption": ["a", "b", "c"]}

PARQUETS = [
    parquet(
        "no images", lambda: TEXTS, "Which column holds the images", "caption (tex"
    ),
    parquet(
        "no such column",
        lambda: {"image": [b"x"] * 3, **TEXTS},
        *("--image-column", "caption (text)"),
        image_column="nope",
    ),
    Row("parquet: a footer of 2 GB", _huge_footer, ("a.parquet:", "again")),
    parquet("junk", lambda: {"image": [b"x"] * 3, **TEXTS}, "a.parquet[0:0] cannot be"),
    parquet(
        "paths of images",
        lambda: {"image": [{"bytes": None, "path": "x.png"}], "caption": ["a"]},
        "holds no image bytes",
    ),
    parquet(
        "a caption of 256 MB",
        lambda: {"image": [h.picture()] * 2, "caption": ["a", "b" * 2**28]},
        *("caption unpacks to", "268,435,"),
    ),
    parquet(
        "a caption of 5 MB",
        lambda: {"image": [h.picture()] * 2, "caption": ["a", "b" * 5_000_000]},
        *("its caption has 5,000,000 bytes", "4,000,000"),
    ),
    Row("parquet: more rows than bytes", _claims_rows, ("200,000 rows",)),
    Row("parquet: damaged", _no_parquet, ("a.parquet is damaged", "Fetch")),
]

SHARDS = [
    index("no shards", "KeyError('shards')", shards=None),
    index("shards of another type", "its list of files is none", shards=5),
    index("class names of another type", "no list of names", class_names=5),
    index("no class names", "not below 0 classes", class_names=[]),
    index("another count", "images are not those of its shards", count=5),
    Row(
        "index: another version", _other_version, ("version 99", "newer pixelflow_jax")
    ),
    Row("index: 3 GB", _huge_index, ("dataset.json is damaged", "3,221,225,472 bytes")),
    Row(
        "index: nested deeply", _deep_index, ("dataset.json is damaged", "--overwrite")
    ),
    shard("1e9 images", "1,000,000,000 images", count=10**9, sizes=[[16, 16]]),
    shard("labels of another class", "not below 2 classes", labels=[0, 0, 1, 7]),
    shard("labels below 0", "not below 2 classes", labels=[0, 0, 1, -1]),
    shard("labels of another type", "not below 2 classes", labels=["a"] * 4),
    shard("fewer labels", "4 images but 1 labels", labels=[0]),
    shard("other sizes", "other sizes", sizes=[[16, 16], [16, 16]]),
    shard("sizes of nothing", "without pixels", sizes=[[0, 16]]),
    shard("a file elsewhere", "does not lie below it", file="../../x"),
    shard("a file that is gone", "is missing", file="gone.array_record"),
    shard("another size", "instead of 7", bytes=7),
    Row("shard: a damaged record", _damaged_record, ("Prepare the shards again",)),
    Row("shard: no test split", _no_test_split, ("has no test split", "--holdout")),
    Row("shard: other test classes", _other_test_classes, ("gone: b", "sub-folders")),
    Row("features: absent", lambda p: Features(str(p)), ("text-features",)),
    Row("features: a bucket", lambda _: Features("gs://b/x"), ("gs://",)),
]

ROWS: list[Row] = [*TARS, *PARQUETS, *SHARDS]
