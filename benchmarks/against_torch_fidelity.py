"""Our evaluator against torch-fidelity 0.4.0: features and all metrics it has.

pip install torch torchvision && pip install --no-deps torch-fidelity==0.4.0
python -m benchmarks.against_torch_fidelity --json benchmarks/results/evaluator.jsonl

Its network gets random weights, which are saved in its format and read by ours.
Features are compared on 64 images of three sizes, metrics on two sets of 2,000 images,
of which the first is the "generated" one. Its options are chosen so that it computes
what papers report: the extractor is named (its default for precision and recall is
VGG16), and nothing is cached (its cache knows sets by their names only).
"""

import argparse
import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np

from benchmarks import harness  # first: it sets the compiler's flags
from pixelflow_jax.evaluation.accumulator import Accumulator, SetFeatures
from pixelflow_jax.evaluation.extractors import open_extractor
from pixelflow_jax.evaluation.features import FEATURES, LOGITS, Extractor
from pixelflow_jax.evaluation.kernel_distance import kernel_distance
from pixelflow_jax.evaluation.metrics import evaluate, required
from pixelflow_jax.evaluation.references import Reference

NAME = "inception-v3-compat"
SIZES = ((64, 64, 22), (96, 80, 22), (256, 256, 20))  # height, width, images
METRICS = ("fid", "is", "pr")
# Ours, theirs.
PAIRS = {
    "fid": "frechet_inception_distance",
    "is_jit": "inception_score_mean",
    "is_jit_std": "inception_score_std",
    "kid": "kernel_inception_distance_mean",
    "kid_std": "kernel_inception_distance_std",
    "precision": "precision",
    "recall": "recall",
}


def random_weights(path: pathlib.Path, seed: int = 0) -> None:
    """Write a file of torch-fidelity's format: its modules' own random weights.

    Batch norms get means, variances, scales and shifts that are not 0 and 1.
    """
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    torch.manual_seed(seed)
    network = theirs.FeatureExtractorInceptionV3
    original = network.load_state_dict, theirs.load_state_dict_from_url
    network.load_state_dict = lambda self, state: None
    theirs.load_state_dict_from_url = lambda url, **_: {}
    try:
        made = network(NAME, ["2048"]).state_dict()
    finally:
        network.load_state_dict, theirs.load_state_dict_from_url = original
    state = {}
    for key, value in made.items():
        if key.endswith("num_batches_tracked"):
            continue
        n = torch.randn_like(value)
        if key.endswith("conv.weight"):
            value = n * (2 / value[0].numel()) ** 0.5
        elif key == "fc.weight":
            value = 2 * n  # predictions that differ, for the Inception Score
        elif key.endswith("bn.weight"):
            value = 1 + 0.1 * n
        elif key.endswith("running_var"):
            value = 1 + 0.2 * n.abs()
        elif ".bn." in key:
            value = 0.1 * n
        state[key] = value
    torch.save(state, path)


def images(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """Coarse coloured patches with noise, uint8 [count, height, width, 3]."""
    draw = np.random.default_rng(seed)
    coarse = draw.uniform(0, 255, (count, 4, 4, 3)) * draw.uniform(
        0.2, 1, (count, 1, 1, 1)
    )
    rows, columns = (np.arange(n) * 4 // n for n in (height, width))
    smooth = coarse[:, rows][:, :, columns]
    noise = draw.normal(0, 20, (count, height, width, 1))
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def compare_features(weights: pathlib.Path, ours: Extractor, cuda: bool) -> list[dict]:
    """The largest differences of pool3 and logits, by image size."""
    import torch
    from torch_fidelity.utils import create_feature_extractor

    theirs = create_feature_extractor(
        NAME,
        ["2048", "logits_unbiased"],
        cuda=cuda,
        feature_extractor_weights_path=str(weights),
    )
    rows = []
    for height, width, count in SIZES:
        batch = images(count, height, width, seed=height)
        seen = ours.extract(batch)
        given = torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
        with torch.no_grad():
            pool3, logits = theirs(given.cuda() if cuda else given)
        differ = lambda a, b: float(np.abs(a - b.cpu().numpy()).max())
        rows.append(
            {
                "compared": f"{count} images of {height} x {width}",
                "pool3 differs": differ(seen[FEATURES], pool3),
                "logits differ": differ(seen[LOGITS], logits),
                "pool3 deviates": float(seen[FEATURES].std(0).mean()),
            }
        )
    return rows


def set_features(ours: Extractor, array: np.ndarray, batch: int) -> SetFeatures:
    """What our extractor sees in a set of images."""
    seen = Accumulator(required(METRICS))
    for first in range(0, len(array), batch):
        seen.add({"inception": ours}, array[first : first + batch], first)
    return seen.features()["inception"]


def compare_metrics(
    weights: pathlib.Path, ours: Extractor, args: argparse.Namespace, cuda: bool
) -> list[dict]:
    """Every metric by both programs, and how far they are apart."""
    import torch
    import torch_fidelity

    class Images(torch.utils.data.Dataset):
        def __init__(self, array: np.ndarray):
            self.array = array

        def __len__(self) -> int:
            return len(self.array)

        def __getitem__(self, index: int):
            return torch.from_numpy(self.array[index].transpose(2, 0, 1).copy())

    generated = images(args.images, args.size, args.size, seed=1)
    real = images(args.images, args.size, args.size, seed=2) // 8 * 7 + 10
    with float64_distances():
        theirs = torch_fidelity.calculate_metrics(
            input1=Images(generated),
            input2=Images(real),
            cuda=cuda,
            batch_size=args.batch,
            isc=True,
            fid=True,
            kid=True,
            kid_subset_size=args.subset,
            prc=True,
            feature_extractor=NAME,
            feature_extractor_weights_path=str(weights),
            cache=False,
            save_cpu_ram=True,  # else it forks, which JAX's threads do not survive
            verbose=False,
        )
    sets = [set_features(ours, array, 1024) for array in (generated, real)]
    reference = Reference("memory", "", "adm", {"inception": sets[1]})
    found = evaluate(METRICS, {"inception": sets[0]}, reference)
    rows = [seen.rows[FEATURES] for seen in sets]
    kid = kernel_distance(*rows, subset_size=args.subset)
    found |= {"kid": kid.mean, "kid_std": kid.deviation}
    return [
        {
            "compared": name,
            "ours": found[name],
            "theirs": float(theirs[key]),
            "relative": relative(found[name], float(theirs[key])),
        }
        for name, key in PAIRS.items()
    ]


@contextlib.contextmanager
def float64_distances() -> Iterator[None]:
    """Within it, torch-fidelity's precision and recall are by float64 distances.

    Its float32 ones lose the digits of features that are nearly equal, as those of a
    random network are: a few of 2,000 images fall on the wrong side of a ball.
    """
    from torch_fidelity import metric_prc

    usual = metric_prc.calculate_precision_recall_part
    metric_prc.calculate_precision_recall_part = lambda one, other, *rest: usual(
        one.double(), other.double(), *rest
    )
    try:
        yield
    finally:
        metric_prc.calculate_precision_recall_part = usual


def relative(ours: float, theirs: float) -> float:
    """How far two numbers are apart, of the second; 0 where both are 0."""
    return abs(ours - theirs) / abs(theirs) if theirs else float(ours != 0)


def main() -> None:
    """Compare, print and record."""
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=int, default=2000, help="in each set")
    parser.add_argument("--subset", type=int, default=1000, help="of KID")
    parser.add_argument("--size", type=int, default=64, help="their sides in pixels")
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    import torch

    cuda = torch.cuda.is_available()
    # Its own default on recent GPUs is TF32, which moves its features by 1e-3.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        weights = pathlib.Path(folder, "weights.pth")
        random_weights(weights)
        ours = open_extractor("inception", str(weights), batch=args.batch)
        report(compare_features(weights, ours, cuda), args)
        report(compare_metrics(weights, ours, args, cuda), args)


def report(rows: list[dict], args: argparse.Namespace) -> None:
    """Print and record rows at once, as the next ones take minutes."""
    own = [{"against": "torch-fidelity 0.4.0", **row} for row in rows]
    harness.report(own, args.json)


if __name__ == "__main__":
    main()
