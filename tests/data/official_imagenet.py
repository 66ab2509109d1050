"""Files laid out as ImageNet is published, a few small images of a few classes."""

import io
import pathlib
import tarfile

import numpy as np
from PIL import Image
from scipy import io as matlab

# By number in the development kit, which is not the order of the ids.
SYNSETS = {
    1: ("n03126707", "crane"),
    2: ("n01440764", "tench, Tinca tinca"),
    3: ("n02012849", "crane"),
}
WNIDS = sorted(wnid for wnid, _ in SYNSETS.values())
NAMES = ("tench", "crane (n02012849)", "crane (n03126707)")
TRAIN = 4  # images of a class
TRUTH = (2, 3, 3, 1, 2, 1)  # of the validation images, by number in the kit
ORIENTATION = 0x0112


def pixels(number: int) -> np.ndarray:
    """Smooth, of one main colour, uint8 [24, 32, 3]: compression changes it little."""
    base = np.linspace(0, 60, 24 * 32).reshape(24, 32, 1)
    return (base + (40 * number % 150, 70, 25 * number % 120)).astype(np.uint8)


def encoded(number: int, kind: str = "jpeg") -> bytes:
    """An image file: "png", "cmyk" and "turned" are what is odd in ImageNet."""
    image, content, options = Image.fromarray(pixels(number)), io.BytesIO(), {}
    if kind == "cmyk":
        image = image.convert("CMYK")
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = 6
    if kind == "bad note":
        options["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff no note of a camera"
    image.save(content, "png" if kind == "png" else "jpeg", **options)
    return content.getvalue()


KINDS = {1: "png", 2: "cmyk", 3: "turned", 5: "bad note"}


def train_files() -> dict[str, dict[str, bytes]]:
    """The images of each class by name."""
    return {
        wnid: {
            f"{wnid}_{k + 1}.JPEG": encoded(4 * c + k, KINDS.get(4 * c + k, "jpeg"))
            for k in range(TRAIN)
        }
        for c, wnid in enumerate(WNIDS)
    }


def validation_files() -> dict[str, bytes]:
    """The validation images by name."""
    numbers = range(1, 1 + len(TRUTH))
    return {f"ILSVRC2012_val_{k:08d}.JPEG": encoded(20 + k) for k in numbers}


def packed(files: dict[str, bytes], mode: str = "w:") -> bytes:
    """A tar of files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:
        for name, one in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(one)
            tar.addfile(header, io.BytesIO(one))
    return content.getvalue()


def unpack(folder: pathlib.Path, files: dict[str, bytes]) -> None:
    """Files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def meta() -> bytes:
    """meta.mat: the classes, and one above them in WordNet, as in the real one."""
    fields = [
        ("ILSVRC2012_ID", float),
        ("WNID", object),
        ("words", object),
        ("gloss", object),
        ("num_children", float),
    ]
    rows = [(k, wnid, words, "", 0) for k, (wnid, words) in SYNSETS.items()]
    rows.append((1001, "n00001740", "entity", "", 2))
    content = io.BytesIO()
    matlab.savemat(content, {"synsets": np.array(rows, fields).reshape(-1, 1)})
    return content.getvalue()


def kit() -> bytes:
    """ILSVRC2012_devkit_t12.tar.gz."""
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    root = "ILSVRC2012_devkit_t12"
    files = {f"{root}/readme.txt": b"", f"{root}/data/meta.mat": meta()}
    name = f"{root}/data/ILSVRC2012_validation_ground_truth.txt"
    return packed(files | {name: truth}, "w:gz")


def write_tars(folder: pathlib.Path) -> pathlib.Path:
    """The three files that are fetched."""
    inner = {f"{wnid}.tar": packed(files) for wnid, files in train_files().items()}
    unpack(
        folder,
        {
            "ILSVRC2012_img_train.tar": packed(inner),
            "ILSVRC2012_img_val.tar": packed(validation_files()),
            "ILSVRC2012_devkit_t12.tar.gz": kit(),
        },
    )
    return folder
