"""Images, references and networks that no metric can be computed from."""

import pathlib
from collections.abc import Callable

import numpy as np
from safetensors.numpy import save_file

from pixelflow_jax.evaluation import manifold
from tests.bad_input.row import Row, command

MEASURE = "evaluate --metrics=fid --num_samples=4 --allow_n --inception=none.pth"
REFERENCE = "evaluate reference own.npz"


def row(
    name: str, line: str, make: Callable[[pathlib.Path], object], *says: str
) -> Row:
    """A command line in a folder in which `make` has written something."""

    def run(folder: pathlib.Path) -> None:
        make(folder)
        command(*line.split())

    return Row(f"evaluation: {name}", run, says)


def images(count: int = 4, height: int = 8, width: int = 8) -> np.ndarray:
    return np.zeros((count, height, width, 3), np.uint8)


def npz(file: str, **arrays: np.ndarray) -> Callable[[pathlib.Path], object]:
    return lambda folder: np.savez(folder / file, **arrays)


def moments(width: int = 3) -> dict[str, np.ndarray]:
    return {"mu": np.zeros(width), "sigma": np.eye(width)}


def torchvision_like() -> dict[str, np.ndarray]:
    """What torchvision's Inception is told by."""
    return {"fc.weight": np.zeros((1000, 2048), np.float32)}


def no_image(folder: pathlib.Path) -> None:
    (folder / "set").mkdir()
    (folder / "set" / "a.png").write_bytes(b"no image")


def cut(folder: pathlib.Path) -> None:
    np.savez(folder / "whole.npz", images(40))
    content = (folder / "whole.npz").read_bytes()
    (folder / "cut.npz").write_bytes(content[: len(content) // 2])


def other_resolution(folder: pathlib.Path) -> None:
    np.savez(folder / "a.npz", images())
    np.savez(folder / "adm.npz", arr_0=images(4, 16, 16), **moments())


def other_network(folder: pathlib.Path) -> None:
    np.savez(folder / "a.npz", images())
    save_file(torchvision_like(), folder / "torchvision.safetensors")


def too_few(folder: pathlib.Path) -> None:
    manifold.precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


ROWS = [
    row(
        "an empty folder",
        f"{REFERENCE} --images=set",
        lambda folder: (folder / "set").mkdir(),
        "set",
        "images",
    ),
    row(
        "no image", f"{REFERENCE} --images=set", no_image, "a.png", "Replace or remove"
    ),
    row(
        "an npz of floats",
        f"{REFERENCE} --images=a.npz",
        npz("a.npz", arr_0=np.full((2, 8, 8, 3), np.nan)),
        "float64",
        "uint8",
        "rounded",
    ),
    row(
        "an npz of another name",
        f"{REFERENCE} --images=a.npz",
        npz("a.npz", samples=images()),
        "samples",
        "exactly arr_0",
    ),
    row("a cut npz", f"{REFERENCE} --images=cut.npz", cut, "cut.npz", "again"),
    row(
        "a set that carries statistics",
        f"{REFERENCE} --images=adm.npz",
        npz("adm.npz", arr_0=images(), **moments()),
        "carries statistics (mu, sigma)",
        "--reference",
    ),
    row(
        "a reference that is none",
        f"{MEASURE} --images=a.npz --reference=a.npz",
        npz("a.npz", arr_0=images()),
        "no statistics (mu, sigma)",
        "evaluate reference",
    ),
    row(
        "a reference of another resolution",
        f"{MEASURE} --images=a.npz --reference=adm.npz",
        other_resolution,
        "16 x 16",
        "8 x 8",
        "--reference",
    ),
    row(
        "torchvision's weights",
        f"{REFERENCE} --images=a.npz --inception=torchvision.safetensors",
        other_network,
        "torchvision's inception_v3 (1000 classes",
        "--inception=PATH",
    ),
    row(
        "a metric that there is not",
        f"{REFERENCE} --images=a.npz --metrics=fid50k",
        npz("a.npz", arr_0=images()),
        "fid50k",
        "choose of fid",
    ),
    row(
        "a metric without a reference's part",
        f"{REFERENCE} --images=a.npz --metrics=is",
        npz("a.npz", arr_0=images()),
        "nothing to write",
    ),
    Row("evaluation: fewer images than neighbours", too_few, ("more than 3", "has 3")),
]
