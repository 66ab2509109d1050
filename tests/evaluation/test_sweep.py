"""Sweeps: which points, each once, and what is shown of them."""

import json

import numpy as np
import pytest

from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation import sweep, sweep_report

USUAL = sweep.Usual(
    averages=("0.9999", "raw"),
    solvers=("euler", "heun", "adams2"),
    solver="heun",
    steps=40,
    shift=1.0,
    scale=2.0,
)
FACTS = {"weights": "w", "count": 8}


def test_values_are_named_or_chosen():
    axes = sweep.parse("scale=1,1.5, 2;steps=20,50", USUAL)
    assert axes == {"steps": [20, 50], "scale": [1.0, 1.5, 2.0]}
    axes = sweep.parse("ema,scale; interval=0.1:1,all", USUAL)
    assert list(axes) == ["ema", "interval", "scale"]  # the slowest first
    assert axes["ema"] == ["0.9999", "raw"] and axes["interval"] == ["0.1:1", "all"]
    assert {1.0, USUAL.scale} <= set(axes["scale"])
    every = sweep.parse(",".join(sweep.AXES), USUAL)
    assert list(every) == list(sweep.AXES) and min(map(len, every.values())) >= 2
    assert USUAL.steps in every["steps"] and every["solver"][0] == USUAL.solver


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--sweep is empty"),
        ("speed", "no axis 'speed': the axes are ema"),
        ("scale;scale=2", "names an axis twice"),
        ("scale=fast", "scale='fast' must be a number of at least 0"),
        ("scale=nan", "must be a number"),
        ("shift=0", "must be a number above 0"),
        ("steps=0", "whole number above 0"),
        ("steps=2.5", "whole number above 0"),
        ("interval=0.9:0.1", "must be LOW:HIGH"),
        ("interval=0.5", "must be LOW:HIGH"),
        ("solver=magic", "one of euler, heun, adams2"),
        ("scale=", "scale='' must be"),
    ],
)
def test_what_cannot_be_swept(text, message):
    with pytest.raises(EvaluationError, match=message):
        sweep.parse(text, USUAL)


def test_every_combination_once_and_none_that_says_nothing():
    axes = sweep.parse("interval=all,0.1:1;scale=1,2", USUAL)
    found = sweep.points(axes)
    assert found == [
        {"interval": "all", "scale": 1.0},
        {"interval": "all", "scale": 2.0},
        {"interval": "0.1:1", "scale": 2.0},
    ]


def measure(point):
    return {"fid": (point["scale"] - 1.5) ** 2 + point["steps"] / 100, "is": 5.0}


AXES = {"steps": [10, 20], "scale": [1.0, 1.5, 2.0]}


def test_a_sweep_that_was_cut_measures_each_point_once(tmp_path):
    path, asked, said = tmp_path / "sweep" / "results.jsonl", [], []

    def once(point):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(point)
        return measure(point)

    wanted = sweep.points(AXES)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(wanted, sweep.Ledger(path, FACTS, True), once, say=said.append)
    with path.open("a") as file:  # killed while a line was written
        file.write('{"point": {"steps": 20, "sca')
    ledger = sweep.Ledger(path, FACTS, True)
    rest = []
    sweep.run(wanted, ledger, lambda p: rest.append(p) or measure(p), say=said.append)
    assert asked + rest == wanted and len(rest) == 2
    assert "4 of 6 points were measured before" in said
    assert said[-1].startswith("[6/6] steps=20 scale=2: fid 0.45, is 5 (")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["point"] for row in rows] == wanted
    other = sweep.Ledger(path, {**FACTS, "count": 9}, True)  # not comparable
    assert other.rows == {} and len(path.read_text().splitlines()) == 6


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path):
    ledger = sweep.Ledger(tmp_path / "results.jsonl", FACTS, False)
    ledger.add({"scale": 1.0}, {"fid": 1.0})
    assert ledger.get({"scale": 1.0}) == {"fid": 1.0}
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_is_no_number_is_refused(tmp_path):
    ledger = sweep.Ledger(tmp_path / "results.jsonl", FACTS, True)
    with pytest.raises(EvaluationError, match="fid is not finite at scale=9"):
        sweep.run([{"scale": 9.0}], ledger, lambda _: {"fid": float("nan")})
    assert ledger.rows == {}


@pytest.fixture
def ledger(tmp_path):
    ledger = sweep.Ledger(tmp_path / "results.jsonl", FACTS, True)
    sweep.run(sweep.points(AXES), ledger, measure, say=lambda line: None)
    return ledger


def test_the_best_is_the_lowest_or_the_highest(ledger):
    wanted = sweep.points(AXES)
    assert sweep.best(ledger, wanted, "fid") == {"steps": 10, "scale": 1.5}
    ledger.add({"steps": 20, "scale": 1.0}, {"fid": 9.0, "is": 7.0, "is_std": 1.0})
    assert sweep.best(ledger, wanted, "is") == {"steps": 20, "scale": 1.0}
    assert sweep_report.summary(ledger, AXES) == [
        "best fid: 0.1 at steps=10 scale=1.5",
        "best is: 7 at steps=20 scale=1",
    ]
    assert sweep.higher_is_better("recall_lite0") and sweep.higher_is_better("is_jit")
    assert not sweep.higher_is_better("fd_lite0")


def test_the_table(ledger):
    lines = sweep_report.table(ledger, AXES).splitlines()
    assert lines[0] == "| steps | scale | fid | is |" and len(lines) == 8
    assert lines[3] == "| 10 | 1.5 | **0.1** | 5 |"


def test_the_heat_map_is_brightest_where_it_is_best(ledger):
    def cell(picture, i, j):
        left = picture.shape[1] - sweep_report.PAD - 3 * sweep_report.CELL[0]
        top = picture.shape[0] - sweep_report.PAD - 2 * sweep_report.CELL[1]
        x, y = left + j * sweep_report.CELL[0] + 5, top + i * sweep_report.CELL[1] + 5
        return tuple(picture[y, x].tolist())

    # Wide enough for its title, so that cells begin where `cell` looks for them.
    short = {"steps": AXES["steps"], "scale": AXES["scale"]}
    picture = sweep_report.heat_map(ledger, short, "fid")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert cell(picture, 0, 1) == (253, 231, 37)
    assert cell(picture, 1, 0) == cell(picture, 1, 2) == (68, 1, 84)


def test_a_heat_map_of_one_axis_and_of_three(ledger):
    one = sweep_report.heat_map(ledger, {"scale": [1.0]}, "fid")
    assert one.ndim == 3
    axes = {"solver": ["euler"], **AXES}
    assert sweep_report.heat_map(ledger, axes, "fid").shape[0] > one.shape[0]
