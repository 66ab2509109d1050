"""Single operations: how they are timed and held together, and what a crash costs."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import kernels, micro, profile
from pixelflow_jax.doctor.kernels import deviation

RATES = {"copy_tbs": 0.01, "matmul_tflops": 0.1}


def test_an_entry_gives_a_row_for_each_variant():
    entry = micro.Entry(
        inputs=functools.partial(kernels.normal, (64, 32), (32, 48), dtype="float32"),
        variants={
            "xla": jnp.matmul,
            "wrong": lambda a, b: 1.5 * (a @ b),
            "broken": lambda a, b: 1 / 0,
        },
        flops=2 * 64 * 32 * 48,
    )
    good, wrong, broken = micro.measure(entry, RATES, 2)
    assert good["us"] > 0 and good["deviation"] == 0
    moved = 4 * (64 * 32 + 32 * 48 + 64 * 48)
    assert good["gb_s"] * good["us"] == pytest.approx(moved / 1e3)
    assert wrong["note"] and wrong["deviation"] == pytest.approx(0.5)
    assert "ZeroDivisionError" in broken["failed"]


def test_variants_are_held_against_the_formula_in_float32():
    numbers = jnp.asarray([1.0, 2**-9], jnp.bfloat16)
    entry = micro.Entry(
        inputs=lambda: (numbers,),
        variants={"wrong": lambda a: 1.5 * jnp.sum(a), "right": jnp.sum},
        exact=jnp.sum,
    )
    wrong, right = micro.measure(entry, RATES, 2)
    assert wrong["note"] and wrong["deviation"] == pytest.approx(0.5, abs=0.01)
    assert right["deviation"] == pytest.approx(2**-9, rel=0.01) and "note" not in right


def test_a_result_that_is_not_finite_is_said_so():
    entry = micro.Entry(
        inputs=lambda: (jnp.ones((64, 64)),),
        variants={"sum": lambda a: (a, a), "broken": lambda a: (a, a / (a - a) * 0)},
    )
    _, broken = micro.measure(entry, RATES, 2)
    assert broken["deviation"] == float("inf") and broken["note"]


def test_every_run_of_a_loop_takes_place():
    runs = 7
    count = lambda a, b: (a, b + 1)
    inputs = jnp.zeros(3), jnp.zeros(3)
    (_, last), _ = micro.loop(count, inputs, runs)()
    np.testing.assert_allclose(last, 1, atol=1e-6)
    doubled = lambda a: 2 * a
    out, _ = micro.loop(doubled, (jnp.ones(4),), runs)()
    np.testing.assert_allclose(out, 2, rtol=1e-6)


def test_gradients_come_with_the_result():
    both = kernels.with_gradient(lambda a, b: a * b)
    out, (da, db) = both(jnp.array(2.0), jnp.array(3.0), jnp.array(1.0))
    assert (out, da, db) == (6, 3, 2)


def test_the_field_s_twins_agree():
    shapes = (4, 64, 16), (4, 2 * 16 * 32)
    inputs = kernels.normal(*shapes, dtype="float32")
    variants = kernels.ENTRIES["field forward"].variants
    first, *others = (function(*inputs) for function in variants.values())
    assert len(others) == 2 and all(deviation(a, first) < 1e-5 for a in others)


CHILD = """
import sys, time
for name in sys.argv[1:]:
    if name == "crash": sys.exit(3)
    if name == "hang": time.sleep(60)
    print('ROW {"rows": [{"case": "%s"}]}' % name, flush=True)
"""


def test_a_dead_process_costs_one_row():
    names = ["a", "crash", "b", "hang", "c"]
    command = [sys.executable, "-c", CHILD]
    records = list(micro.handed_over(command, names, budget=1.0))
    rows = [row for record in records for row in record["rows"]]
    assert [row["case"] for row in rows] == names
    failed = {row["case"]: row["failed"] for row in rows if "failed" in row}
    assert failed == {"crash": "exit 3", "hang": "exit -9"}


def test_the_registry_names_shapes_of_the_models():
    assert len(kernels.chosen(["attention * x 72, *"])) == 16
    assert "product qkv 8192" in kernels.ENTRIES
    variants = kernels.ENTRIES["attention 4096 x 72, 4 images, forward"].variants
    assert {"xla", "cudnn", "hopper", "cudnn at 80", "cudnn at 128"} <= variants.keys()


@pytest.mark.parametrize("name", kernels.chosen(["attention *", "mlp *"]))
def test_the_compiler_s_variant_takes_the_entry_s_inputs(name):
    entry = kernels.ENTRIES[name]
    inputs = jax.eval_shape(entry.inputs)
    assert jax.tree.leaves(jax.eval_shape(entry.variants["xla"], *inputs))


def test_the_teacher_s_tokens_are_images_tokens_and_heads():
    name = "attention 257 of 272 x 64, 128 images, forward"
    q, *_ = jax.eval_shape(kernels.ENTRIES[name].inputs)
    assert q.shape == (128, 272, 12, 64)


def test_heads_padded_with_zeros_attend_alike():
    q, k, v = kernels.normal(*[(2, 5, 3, 8)] * 3, dtype="float32")
    padded = kernels._padded(jax.nn.dot_product_attention, 16, q, k, v)
    np.testing.assert_allclose(
        padded, jax.nn.dot_product_attention(q, k, v), rtol=1e-5, atol=1e-6
    )


def test_time_between_kernels():
    assert profile.between([(0, 2), (5, 6), (1, 3), (6, 8)]) == 2
    assert profile.between([]) == 0


@pytest.mark.parametrize(
    ("name", "operation", "optimizer", "kind"),
    [
        ("nvjet_tst_128x256", "custom-call.3", False, "matrix products"),
        ("cudnn_generated_sdpa_flash_fprop", "custom-call.4", False, "attention"),
        ("short_attention_forward_kernel", "custom-call.5", False, "attention"),
        ("long_attention_forward_kernel", "custom-call.6", False, "attention"),
        ("loop_multiply_fusion", "loop_multiply_fusion.2", True, "optimizer"),
        ("loop_add_fusion", "loop_add_fusion", False, "elementwise"),
        ("ncclDevKernel_AllReduce", "all-reduce.1", False, "communication"),
        ("_swiglu_kernel", "swiglu.7", False, "swiglu"),
    ],
)
def test_kinds_of_kernels(name, operation, optimizer, kind):
    assert profile.kind(name, operation, optimizer) == kind
