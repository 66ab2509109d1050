"""What a run takes over from the weights of another model, and what it refuses."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import traverse_util

from pixelflow_jax import build
from pixelflow_jax.errors import ConfigError, InitialError
from pixelflow_jax.models.interface import network
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd import LinearDecoder, NeuralField
from pixelflow_jax.nn.embed import sincos_table
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.pretrained.finetune import KINDS, compare
from pixelflow_jax.training.loop import train
from pixelflow_jax.training.state import Initial
from pixelflow_jax.validate import validate, validated
from tests.strangers.color_mixer import ColorMixer
from tests.training import tiny

LOOP = StackConfig(remat="none")
PIXELGEN = PixelGen(
    num_classes=3,
    patch=8,
    image_size=16,
    width=16,
    heads=2,
    depth=4,
    feature_layer=1,
    bottleneck=4,
    context_length=2,
    context_start=3,
    stack=LOOP,
)
PIXELFLOW = PixelFlow(
    num_classes=3,
    patch=4,
    width=16,
    heads=2,
    depth=3,
    feature_layer=1,
    text_width=6,
    stack=LOOP,
)
TEXT = PixelGenText(
    patch=8,
    image_size=16,
    width=16,
    heads=2,
    depth=2,
    text_depth=1,
    text_width=6,
    text_length=5,
    bottleneck=4,
    feature_layer=1,
    stack=LOOP,
)

# A change of a model: what it is called, and the parameters that begin anew, without
# their stacks. None: nothing needs to be asked for.
CHANGES = [
    (tiny.model(), {"num_classes": 5}, "classes", {"class_embed/table"}),
    (
        tiny.model(),
        {"patch": 4},
        "patch",
        # A neural field is as wide for any patch.
        {"patch_embed/kernel"},
    ),
    (
        tiny.model(decoder=LinearDecoder()),
        {"patch": 4},
        "patch",
        {"patch_embed/kernel", "decoder/linear/bias", "decoder/linear/kernel"},
    ),
    (PIXELGEN, {"image_size": 32}, None, {"position"}),
    (PIXELGEN, {"image_size": 32, "patch": 16}, "patch", {"decoder", "patch_embed"}),
    (PIXELGEN, {"context_length": 0}, "context", {"context"}),
    (PIXELGEN, {"num_classes": 2}, "classes", {"class_embed/table"}),
    (PIXELGEN, {"bottleneck": 6}, "patch", {"patch_embed", "patch_expand/kernel"}),
    (
        PIXELFLOW,
        {"text_width": 7},
        "text",
        {"blocks/cross_attention/kv/kernel"},
    ),
    (PIXELFLOW, {"num_classes": 0}, "classes", {"class_embed/table"}),
    (
        PIXELFLOW,
        {"text_width": 0},
        "text",
        {"blocks/cross_attention", "blocks/norm2"},
    ),
    (TEXT, {"text_width": 9}, "text", {"trunk/text_embed/proj/kernel"}),
    (TEXT, {"text_length": 7}, "text", {"trunk/text_embed/position"}),
    (TEXT, {"image_size": 48}, None, {"position"}),
]


def name_of(change) -> str:
    model, fields, *_ = change
    return f"{type(model).__name__}-{fields}"


SHAPES: dict[str, dict] = {}


def weights(model) -> dict:
    """Random parameters of a model, faster than its own initialisation."""
    rng = np.random.default_rng(9)
    if repr(model) not in SHAPES:
        SHAPES[repr(model)] = network(model, Precision()).shapes()
    draw = lambda s: rng.normal(size=s.shape).astype("float32")
    return jax.tree.map(draw, SHAPES[repr(model)])


def flat(params: dict) -> dict:
    return traverse_util.flatten_dict(params, sep="/")


def stackless(path: str) -> str:
    return re.sub("(early|middle|late)/blocks", "blocks", path)


@pytest.mark.parametrize("change", CHANGES, ids=name_of)
@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_what_differs_belongs_to_a_kind_and_all_else_is_taken(change, back):
    model, fields, kind, anew = change
    theirs, ours = model, dataclasses.replace(model, **fields)
    if back:
        theirs, ours = ours, theirs
    fit = compare(theirs, ours)
    found = {d.name for d in fit.differences}
    assert all(any(name.startswith(a) for a in anew) for name in found)
    assert all(any(name.startswith(a) for name in found) for a in anew)
    if kind is None:
        fit.check(())
    else:
        with pytest.raises(InitialError, match=rf"init_reset=\"\('{kind}',\)\""):
            fit.check(())
        fit.check((kind,))
        with pytest.raises(InitialError, match=kind):
            fit.check(tuple(set(KINDS) - {kind}))
    given, want = flat(weights(theirs)), flat(weights(ours))
    taken = flat(fit.take(traverse_util.unflatten_dict(given, sep="/")))
    assert {stackless(path) for path in set(want) - set(taken)} <= found
    for path, value in taken.items():
        assert value.shape == want[path].shape, path
        if "blocks" not in path:
            np.testing.assert_array_equal(value, given[path])


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (PIXELGEN, {"feature_layer": 0}),
        (PIXELGEN, {"feature_layer": 3}),
        (PIXELGEN, {"feature_layer": 4}),
        (PIXELGEN, {"context_start": 2}),
        (PIXELFLOW, {"feature_layer": 3}),
        (TEXT, {"feature_layer": 0}),
    ],
    ids=str,
)
def test_layers_are_counted_through_however_they_are_cut(model, fields):
    ours = dataclasses.replace(model, **fields)
    fit = compare(model, ours)
    fit.check(())
    assert not fit.differences
    given, taken = weights(model), fit.take(weights(model))
    assert set(flat(taken)) == set(flat(weights(ours)))
    paths = {stackless(path) for path in flat(given)}
    for path in paths:
        np.testing.assert_array_equal(in_order(given, path), in_order(taken, path))


def in_order(params: dict, path: str) -> np.ndarray:
    """A parameter of all layers, the first ones first."""
    names = [path]
    if re.search("(^|trunk/)blocks", path):
        stacks = ("early", "middle", "late")
        names = [path.replace("blocks", f"{s}/blocks", 1) for s in stacks]
    found = flat(params)
    return np.concatenate([found[name] for name in names if name in found])


def test_a_difference_without_a_kind_is_refused_with_its_field():
    wide = dataclasses.replace(PIXELGEN, width=32, num_classes=7)
    with pytest.raises(InitialError) as caught:
        compare(PIXELGEN, wide).check(tuple(KINDS))
    message = str(caught.value)
    assert "model.width: 16 -> 32" in message
    assert "num_classes" not in message and "and 20 more" not in message
    assert re.search(r"all \d+ are in \S+\.txt", message.splitlines()[-1])
    # Taking back the classes alone would leave another width.
    assert {d.kinds for d in compare(PIXELGEN, wide).differences} == {()}
    with pytest.raises(InitialError, match="model.depth: 4 -> 5"):
        deep = dataclasses.replace(PIXELGEN, depth=5)
        compare(PIXELGEN, deep).check(tuple(KINDS))


def test_another_model_is_named_and_its_parameters_are_not():
    with pytest.raises(InitialError) as caught:
        compare(tiny.model(), PIXELGEN).check(tuple(KINDS))
    message = str(caught.value)
    assert "weights of a PixNerd" in message and "trains a PixelGen" in message
    assert "kernel" not in message


def test_a_model_of_someone_elses_is_tuned_by_the_same_rule():
    """Fields that are called like ours are of the same kinds; others are refused."""
    theirs = ColorMixer()
    for fields, kind, names in (
        ({"num_classes": 3}, "classes", {"class_embed"}),
        ({"patch": 8}, "patch", {"from_pixels", "to_pixels"}),
    ):
        fit = compare(theirs, dataclasses.replace(theirs, **fields))
        assert {d.kinds for d in fit.differences} == {(kind,)}
        assert {d.name.split("/")[0] for d in fit.differences} == names
        fit.check((kind,))
    cut = compare(theirs, dataclasses.replace(theirs, feature_layer=2))
    assert not cut.differences
    assert set(flat(cut.take(weights(theirs)))) == set(flat(weights(cut.ours)))
    with pytest.raises(InitialError, match="model.width: 32 -> 48"):
        compare(theirs, ColorMixer(width=48)).check(tuple(KINDS))


def test_decoders_may_be_exchanged():
    theirs = tiny.model()
    ours = tiny.model(decoder=NeuralField(width=8, depth=2))
    fit = compare(theirs, ours)
    assert {d.kinds for d in fit.differences} == {("decoder",)}
    assert all(d.name.startswith("decoder/field/") for d in fit.differences)
    linear = compare(theirs, tiny.model(decoder=LinearDecoder(), patch=4))
    kinds = {d.name: d.kinds for d in linear.differences}
    assert kinds["patch_embed/kernel"] == ("patch",)
    assert kinds["decoder/norm/weight"] == ("decoder",)
    assert kinds["decoder/linear/kernel"] == ("patch", "decoder")
    with pytest.raises(InitialError, match=r"\('decoder', 'patch'\)"):
        linear.check(("patch",))


def test_fields_that_only_change_speed_are_no_difference():
    fast = dataclasses.replace(PIXELGEN, stack=StackConfig(scan=False))
    fit = compare(PIXELGEN, fast)
    assert not fit.differences and len(fit.report()) == 1


def test_the_report_lists_what_is_not_taken():
    larger = dataclasses.replace(PIXELGEN, image_size=32, num_classes=5)
    lines = compare(PIXELGEN, larger).report()
    shapes = flat(weights(larger))
    numbers = sum(a.size for a in shapes.values())
    taken = numbers - 16 * 16 - 6 * 16
    assert f"{taken:,} of {numbers:,} numbers" in lines[0]
    assert lines[1:] == [
        "not taken over:",
        "  classes: class_embed/table (6, 16): (4, 16) there",
        "  resolution: position (16, 16): (4, 16) there, computed anew",
    ]


@pytest.fixture(scope="module")
def images(tiny_run):
    return tiny_run.images


def begun(experiment, initial: Initial):
    return build.training_run(validated(experiment), lambda: initial).fresh_state(
        initial
    )


def test_parameters_and_averages_begin_with_what_is_given(images, tmp_path):
    params = weights(tiny.model())
    average = jax.tree.map(lambda a: a + 1, params)
    del average["class_embed"]
    initial = Initial(params, {"0.9": average, "0.5": params}, "report")
    experiment = tiny.experiment(images, init_from="elsewhere", steps=2)
    state = begun(experiment, initial)
    tiny.assert_identical(state.params["denoiser"], params)
    tiny.assert_identical(state.ema["0.5"], params)
    fresh = tiny.run(images).fresh_state().ema["0.9"]
    expected = {**average, "class_embed": fresh["class_embed"]}
    tiny.assert_identical(state.ema["0.9"], {k: expected[k] for k in state.ema["0.9"]})

    state = train(build.training_run(validated(experiment), lambda: initial), tmp_path)
    moved = state.params["denoiser"]["decoder"]["linear"]["bias"]
    assert np.abs(np.asarray(moved)).max() > 0
    # The step gives its inputs away; copies stay apart.
    tiny.assert_identical(params, weights(tiny.model()))
    assert (tmp_path / "init_from.txt").read_text() == "report\n"


def test_a_checkpoint_of_the_run_itself_comes_first(tiny_run, tmp_path):
    def fail():
        raise AssertionError("The initial weights were read for a run that goes on.")

    images = tiny_run.images
    train(tiny.run(images, steps=3), tmp_path)
    anew = {"init_from": "gone", "init_ema": "raw", "init_reset": ("classes",)}
    train(tiny.run(images, initial=fail, **anew), tmp_path)
    assert tiny.history(tmp_path) == tiny.history(tiny_run.workdir)


def test_the_field_and_the_weights_go_together(images):
    with pytest.raises(ConfigError, match="init_from"):
        build.training_run(validated(tiny.experiment(images, init_from="elsewhere")))
    with pytest.raises(ConfigError, match="init_from"):
        build.training_run(
            validated(tiny.experiment(images)), lambda: Initial({}, {}, "")
        )
    with pytest.raises(ConfigError, match="init_from is empty"):
        validate(tiny.experiment(images, init_reset=("classes",)))
    with pytest.raises(ConfigError, match=r"init_reset=\('width',\) may hold resol"):
        validate(tiny.experiment(images, init_from="x", init_reset=("width",)))


def test_positions_of_another_size_are_the_computed_ones():
    ours = dataclasses.replace(PIXELGEN, image_size=32)
    assert "position" not in compare(PIXELGEN, ours).take(weights(PIXELGEN))
    fresh = network(ours, Precision()).init(jax.random.key(0))
    np.testing.assert_array_equal(fresh["position"], sincos_table(4, 4, 16))
