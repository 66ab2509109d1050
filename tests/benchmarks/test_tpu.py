"""Programs of a tiny model compiled for a TPU that is not there, and what is read."""

import dataclasses
import importlib.util
import pathlib

import jax
import pytest

from benchmarks import tpu, tpu_attention, tpu_calls
from configs import pixnerd
from pixelflow_jax import build
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


def test_two_shallow_models_say_what_a_deep_one_takes():
    """Five at one block and nine at three: eleven at four."""
    first = {**dict.fromkeys(tpu.LINEAR, 5.0), "topology": "v5e:2x4", "batch": 64}
    second = {**first, **dict.fromkeys(tpu.LINEAR, 9.0), "flops_ms": 13.0}
    found = tpu.straight(first, second, (1, 3), 4)
    assert found["gbytes"] == found["peak_gb"] == found["attention_kernels"] == 11
    assert found["predicted_ms"] == found["flops_ms"] == 17
    assert found["fits"] and not tpu.straight(first, second, (1, 3), 7)["fits"]


def test_what_stays_in_the_vector_memory_moves_nothing():
    """An array of 8 x 72 fills a tile of 8 x 128; a name for it takes nothing."""
    program = """
%fused (a: bf16[8,72]) -> bf16[8,72] {
  %inner.1 = bf16[8,72]{1,0:T(8,128)(2,1)} negate(%a)
}
ENTRY %main (a: bf16[8,72]) -> bf16[8,72] {
  %a.1 = bf16[8,72]{1,0:T(8,128)(2,1)} parameter(0)
  %start = (bf16[8,72]{1,0:T(8,128)(2,1)S(1)}, bf16[8,72]{1,0:T(8,128)(2,1)}, \
u32[]{:S(2)}) copy-start(%a.1), backend_config={"used":[]}
  %done = bf16[8,72]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  %name = bf16[8,72]{1,0:T(8,128)(2,1)} bitcast(%a.1)
  ROOT %sum.1 = bf16[8,72]{0,1:T(8,128)(2,1)} fusion(%done, %name), calls=%fused
}
"""
    tile, turned = 2 * 8 * 128, 2 * 72 * 128
    # Read for the copy and as the name; written with 72 rows of 8 in tiles.
    assert tpu_attention.moved(program) == tile + tile + turned


def call(kind: str, results: str, operands: str, blocks: str) -> str:
    """A kernel's call as a compiled program writes it."""
    given = f"s8[1,8,1]{{2,1,0}}, {operands}, f32[2,16,8,4096]{{3,2,1,0}}"
    return (
        f"  %splash_mha_{kind}_residuals.1 = ({results}) custom-call(%a, %b), "
        'custom_call_target="tpu_custom_call", '
        f"operand_layout_constraints={{{given}}}, "
        f'frontend_attributes={{kernel_metadata={{\n"xprof_metadata":"{blocks}"\n}}}}\n'
    )


def test_what_attention_kernels_do_is_read_off_a_program():
    """2 images, 16 heads of width 72, 4,096 tokens."""
    half = "bf16[2,16,72,4096]{3,2,1,0}"
    blocks = r"{\"block_q\": 512, \"block_kv\": %d, \"q_layout\": 2}"
    queries, logits = 2 * 2 * 16 * 72 * 4096, 4 * 2 * 16 * 8 * 4096
    forward = call("fwd", half, ", ".join(3 * [half]), blocks % 4096)
    found = tpu_calls.attention(forward)
    assert found.flops == 2 * 2 * 2 * 16 * 4096**2 * 72
    assert found.moved == 4 * queries + logits + 8
    again = call("fwd", half, ", ".join(3 * [half]), blocks % 2048)
    assert tpu_calls.attention(again).moved - found.moved == 7 * 2 * queries
    blocks = r"{\"block_q_dkv\": 512, \"block_kv_dkv\": 2048, \"q_layout\": 2}"
    backward = call("dkv", half, ", ".join(4 * [half]), blocks)
    both = tpu_calls.attention(forward + backward)
    assert both.flops == found.flops * (2 + 5) / 2
    # Queries, their gradient and the sums are read for both blocks of keys.
    assert both.moved - found.moved == 5 * queries + logits + 8 + 2 * queries + logits
    assert tpu_calls.attention("%fusion.1 = f32[8]{0} fusion(%a)") == (0, 0)


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
    assert [part.times for part in programs.parts] == [1, 4, 1]
    found = tpu.prediction(programs, tpu.CHIPS["v5e"])
    calls = 2 * 4 + 1  # a guided step asks the network twice
    assert found["loops"] == 1 and found["loops_counted_once"] == 0
    expected = calls * config.model.flops(64, 64) * 8
    assert found["tflop"] * 1e12 == pytest.approx(expected, rel=0.25)
    weights = sum(a.size for a in jax.tree.leaves(build.network(config).shapes()))
    assert found["gbytes"] * 1e9 > 5 * 2 * weights  # every step reads them


@pytest.mark.slow
@needs_libtpu
def test_a_step_that_does_not_fit_is_a_row_that_says_so():
    config = f"{ROOT}/configs/emoji.py:demo"
    row = tpu.measure(config, "train", "flow", "auto", tpu.Place("v5e:2x2", 2**23))
    assert row["fits"] is False and "HBM" in row["why"]
