"""Programs of a tiny model compiled for a TPU that is not there, and what is read."""

import dataclasses
import importlib.util
import pathlib

import pytest

from benchmarks import tpu
from configs import pixnerd
from pixelflow_jax.config_io import walk
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.training.throughput import TRAINING_PASSES

ROOT = pathlib.Path(__file__).resolve().parents[2]

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="no TPU compiler: pip install libtpu",
)


def tiny(terms: str = "flow") -> Experiment:
    """PixNerd of two blocks on sixteen tokens, sampled in five steps."""
    config = pixnerd.get_config()
    config.data.image_size = 64
    decoder = NeuralField(width=64, depth=1)
    config.model = PixNerd(
        width=128, heads=2, depth=2, feature_layer=1, decoder=decoder
    )
    config.sampling.grid = dataclasses.replace(config.sampling.grid, steps=5)
    return tpu.written_out(config, terms)


def test_no_loop_over_layers_is_left():
    loops = [node for _, node in walk(tiny("all")) if isinstance(node, StackConfig)]
    assert len(loops) >= 2 and not any(loop.scan for loop in loops)
    assert len(tiny("all").terms) == 2 and len(tiny("flow").terms) == 1


def test_the_table_has_a_line_for_each_row_of_the_results():
    lines = (ROOT / "benchmarks" / "results" / "tpu.jsonl").read_text().splitlines()
    shown = tpu.table(lines)
    assert len(shown.splitlines()) == 2 + len(lines)
    assert shown in (ROOT / "benchmarks" / "RESULTS.md").read_text()


@pytest.mark.slow
@needs_libtpu
def test_a_training_step_compiles_for_eight_chips_and_is_counted():
    config = tiny()
    programs = tpu.training(config, tpu.tpu_devices("v5e:2x4"), 64)
    found = tpu.prediction(programs, tpu.CHIPS["v5e"])
    assert found["fits"] and found["loops"] == found["loops_counted_once"] == 0
    expected = TRAINING_PASSES * config.model.flops(64, 64) * 8
    assert found["tflop"] * 1e12 == pytest.approx(expected, rel=0.25)
    assert found["predicted_ms"] >= found["flops_ms"] > 0
    assert 0 < found["arguments_gb"] < found["peak_gb"] < 1


@pytest.mark.slow
@needs_libtpu
def test_a_sampler_compiles_and_all_of_its_steps_are_counted():
    config = tiny()
    programs = tpu.sampling(config, tpu.tpu_devices("v5e:2x2"), 32)
    assert [part.times for part in programs.parts] == [1 - 5, 4, 1]
    found = tpu.prediction(programs, tpu.CHIPS["v5e"])
    calls = 2 * 4 + 1  # a guided step asks the network twice
    assert found["loops"] == 1 and found["loops_counted_once"] == 0
    expected = calls * config.model.flops(64, 64) * 8
    assert found["tflop"] * 1e12 == pytest.approx(expected, rel=0.25)


@pytest.mark.slow
@needs_libtpu
def test_a_step_that_does_not_fit_is_a_row_that_says_so():
    config = f"{ROOT}/configs/emoji.py:demo"
    row = tpu.measure(config, "train", "flow", "auto", tpu.Place("v5e:2x2", 2**23))
    assert row["fits"] is False and "HBM" in row["why"]
