"""What a program costs, counted by hand."""

import math

import pytest

from benchmarks import work
from benchmarks.case import Case, build
from pixelflow_jax import build as builders
from pixelflow_jax.models.interface import count

SMALL = "configs/pixelgen.py:emoji_clean"


def test_heun_calls_twice_but_for_the_last_step():
    words = f'sample {SMALL} 1 steps=4 sampling.guidance={{"class":"ClassifierFree"}}'
    cost = work.sampling_cost(Case.parse(words).experiment())
    assert (cost.calls, cost.runs) == (7, 7)


def test_guidance_calls_twice_inside_its_interval():
    cost = work.sampling_cost(
        Case.parse("sample configs/pixnerd.py:xl16_256 1").experiment()
    )
    assert (cost.calls, cost.runs) == (94, 50)


def test_an_adaptive_solver_says_nothing_beforehand():
    config = Case.parse(f"sample {SMALL} 1 solver=dopri5").experiment()
    assert all(map(math.isnan, work.sampling_cost(config)))


def test_training_moves_nine_numbers_a_parameter():
    case = Case.parse(f"train {SMALL} 8 terms=flow")
    found, config = build(case), case.experiment()
    assert found.moved == 36 * count(builders.network(config).shapes())
    assert found.flops == 8 * 3 * config.model.flops(32, 32)


def test_teachers_are_counted_as_the_papers_do():
    config = Case.parse("train configs/pixelgen.py:xl_256 32").experiment()
    # DINOv2-B 46.3 GFLOP, VGG16 40.1: the real image once, the predicted one twice.
    expected = 3e9 * (46.3 + 40.1)
    assert work.teacher_flops(builders.objective(config), 256) == pytest.approx(
        expected, rel=0.01
    )
