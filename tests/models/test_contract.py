"""What every denoiser owes the rest of the house, whoever brings it.

Each class that `denoiser_classes()` finds is tried at a small size, that of another
package's entry point as well, and so is a stand-in that looks through a frozen network.
"""

import copy
import dataclasses
import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax import Pipeline
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.config_io import from_dict, to_dict, walk
from pixelflow_jax.data.loader import Data
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.interface import (
    DenoiserConfig,
    Labels,
    Network,
    TextSpec,
    network,
)
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.registry import denoiser_classes
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sharding import MeshShape, batch_sharding, state_sharding
from tests.models.grounded import Grounded
from tests.models.small import EXACT, SIZES, frozen_params, inputs, random_like, small
from tests.test_lowering import foreign

TEXT = PixelFlow(num_classes=0, text_width=2048)
CONFIGS = [
    *(pytest.param(cls(), id=name) for name, cls in denoiser_classes().items()),
    pytest.param(Grounded(), id="Grounded"),
    pytest.param(TEXT, id="PixelFlow of text", marks=pytest.mark.slow),
]
# What is looked up or added and not multiplied: never cast to the compute type.
TABLES = {"table", "position", "context", "embedding", "tokens"}
NEAR = 2e-5  # of float32, relative to the largest value where that is above 1


@dataclasses.dataclass(frozen=True)
class Case:
    """A small denoiser with parameters of which none is zero."""

    config: DenoiserConfig
    network: Network
    params: dict
    frozen: dict
    run: Callable  # the compiled forward pass of (params, batch, key)

    def __call__(self, *batch, key=None):
        return self.run(self.params, batch, key)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request) -> Case:
    config = small(request.param)
    for size in SIZES:
        assert config.problems(*size) == [], "see tests/models/small.py"
    net, frozen = network(config, EXACT), frozen_params(config)

    @jax.jit
    def run(params, batch, key):
        return net.apply(params, batch, key=key, frozen_params=frozen)

    return Case(config, net, random_like(net.shapes()), frozen, run)


@pytest.fixture(scope="module")
def both(case):
    """Images of two sizes, and what comes of them in one pass."""
    batch = tuple(inputs(case.config, size, seed=i) for i, size in enumerate(SIZES))
    return batch, case(*batch)


def close(one: jax.Array, other: jax.Array) -> None:
    """As sums in another order are: their error grows with what is summed."""
    largest = float(jnp.abs(other).max())
    np.testing.assert_allclose(one, other, rtol=0, atol=NEAR * max(1.0, largest))


def named_leaves(tree: dict) -> dict[tuple[str, ...], jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def layers(path: tuple[str, ...], leaf: jax.Array) -> tuple[int, ...]:
    """The shape of one layer of a parameter."""
    return leaf.shape[1:] if "blocks" in path else leaf.shape


def test_it_says_what_it_is(case):
    config = case.config
    paper, spec = config.paper, config.condition
    assert paper.title and paper.url.startswith("https://")
    assert "@" in paper.bibtex and paper.bibtex.count("{") == paper.bibtex.count("}")
    match spec:
        case Labels(num_classes):
            assert num_classes == config.num_classes > 0
        case TextSpec(width, length, _):
            assert width > 0 and (length is None or length > 0)
        case _:
            pytest.fail(f"condition is {spec!r}")
    few, many = (config.flops(*size) for size in SIZES)
    assert 0 < few < many


def test_its_config_comes_back_from_json(case):
    classes = {type(node) for _, node in walk(case.config)}
    assert from_dict(to_dict(case.config), classes) == case.config


def test_problems_name_fields(case):
    config = case.config
    height, width = SIZES[0]
    assert config.problems(height + 1, width)
    for name in ("patch", "width", "channels"):
        broken = dataclasses.replace(config, **{name: 0})
        assert any(name in problem for problem in broken.problems(height, width))


def test_its_shapes_are_those_of_fresh_parameters(case):
    shapes, fresh = case.network.shapes(), jax.random.key(0)
    assert shapes == jax.eval_shape(case.network.init, fresh)
    shapes.clear()  # a caller's own
    assert case.network.shapes()


def test_matrices_are_called_kernel_and_stacks_have_a_layer_axis(case):
    leaves = named_leaves(case.network.shapes())
    for path, leaf in leaves.items():
        assert leaf.dtype == jnp.float32, path
        if len(layers(path, leaf)) > 1:
            assert path[-1] == "kernel" or path[-1] in TABLES, path
    depths: dict[tuple[str, ...], set[int]] = {}
    for path, leaf in leaves.items():
        if "blocks" in path:
            stack = path[: path.index("blocks")]
            depths.setdefault(stack, set()).add(leaf.shape[0])
    assert depths and all(len(depth) == 1 for depth in depths.values())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_shapes_and_types(case, size):
    """In half precision; the predictions are of the solver's type."""
    config, net = case.config, network(case.config, Precision())
    given = inputs(config, size)
    apply = functools.partial(net.apply, frozen_params=case.frozen)
    out = jax.eval_shape(apply, net.shapes(), (given,))
    (pred,), (features,) = out.pred, out.features
    assert (pred.shape, pred.dtype) == (given.image.shape, jnp.float32)
    count = size[0] * size[1] // config.patch**2
    assert features.shape == (len(given.image), count, config.width)
    assert features.dtype == jnp.bfloat16


def test_sizes_in_one_pass_are_what_they_are_alone(case, both):
    batch, together = both
    for i, given in enumerate(batch):
        alone = case(given)
        close(together.pred[i], alone.pred[0])
        close(together.features[i], alone.features[0])
    assert all(0.05 < jnp.std(pred) < 50 for pred in together.pred)


def test_what_is_precomputed_changes_nothing_and_everything_learns(case):
    """With stacks written out, which precompute most, and scanned as they are."""
    batch = (inputs(case.config, SIZES[0]),)
    config = copy.deepcopy(case.config)
    for _, node in walk(config):
        if isinstance(node, StackConfig):
            node.scan, node.remat = False, "none"
    net = network(config, EXACT)

    def loss(params):
        pre = net.precompute(params, batch)
        out = net.apply(params, batch, pre=pre, frozen_params=case.frozen)
        return jnp.mean(out.pred[0] ** 2), out.pred[0]

    (_, pred), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(case.params)
    close(pred, case(*batch).pred[0])
    for path, grad in named_leaves(grads).items():
        if "blocks" in path:
            moved = jnp.abs(grad).reshape(len(grad), -1).max(1)
        else:
            moved = jnp.abs(grad).max()
        # A stored table of positions may be frozen; nothing else may.
        assert (moved > 0).all() or path[-1] == "position", path


def test_an_image_drops_by_its_own_key_alone(case):
    """Where nothing drops, keys change nothing."""
    given = inputs(case.config, SIZES[0])
    keys = jax.random.split(jax.random.key(0), len(given.image))
    first, other, plain = (
        case(given, key=key).pred[0]
        for key in (keys, keys.at[0].set(jax.random.key(1)), None)
    )
    assert all(jnp.isfinite(a).all() for a in (first, other, plain))
    moved = jnp.abs(first - other).max((1, 2, 3))
    assert not moved[1:].any()
    drops = jnp.abs(first - plain).max() > NEAR
    assert bool(moved[0] > 0) == bool(drops)


def test_the_output_is_linear_in_its_last_matrix(case, both):
    batch, whole = both
    path = case.config.output_kernel

    def scaled(factor: float):
        kernel = functools.reduce(operator.getitem, path, case.params)
        changed = with_leaf(case.params, path, factor * kernel)
        return case.run(changed, batch, None).pred

    for none, one, two in zip(scaled(0.0), whole.pred, scaled(2.0), strict=True):
        assert jnp.std(one - none) > 0.01
        np.testing.assert_allclose(two - none, 2 * (one - none), atol=1e-4)


def with_leaf(tree: dict, path: tuple[str, ...], leaf: jax.Array) -> dict:
    if not path:
        return leaf
    name, *rest = path
    return {**tree, name: with_leaf(tree[name], tuple(rest), leaf)}


def test_it_lowers_for_a_tpu(case):
    """In half precision, on a machine without one, and asks for nothing foreign."""
    net = network(case.config, Precision())
    batch = tuple(inputs(case.config, size) for size in SIZES)
    apply = functools.partial(net.apply, frozen_params=case.frozen)
    traced = jax.jit(apply).trace(net.shapes(), batch)
    module = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert foreign(module) == []


@pytest.mark.slow  # compiles for eight devices
def test_eight_devices_compute_what_one_does(case):
    batch = tuple(inputs(case.config, size, 4, i) for i, size in enumerate(SIZES))
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build()
    split = jax.device_put(case.params, state_sharding(case.params, mesh))
    specs = [str(leaf.sharding.spec) for leaf in jax.tree.leaves(split)]
    assert any("tensor" in spec for spec in specs)
    placed = jax.device_put(batch, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        spread = case.run(split, placed, None)
    assert len(spread.pred[0].sharding.device_set) == 8
    for one, other in zip(spread.pred, case(*batch).pred, strict=True):
        close(one, other)


@pytest.mark.slow  # writes and reads a folder
def test_published_weights_come_back(case, tmp_path):
    """With their config, bit for bit; a class that nothing registers is refused."""
    of_text = isinstance(case.config.condition, TextSpec)
    experiment = Experiment(
        name="contract",
        model=case.config,
        data=Data(image_size=SIZES[0][0]),
        conditioner=Text() if of_text else ClassLabels(),
    )
    names = tuple(map(str, range(case.config.num_classes)))
    pipeline = Pipeline(
        config=experiment, params=case.params, class_names=names, step=3
    )
    pipeline.save_pretrained(tmp_path, dtype="float32")
    if type(case.config).__name__ not in denoiser_classes():
        with pytest.raises(PipelineError, match=type(case.config).__name__):
            Pipeline.from_pretrained(tmp_path)
        return
    loaded = Pipeline.from_pretrained(tmp_path)
    assert loaded.config.model == case.config and loaded.step == 3
    assert jax.tree.structure(loaded.params) == jax.tree.structure(case.params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, case.params)
