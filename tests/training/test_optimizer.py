"""AdamW against its formula, and the schedules at chosen steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixelflow_jax.training.optimizer import AdamW, Extension

LR = 1e-3


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {0: 1, 50: 1, 99: 1}),
        ({"warmup": 10}, {0: 0, 1: 0.1, 5: 0.5, 10: 1, 99: 1}),
        ({"schedule": "cosine"}, {0: 1, 25: 0.853553, 50: 0.5, 75: 0.146447, 100: 0}),
        ({"schedule": "cosine", "final": 0.2}, {0: 1, 50: 0.6, 100: 0.2}),
        ({"schedule": "linear"}, {0: 1, 25: 0.75, 100: 0}),
        ({"schedule": "linear", "final": 0.1}, {50: 0.55, 100: 0.1}),
        # The decay begins where the warm-up ends.
        ({"schedule": "linear", "warmup": 20}, {10: 0.5, 20: 1, 60: 0.5, 100: 0}),
        ({"schedule": "cosine", "warmup": 20}, {20: 1, 60: 0.5, 100: 0}),
    ],
    ids=str,
)
def test_the_learning_rate_follows_its_schedule(fields, expected):
    rate = AdamW(lr=LR, **fields).learning_rate(100)
    found = {step: float(rate(step)) / LR for step in expected}
    assert found == pytest.approx(expected, abs=1e-6)


def rates(steps, of, **fields):
    rate = AdamW(lr=LR, **fields).learning_rate(of)
    return [float(rate(step)) for step in steps]


COSINE = {"schedule": "cosine", "warmup": 20}


def test_an_extension_keeps_the_learning_rate_that_was_reached():
    kept = (Extension(step=60, planned=100, kind="constant"),)
    before = rates(range(61), 100, **COSINE)
    assert rates(range(61), 300, **COSINE, extended=kept) == before
    assert rates([61, 200, 300], 300, **COSINE, extended=kept) == [before[60]] * 3


def test_an_extension_begins_the_whole_schedule_anew():
    anew = (Extension(step=60, planned=100, kind="restart"),)
    extended = rates(range(300), 300, **COSINE, extended=anew)
    assert extended[:60] == rates(range(60), 100, **COSINE)
    assert extended[60:] == rates(range(240), 240, **COSINE)
    assert extended[60] == 0 and extended[80] == pytest.approx(LR)


def test_extensions_follow_one_another():
    twice = (
        Extension(step=60, planned=100, kind="restart"),
        Extension(step=110, planned=160, kind="constant"),
    )
    extended = rates(range(201), 200, **COSINE, extended=twice)
    once = rates(range(161), 160, **COSINE, extended=twice[:1])
    assert extended[:111] == once[:111]
    assert extended[111:] == [once[110]] * 90
    assert not AdamW(**COSINE, extended=twice).depends_on_steps
    assert AdamW(**COSINE, extended=twice[:1]).depends_on_steps


def test_a_restart_of_few_steps_warms_up_for_a_tenth_of_them():
    anew = (Extension(step=90, planned=100, kind="restart"),)
    assert rates([90, 91], 110, **COSINE, extended=anew) == pytest.approx([0, LR / 2])
    (problem,) = AdamW(extended=anew).problems(80)
    assert "steps=80" in problem


def adamw(params, grads, decayed, lr, decay, b1=0.9, b2=0.95, eps=1e-6):
    """torch.optim.AdamW, written out in float64."""
    m = {name: 0.0 for name in params}
    v = {name: 0.0 for name in params}
    for t, grad in enumerate(grads, 1):
        for name, g in grad.items():
            if name in decayed:
                params[name] = params[name] * (1 - lr * decay)
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g * g
            step = m[name] / (1 - b1**t)
            spread = np.sqrt(v[name] / (1 - b2**t)) + eps
            params[name] = params[name] - lr * step / spread
    return params


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_three_steps_follow_the_formula(clip):
    """Weight decay acts on kernels alone, clipping on the norm of all gradients."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "weight": (3,), "table": (5, 2)}
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    grads = [
        {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        for _ in range(3)
    ]
    config = AdamW(lr=0.1, weight_decay=0.3, b1=0.9, b2=0.95, eps=1e-6, clip=clip)
    optimizer = config.build(10)
    ours = {"layer": jax.tree.map(jnp.float32, params)}
    state = optimizer.init(ours)
    for grad in grads:
        updates, state = optimizer.update(
            {"layer": jax.tree.map(jnp.float32, grad)}, state, ours
        )
        ours = optax.apply_updates(ours, updates)
    if clip:
        norms = [np.sqrt(sum((g * g).sum() for g in grad.values())) for grad in grads]
        assert min(norms) > clip
        grads = [
            {name: g * clip / norm for name, g in grad.items()}
            for grad, norm in zip(grads, norms, strict=True)
        ]
    expected = adamw(dict(params), grads, {"kernel"}, lr=0.1, decay=0.3)
    for name, value in expected.items():
        np.testing.assert_allclose(ours["layer"][name], value, rtol=2e-5, atol=1e-6)


def test_a_gradient_below_the_bound_is_not_clipped():
    optimizers = [AdamW(clip=clip).build(10) for clip in (0.0, 10.0)]
    params = {"kernel": jnp.asarray([1.0, 2.0])}
    grads = {"kernel": jnp.asarray([0.1, -0.2])}
    free, bounded = (o.update(grads, o.init(params), params)[0] for o in optimizers)
    np.testing.assert_array_equal(free["kernel"], bounded["kernel"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schedule": "step"}, 'must be "constant", "cosine" or "linear"'),
        ({"lr": 0.0}, "optimizer.lr must be positive"),
        ({"clip": -1.0}, "clip and weight_decay"),
        ({"weight_decay": -0.1}, "clip and weight_decay"),
        ({"warmup": 11}, "optimizer.warmup=11 must lie in 0..steps=10"),
        ({"warmup": -1}, "optimizer.warmup=-1 must lie in"),
        ({"b1": 1.0}, "b1"),
        ({"b2": -0.1}, "b2"),
        ({"eps": 0.0}, "eps"),
        ({"final": 2.0}, "final"),
    ],
    ids=str,
)
def test_fields_that_make_no_sense_are_named(fields, words):
    (problem,) = AdamW(**fields).problems(10)
    assert words in problem


def test_the_defaults_have_no_problem():
    assert AdamW().problems(1) == []
