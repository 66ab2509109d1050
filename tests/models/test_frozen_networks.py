"""A denoiser that looks through a frozen network while it denoises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.models.interface import Condition, network
from pixelflow_jax.models.pixnerd import PixNerd
from tests.models.grounded import Grounded, Look
from tests.models.small import EXACT, SIZES, frozen_params, inputs, random_like, small

CONFIG = small(Grounded())
BATCH = tuple(inputs(CONFIG, size, seed=i) for i, size in enumerate(SIZES))


@pytest.fixture(scope="module")
def grounded():
    """The compiled network as a function of the batch and what it looks through."""
    net = network(CONFIG, EXACT)
    params = random_like(net.shapes())

    @jax.jit
    def apply(batch, frozen):
        return net.apply(params, batch, frozen_params=frozen).pred

    return apply


def test_most_denoisers_look_through_nothing():
    assert PixNerd().frozen_networks() == {}


def test_a_frozen_network_says_its_shapes_before_it_is_loaded():
    (name,) = CONFIG.frozen_networks()
    look = CONFIG.frozen_networks()[name]
    assert name == "look" and look == Look(channels=3, outputs=8)
    assert jax.tree.map(jnp.shape, look.load()) == {"kernel": (3, 8)}
    assert look.shapes()["kernel"].shape == (3, 8)


def test_what_it_looks_through_is_an_argument(grounded):
    """Other parameters change the prediction, parameters of others do not."""
    frozen = frozen_params(CONFIG)
    base = grounded(BATCH, frozen)
    other = grounded(BATCH, jax.tree.map(lambda a: 2 * a, frozen))
    assert all(jnp.abs(a - b).max() > 1e-3 for a, b in zip(base, other, strict=True))
    crowd = grounded(BATCH, {**frozen, "teacher": {"kernel": jnp.ones(3)}})
    for one, same in zip(base, crowd, strict=True):
        np.testing.assert_array_equal(one, same)


def test_it_is_not_among_the_parameters_and_takes_no_gradient():
    net = network(CONFIG, EXACT)
    assert "look" not in net.shapes()

    def loss(frozen):
        out = net.apply(random_like(net.shapes()), BATCH, frozen_params=frozen)
        return jnp.sum(out.pred[0])

    grads = jax.jit(jax.grad(loss))(frozen_params(CONFIG))
    assert not grads["look"]["kernel"].any()


def test_grounding_is_dropped_image_by_image(grounded):
    """The other parts of the condition stay."""
    frozen = frozen_params(CONFIG)
    dropped = jnp.array([False, True])
    cond = BATCH[0].cond._replace(grounding=dropped)
    first = BATCH[0]._replace(cond=cond)
    base, some = grounded(BATCH, frozen), grounded((first, BATCH[1]), frozen)
    np.testing.assert_array_equal(some[0][1], base[0][1])
    np.testing.assert_array_equal(some[1], base[1])
    assert jnp.abs(some[0][0] - base[0][0]).max() > 1e-3


def test_without_its_parameters_it_is_refused():
    net = network(CONFIG, EXACT)
    for frozen in (None, {}, {"teacher": {}}):
        with pytest.raises(ValueError, match=r"frozen_params\['look'\]"):
            jax.eval_shape(
                lambda params, frozen=frozen: net.apply(
                    params, BATCH, frozen_params=frozen
                ),
                net.shapes(),
            )


def test_parts_of_a_condition_are_none_unless_given():
    assert dataclasses.is_dataclass(CONFIG)
    assert Condition() == (None, None, None, None)
    leaves = jax.tree.leaves(Condition(grounding=jnp.ones(2, bool)))
    assert [leaf.shape for leaf in leaves] == [(2,)]
