"""What a report shows of the state, against what a step really did."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixelflow_jax.training.observe import Observer
from pixelflow_jax.training.optimizer import AdamW
from pixelflow_jax.training.state import TrainState

STEPS = 20
OPTIMIZERS = {
    "plain": AdamW(lr=1e-2),
    "all": AdamW(
        lr=1e-2, weight_decay=0.3, clip=0.1, warmup=3, schedule="cosine", b2=0.95
    ),
}


def parameters(key) -> dict:
    """A stack of three layers, and two matrices beside it."""
    shapes = {
        "early": {"blocks": {"mlp": {"kernel": (3, 4, 5), "bias": (3, 5)}}},
        "embed": {"kernel": (4, 4)},
        "head": {"bias": (4,)},
    }
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, s) for k, s in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def after(optimizer: AdamW, steps: int) -> tuple[TrainState, dict]:
    """The state after so many steps, and the parameters before the last."""
    transform = optimizer.build(STEPS)
    params = {"denoiser": parameters(jax.random.key(0)), "projectors": {}}
    before, opt_state = params, transform.init(params)
    for step in range(steps):
        drawn = parameters(jax.random.key(step + 1))
        grads = {"denoiser": drawn, "projectors": {}}
        updates, opt_state = transform.update(grads, opt_state, params)
        before, params = params, optax.apply_updates(params, updates)
    average = jax.tree.map(lambda a: a + 0.5, params["denoiser"])
    state = TrainState(jnp.int32(steps), params, opt_state, {"0.9": average}, {})
    return state, before


def norm(tree: dict) -> float:
    leaves = [np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(tree)]
    return float(np.linalg.norm(np.concatenate(leaves)))


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_is_what_the_step_added(name, steps):
    optimizer = OPTIMIZERS[name]
    state, before = after(optimizer, steps)
    update = optimizer.last_update(state.opt_state, state.params, STEPS)
    moved = jax.tree.map(jnp.subtract, state.params, before)
    for a, b in zip(jax.tree.leaves(update), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-7)


def test_ratios_and_distances_are_of_their_parts():
    state, before = after(OPTIMIZERS["plain"], 3)
    observer = Observer(optimizer=OPTIMIZERS["plain"], steps=STEPS)
    found = {k: float(v) for k, v in jax.jit(observer)(state).items()}
    params, before = state.params["denoiser"], before["denoiser"]
    moved = jax.tree.map(jnp.subtract, params, before)
    layer = lambda tree, i: jax.tree.map(lambda a: a[i], tree["early"]["blocks"])
    wanted = {
        "param_norm": norm(params),
        "update_ratio": norm(moved) / norm(params),
        "update_ratio/embed": norm(moved["embed"]) / norm(params["embed"]),
        "update_ratio/head": norm(moved["head"]) / norm(params["head"]),
        "ema_distance/0.9": 0.5 * np.sqrt(3 * 25 + 16 + 4) / norm(params),
    }
    for i in range(3):
        ratio = norm(layer(moved, i)) / norm(layer(params, i))
        wanted[f"update_ratio/early/blocks/{i:02d}"] = ratio
    assert found == pytest.approx(wanted, rel=1e-4)


def test_parts_that_are_zero_have_no_ratio_of_infinity():
    state, _ = after(OPTIMIZERS["plain"], 1)
    still = jax.tree.map(jnp.zeros_like, (state.params, state.opt_state[0].mu))
    opt_state = (state.opt_state[0]._replace(mu=still[1]), *state.opt_state[1:])
    state = state.replace(params=still[0] | {"denoiser": state.params["denoiser"]})
    state.params["denoiser"]["head"] = {"bias": jnp.zeros(4)}
    observer = Observer(optimizer=OPTIMIZERS["plain"], steps=STEPS)
    found = observer(state.replace(opt_state=opt_state))
    assert found["update_ratio/head"] == 0
