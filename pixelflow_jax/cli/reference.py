"""`pixelflow evaluate reference OUT.npz`: what samples will be measured against."""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from pixelflow_jax import backend, config_overrides
from pixelflow_jax.cli.parser import Parser, at_least, nonempty
from pixelflow_jax.cli.shared import could_write
from pixelflow_jax.cli.terminal import accept_every_text, complain
from pixelflow_jax.config_files import load_config
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.source import SPLITS, Split
from pixelflow_jax.errors import EvaluationError, UserError
from pixelflow_jax.evaluation import metrics
from pixelflow_jax.evaluation.accumulator import Accumulator, SetFeatures
from pixelflow_jax.evaluation.extractors import open_extractors
from pixelflow_jax.evaluation.image_sets import ImageSet, SourceImages, open_images
from pixelflow_jax.evaluation.passes import look
from pixelflow_jax.evaluation.references import file_sha256, write_reference
from pixelflow_jax.paths import local_path

COMMAND = "pixelflow evaluate reference"
EXAMPLES = f"""examples:
  {COMMAND} lite0.npz --images=~/pictures
  {COMMAND} imagenet256.npz --config=pixnerd:xl16_256 \\
      --config.data.source.data_dir=/data/tfds --inception=inception.pth
  {COMMAND} all.npz --images=real.npz --metrics=fid,sfid,pr,kid,fd_dinov2 \\
      --inception=inception.pth --dinov2=dinov2_vitl14_pretrain.pth

The statistics are those of all images; precision, recall and KID compare the features
of --rows of them, spread evenly.
"""
ROWS = 10_000  # images whose features precision, recall and KID compare, as ADM's
BATCH = 512
INCEPTION = ("fid", "sfid", "pr", "kid")
LITE0 = ("fd_lite0", "pr_lite0", "kid_lite0")


class Wanted(NamedTuple):
    """What a reference is made of: images, and the metrics that it shall serve.

    `weights` are files of networks by name; `rows` of the images, spread evenly, keep
    their features.
    """

    images: ImageSet
    metrics: Sequence[str]
    weights: Mapping[str, str]
    rows: int = ROWS


def images_of_data(data: Data, split: Split = "train") -> ImageSet:
    """The images of a config's data, as training crops them, but never mirrored."""
    size = (data.image_size, data.image_size)
    name = f"{type(data.source).__name__}, {split}"
    crop = lambda image: data.crop(image, size, None)
    return SourceImages(data.open(split), name, size, crop)


def write(out: str | pathlib.Path, wanted: Wanted) -> dict[str, SetFeatures]:
    """Look at all images once and write the reference file `out`, whole or not at all.

    Returns what it holds. Raises EvaluationError, WeightsError and DataError before
    anything is written.
    """
    out = pathlib.Path(out).expanduser()
    _check(out, wanted)
    arrays = metrics.reference_arrays(wanted.metrics)
    extractors = open_extractors(arrays, wanted.weights)
    count = len(wanted.images)
    rows = np.unique(np.linspace(0, count - 1, min(wanted.rows, count)).astype(int))
    seen = Accumulator(arrays, rows_of=rows)
    with tqdm(total=count, unit="image", desc="reference") as bar:
        look(seen, _shown(wanted.images, bar), extractors)
    features = seen.gathered().features(count)
    if jax.process_index() == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_reference(
            out,
            features,
            extractors,
            resolution=wanted.images.size,
            facts=_facts(wanted, len(rows)),
        )
    return features


def _shown(images: ImageSet, bar: tqdm) -> Iterator[tuple[int, np.ndarray]]:
    """The batches of a set, which move a bar on."""
    for first, batch in images.batches(BATCH):
        yield first, batch
        bar.update(len(batch))


def _check(out: pathlib.Path, wanted: Wanted) -> None:
    metrics.check_names(wanted.metrics)
    could_write(out.parent, "the folder of OUT,")
    if out.suffix != ".npz":
        raise EvaluationError(
            f"A reference is written as an npz file, so its name must end in .npz, "
            f"not {out.name!r}."
        )
    without = [n for n in wanted.metrics if not any(metrics.METRICS[n].against)]
    if len(without) == len(wanted.metrics):
        raise EvaluationError(
            f"--metrics={','.join(without)} compares with no reference: there is "
            "nothing to write."
        )


def _facts(wanted: Wanted, rows: int) -> dict[str, Any]:
    path = pathlib.Path(wanted.images.name)
    facts = {
        "images": wanted.images.name,
        "metrics": list(wanted.metrics),
        "rows": rows,
    }
    if path.is_file():
        facts["images_sha256"] = file_sha256(path)
    return facts


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code (0, 1 on an error, 130 on Ctrl-C)."""
    accept_every_text()
    parser = _parser()
    changes, rest = config_overrides.split(list(sys.argv[1:] if argv is None else argv))
    arguments, unknown = parser.parse_known_args(rest)
    parser.refuse_unknown([*unknown, *([] if arguments.config else changes)])
    backend.configure()
    try:
        run(arguments, changes)
    except (UserError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError):
            message = (
                f"{error.filename or arguments.out} failed: {error.strerror or error}. "
                "Nothing was written: mend that, or name another file."
            )
        complain(message)
        return 1
    except KeyboardInterrupt:
        print("Stopped: nothing was written.", file=sys.stderr)
        return 130
    return 0


def run(arguments: argparse.Namespace, changes: Sequence[str] = ()) -> None:
    """Write the reference that the arguments ask for, and say what is in it."""
    if arguments.config:
        config = load_config(arguments.config, list(changes))
        images = images_of_data(config.data, arguments.split)
    else:
        images = open_images(local_path(arguments.images, "--images", EvaluationError))
    out = local_path(arguments.out, "OUT", EvaluationError)
    names = arguments.metrics.split(",") if arguments.metrics else list(LITE0)
    if arguments.inception and not arguments.metrics:
        names = list(INCEPTION)
    weights = {
        "inception": arguments.inception,
        "dinov2": arguments.dinov2,
        "dinov2_b": arguments.dinov2,
        "lite0": arguments.lite0,
    }
    wanted = Wanted(images, names, weights, arguments.rows)
    features = write(out, wanted)
    for name, found in features.items():
        kept = "".join(f", {len(rows)} features" for rows in found.rows.values())
        print(f"{name:>10}: {found.count} images{kept}")
    print(f"Written to {out}; SHA-256 {file_sha256(out)}.")


def _parser() -> Parser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("out", type=nonempty, help="the npz file to write")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--images", type=nonempty, help="a folder, or an npz with arr_0")
    given.add_argument(
        "--config", help="a config, whose data are taken as training crops them"
    )
    add("--split", choices=SPLITS, default="train", help="of the config's data")
    add(
        "--metrics",
        help=f"that it shall serve, of {', '.join(metrics.METRICS)} (default: "
        f"{','.join(INCEPTION)} with --inception, else {','.join(LITE0)})",
    )
    add("--inception", default="", help="weights of the 2015 Inception (.pth or .pb)")
    add("--dinov2", default="", help="weights of DINOv2")
    add("--lite0", default="", help="weights of EfficientNet-Lite0, if no package")
    add("--rows", type=at_least(1), default=ROWS, help="images whose features are kept")
    return parser
