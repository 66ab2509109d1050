"""Metrics against what the official evaluators said of the same arrays."""

import dataclasses
import re

import numpy as np
import pytest

from pixelflow_jax.evaluation import manifold
from pixelflow_jax.evaluation.inception_score import (
    JIT_SEED,
    adm_inception_score,
    consecutive_inception_score,
    jit_inception_score,
)
from pixelflow_jax.evaluation.kernel_distance import kernel_distance, radial
from pixelflow_jax.evaluation.manifold import Blocks, precision_recall, radii
from pixelflow_jax.evaluation.statistics import frechet_distance, gaussian_of
from tests.teachers.inception_weights import Recording


@dataclasses.dataclass
class Arrays:
    """The arrays that the evaluators were given."""

    recording: Recording

    def __post_init__(self):
        read = lambda name: self.recording[f"in/{name}"]
        self.sample, self.real = read("features_sample"), read("features_reference")
        self.spatial = read("spatial_sample"), read("spatial_reference")
        self.logits = read("logits_f16").astype(np.float32)
        # Counts of images may differ by two where the original computes in float16.
        self.two_counts = 2 / min(len(self.sample), len(self.real))

    def recorded(self, pattern: str) -> list[re.Match]:
        """The results whose whole names are so; there is at least one."""
        names = [n.removeprefix("out/scalar/") for n in self.recording.names()]
        found = [match for n in names if (match := re.fullmatch(pattern, n))]
        assert found, pattern
        return found

    def near(self, value: float, name: str, rel: float = 1e-6, abs: float = 0.0):
        expected = self.recording.scalar(name)
        assert value == pytest.approx(expected, rel=rel, abs=abs), name


@pytest.fixture(scope="module")
def arrays(golden):
    return Arrays(Recording(golden("eval_metrics.safetensors")))


def test_frechet_distances(arrays):
    sample, real = gaussian_of(arrays.sample), gaussian_of(arrays.real)
    mu, sigma = (
        arrays.recording[f"out/fid/{n}"] for n in ("mu_sample", "sigma_sample_rows0to3")
    )
    np.testing.assert_allclose(sample.mean, mu, rtol=1e-6)
    np.testing.assert_allclose(sample.covariance[:4], sigma, rtol=1e-5, atol=1e-9)
    fid = frechet_distance(sample, real)
    for name in ("fid_adm", "fid_torch_fidelity"):  # their means are float32
        arrays.near(fid, name)
    for name in ("fid_adm_float64", "fid_symmetric_float64"):
        arrays.near(fid, name, rel=1e-9)
    assert frechet_distance(sample, sample) == pytest.approx(0, abs=1e-10)
    sfid = frechet_distance(*map(gaussian_of, arrays.spatial))
    for name in ("sfid_adm", "sfid_torch_fidelity", "sfid_symmetric_float64"):
        arrays.near(sfid, name)


def test_inception_scores(arrays):
    for match in arrays.recorded(r"is_adm_(?:split(\d+)|default5000)(?:_tf)?"):
        own = [int(match[1])] if match[1] else []
        arrays.near(adm_inception_score(arrays.logits, *own).mean, match[0])
    for match in arrays.recorded(r"isc_tf_(mean|std)_(?:splits(\d+)|noshuffle)"):
        score = (
            jit_inception_score(arrays.logits, int(match[2]))
            if match[2]
            else consecutive_inception_score(arrays.logits)
        )
        value = score.mean if match[1] == "mean" else score.deviation
        arrays.near(value, match[0], rel=1e-9)
    drawn = np.random.RandomState(JIT_SEED).permutation(len(arrays.logits))[:8]
    np.testing.assert_array_equal(drawn, arrays.recording["out/permutation2020_first8"])


def test_kernel_distances(arrays):
    size = arrays.recording.config["kid_subset_size"]
    for match in arrays.recorded(r"kid_(default_kernel|rbf|(\d+)subsets)_mean"):
        options = {"subsets": int(match[2])} if match[2] else {}
        if match[1] == "rbf":
            options = {"kernel": radial(3.0)}
        found = kernel_distance(arrays.sample, arrays.real, subset_size=size, **options)
        arrays.near(found.mean, match[0], rel=1e-4, abs=1e-7)
        arrays.near(found.deviation, f"kid_{match[1]}_std", rel=1e-4, abs=1e-7)


def test_precision_and_recall_whatever_the_blocks(arrays):
    exact = arrays.recorded(r"prc_tf_k(\d+)_(?:part_)?(precision|recall)")
    near = arrays.recorded(r"pr_adm_blocks_k(\d+)_(?:tf_)?(precision|recall)")
    for blocks in (manifold.DEFAULT, Blocks(128, 96)):
        for k in {match[1] for match in [*exact, *near]}:
            found = precision_recall(arrays.sample, arrays.real, int(k), blocks=blocks)
            own = dict(zip(("precision", "recall"), found, strict=True))
            for match in exact:
                if match[1] == k:  # they come as float32
                    arrays.near(own[match[2]], match[0], rel=1e-7)
            for match in near:
                if match[1] == k:
                    arrays.near(own[match[2]], match[0], abs=arrays.two_counts)


@pytest.mark.parametrize("scale", ["unit", "large"])
def test_precision_and_recall_in_float32_and_near_float16(arrays, scale):
    factor = arrays.recording.config["large_scale"] if scale == "large" else 1.0
    k = arrays.recording.config["k"]
    sets = [rows * np.float32(factor) for rows in (arrays.sample, arrays.real)]
    found = precision_recall(*sets, k)
    for value, name in zip(found, ("precision", "recall"), strict=True):
        arrays.near(value, f"pr_adm_{scale}_float32_{name}", rel=1e-12)
        for other in ("tf", "numpy_float16"):
            expected = f"pr_adm_{scale}_{other}_{name}"
            arrays.near(value, expected, rel=0, abs=arrays.two_counts)
    for rows, name in zip(sets, ("sample", "reference"), strict=True):
        expected = arrays.recording[f"out/pr/{scale}_float32/radii_{name}"]
        np.testing.assert_allclose(radii(rows, k), expected, rtol=1e-4)


def test_wide_balls_may_be_clamped(arrays):
    for match in arrays.recorded(r"manifold_clamp(\d+)_fraction"):
        widths = radii(arrays.real, arrays.recording.config["k"])
        widths = manifold.clamped(widths, int(match[1]))
        share = manifold.inside_balls(arrays.sample, arrays.real, widths).balls > 0
        arrays.near(share.mean(), match[0], abs=arrays.two_counts)


# What a wrong evaluator would say; a test above must tell it from the right one.
MUTATIONS = {
    "pr_adm_unit_float32_recall": lambda a: precision_recall(
        a.sample, a.real, a.recording.config["k"] - 1
    )[1],
    "is_adm_split{split}": lambda a: (
        adm_inception_score(
            a.logits[np.random.RandomState(JIT_SEED).permutation(len(a.logits))],
            a.recording.config["is_splits"][-1],
        ).mean
    ),
    "isc_tf_mean_splits10": lambda a: consecutive_inception_score(a.logits).mean,
    "fid_adm": lambda a: frechet_distance(
        gaussian_of(a.sample[:, ::-1]), gaussian_of(a.real)
    ),
    "kid_default_kernel_mean": lambda a: (
        kernel_distance(
            a.real, a.sample, subset_size=a.recording.config["kid_subset_size"]
        ).mean
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_rule_is_told_from_the_right_one(arrays, name):
    wrong = MUTATIONS[name](arrays)
    right = name.format(split=arrays.recording.config["is_splits"][-1])
    with pytest.raises(AssertionError):
        arrays.near(wrong, right, rel=1e-4)
