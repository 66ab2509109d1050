"""Cases as data, and the experiments they stand for."""

import pytest

from benchmarks import cascade, harness, methods, perceptual, scaling, speed
from benchmarks.case import Case, changes
from pixelflow_jax import build
from pixelflow_jax.flow.solver import Heun
from pixelflow_jax.losses.flow_matching import FlowMatching

WORDS = "train configs/pixelgen.py:emoji_clean 8 terms=flow scan=1 remat=full"


def all_cases() -> dict[str, Case]:
    """Every case that some command measures by default."""
    found = {row.case.name: row.case for row in speed.ROWS}
    found |= {case.name: case for case in methods.CASES}
    found |= {text: cascade.case(text) for text in cascade.CASES}
    for name in scaling.AXES:
        found |= {case.name: case for case in scaling.axis(name).values()}
    for terms in perceptual.TERMS:
        found[terms] = perceptual.case("configs/pixelgen.py:xl_256", 32, terms, True)
    return found


CASES = all_cases()


@pytest.mark.parametrize("name", CASES)
def test_a_case_survives_json_and_words(name):
    case = CASES[name]
    assert Case.from_json(case.to_json()) == case
    again = Case.parse(case.key)
    assert (again.key, again.changes) == (case.key, case.changes)


def test_words_change_the_config():
    config = Case.parse(WORDS).experiment()
    assert (config.batch_size, config.model.stack.scan) == (8, True)
    assert config.model.stack.remat == "full"
    assert config.terms == [FlowMatching()]
    drawing = Case.parse("sample configs/emoji.py:demo 1 solver=heun steps=7")
    sampling = drawing.experiment().sampling
    assert sampling.solver == Heun() and sampling.grid.steps == 7


def test_a_case_without_changes_is_the_config_itself():
    config = Case.parse("sample configs/emoji.py:demo 1").experiment()
    assert config == harness.load_config("configs/emoji.py:demo")


def test_empty_options_change_nothing():
    assert changes(terms="", scan=None, remat="") == {}
    assert changes(scan="0") == {"model.stack.scan": False}
    assert changes(unroll="2") == {"model.stack.unroll": 2}
    assert changes(attention="xla") == {"kernels.attention": "xla"}


def test_an_unknown_field_is_named():
    case = Case.parse("train configs/emoji.py:demo 4 model.widht=3")
    with pytest.raises(ValueError, match="model.widht.*width"):
        case.experiment()


def test_the_cascade_is_the_published_one():
    sampling = cascade.case("sample/cascade/1").experiment().sampling
    assert sampling.guidance.ramp[0] == 0 and sampling.guidance.scale == 2.4
    assert (sampling.grid.steps, sampling.grid.last_step) == (30, 0.001)
    single = cascade.case("sample/single/1").experiment()
    assert len(build.stages(single)) == 1 and single.sampling.grid.steps == 120


def test_a_mesh_multiplies_the_batch_by_what_splits_it():
    case = Case.parse(WORDS)
    assert case.on_mesh("") is case and case.devices == 1
    moved = case.on_mesh("data=2,fsdp=2,tensor=2")
    assert (moved.batch, moved.devices) == (32, 8)
    mesh = moved.experiment().mesh
    assert (mesh.data, mesh.fsdp, mesh.tensor) == (2, 2, 2)
    with pytest.raises(ValueError, match="rows is no axis; there are data, fsdp"):
        case.on_mesh("rows=2")
