"""PixNerd's and PixelGen's samplers against the official code, step by step."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from pixelflow_jax.flow.guidance import AutoGuidance, ClassifierFree
from pixelflow_jax.flow.path import Stage
from pixelflow_jax.flow.prediction import PredictClean, Prediction, PredictVelocity
from pixelflow_jax.flow.solver import (
    AdamsBashforth,
    Euler,
    Heun,
    Solution,
    Solver,
    Steps,
    adams_weights,
)
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.interface import Condition, Network
from pixelflow_jax.sampling.fields import Net
from pixelflow_jax.sampling.sampler import Sampler
from tests.golden import harness

# The reference computes multistep weights in float32, where they cancel: with the
# order, with the number of steps, and over the wide range of log-SNR nodes.
TIGHT, LOGSNR, LOOSE = 2e-5, 1e-4, 5e-4
WEIGHTS = 2e-6  # times steps^(order - 1)


class Objective(NamedTuple):
    """An official sampler in our terms."""

    grid: Grid
    guidance: ClassifierFree | AutoGuidance
    solver: Solver
    tolerance: float = TIGHT
    prediction: Prediction = PredictVelocity()

    def sampler(self) -> Sampler:
        return Sampler(
            stages=(Stage(),),
            prediction=self.prediction,
            guidance=self.guidance,
            solver=self.solver,
            grid=self.grid,
        )


def pixelgen_recipe(name: str, options: dict) -> Objective:
    """PixelGen's samplers: PixNerd's with other windows, of velocity or clean images.

    Euler and Heun guide up to the window's end inclusively, Heun in a window at all.
    """
    options = dict(options)
    kind, *variants = options.pop("cls").split("_")
    rescale = 0.7 if options.pop("rescale", False) else 0.0
    if kind == "heun":
        options["last_step"] = options.get("last_step") or 1 / options["num_steps"]
    window = {
        "low": options.get("guidance_interval_min", 0.0),
        "high": options.get("guidance_interval_max", 1.0),
        "interval": "()" if kind == "adam" else "(]",
    }
    if kind == "heun":
        options.pop("guidance_interval_min", None)
        options.pop("guidance_interval_max", None)
    ours = objective(name, options | {"cls": kind})
    guidance = ClassifierFree(scale=options["guidance"], rescale=rescale, **window)
    if "autoguidance" in variants:
        guidance = AutoGuidance(scale=options["guidance"], **window)
    assert set(variants) <= {"jit", "autoguidance"}, f"no sampler {options}"
    clean = PredictClean() if "jit" in variants else PredictVelocity()
    return ours._replace(guidance=guidance, prediction=clean)


def objective(name: str, options: dict) -> Objective:
    """Our grid, guidance and solver from PixNerd's sampler's options."""
    common = {
        "cls": None,
        "num_steps": None,
        "guidance": None,
        "timeshift": 1.0,
        "last_step": None,
        "guidance_interval_min": 0.0,
        "guidance_interval_max": 1.0,
        "w": None,  # the noise scheduler of stochastic steps: always 1 - t
    }
    transforms = {k for k in options if re.search("lms|log_?snr|transform", k)}
    own = {
        "euler": {"step_fn": "ode", "last_step_fn": "ode"},
        "heun": {"exact_henu": False},
        "adam": {"order": 2, **dict.fromkeys(transforms)},
    }
    assert options["cls"] in own, f"no sampler {options['cls']}"
    o = harness.take(options, common | own[options["cls"]])
    window = {"low": o["guidance_interval_min"], "high": o["guidance_interval_max"]}
    tolerance = TIGHT
    match o["cls"]:
        case "euler":
            assert step_name(o["last_step_fn"]) == "ode"
            solver = Euler(step=step_name(o["step_fn"]))
        case "heun":
            assert o["last_step"], "the official Heun fails without last_step"
            solver = Heun(reuse=not o["exact_henu"])
            window = {}  # always guided, at t = 0 too
        case "adam":
            transform = transform_name(name, [o[key] for key in transforms])
            solver = AdamsBashforth(order=o["order"], transform=transform)
            if transform != "identity":
                tolerance = LOGSNR
            if o["order"] + (transform != "identity") > 3:
                tolerance = LOOSE
    return Objective(
        Grid(steps=o["num_steps"], last_step=o["last_step"] or 0, shift=o["timeshift"]),
        ClassifierFree(scale=o["guidance"], **window),
        solver,
        tolerance,
    )


def step_name(name: str | None) -> str:
    """The step a function name stands for: sde_mean_step_fn is sde_mean."""
    return (name or "ode").removesuffix("_fn").removesuffix("_step")


def transform_name(sampler: str, values: list) -> str:
    """The transform of the Adams nodes; the option's name and value vary.

    It is a function there, so a file may say it by a flag, by a name, by a formula or
    only in the sampler's own name.
    """
    names = {None: "identity", False: "identity", True: "logsnr", "": "identity"}
    found = {names[v] if v in names else str(v).lower() for v in values or [sampler]}
    assert len(found) == 1, f"contradicting transforms {found}"
    name = found.pop()
    if re.search("log_?snr", name) or (values and "log" in name):
        return "logsnr"
    return name if values else "identity"


def run(
    fixture, name: str, objective: Objective, loaded
) -> tuple[Solution, list[float]]:
    """Our solution and the times at which the network was called, in order."""
    given = fixture.under("in")
    cond, null = (
        Condition(labels=given[k].astype(np.int32)) for k in ("cond", "uncond")
    )
    step_noise = given.get(f"{name}/step_noise")
    calls: list[float] = []

    def apply(params, batch, **options):
        jax.debug.callback(
            lambda t: calls.append(float(t)), batch[0].timestep[0], ordered=True
        )
        return loaded.network.apply(params, batch, **options)

    def noise(step: Array) -> Array:
        return jnp.asarray(harness.nhwc(step_noise))[step]

    sampler, weaker = objective.sampler(), guide(fixture, objective)
    draws = None if step_noise is None else noise
    steps = Steps(objective.grid.times(), draws, record=True)

    @jax.jit
    def solve(params, x):
        net = Net(Network(init=None, apply=apply), params)
        fields = sampler.fields(0, net, cond, null, guide=weaker)
        return sampler.solver(sampler.guidance(fields, 0), x, steps)

    solution = jax.block_until_ready(solve(loaded.params, harness.nhwc(given["noise"])))
    jax.effects_barrier()
    return solution, calls


def guide(fixture, objective: Objective) -> Net | None:
    """The weaker model of autoguidance."""
    if not isinstance(objective.guidance, AutoGuidance):
        return None
    weaker = harness.pixelgen_model(fixture, group="params_guide")
    return Net(weaker.network, weaker.params)


def sampler_names(fixture) -> list[str]:
    names = {key.split("/")[0] for key in fixture.under("out")}
    assert names == set(fixture.config["samplers"])
    return sorted(names)


@harness.parametrize("pixnerd_samplers", "c2i", sampler_names)
def test_sampler(fixture, case):
    ours = objective(case, fixture.config["samplers"][case])
    check_sampler(fixture, case, ours, harness.pixnerd_model(fixture))


@harness.parametrize("pixelgen_samplers", "jit", sampler_names)
def test_pixelgen_sampler(fixture, case):
    ours = pixelgen_recipe(case, fixture.config["samplers"][case])
    check_sampler(fixture, case, ours, harness.pixelgen_model(fixture))


def check_sampler(fixture, case: str, ours: Objective, loaded: harness.Loaded) -> None:
    recorded = dict(fixture.under(f"out/{case}"))
    times = ours.grid.times()
    solution, calls = run(fixture, case, ours, loaded)
    states = np.concatenate([solution.states, solution.x[None]])
    velocities = np.concatenate([solution.velocities, 0 * solution.x[None]])
    compare = {
        "timesteps": (times, 1e-7),
        "timedeltas": (np.diff(times), 1e-7),
        "net_call_times": (np.asarray(calls, np.float32), 1.2e-7),
        "x_trajs": (harness.nchw(states), ours.tolerance),
        "v_trajs": (harness.nchw(velocities), max(ours.tolerance, 5e-5)),
        "final": (harness.nchw(solution.x), ours.tolerance),
    }
    check_weights(ours.solver, times, recorded)
    unknown = sorted(set(recorded) - set(compare))
    assert not unknown, f"recorded arrays that this test does not compute: {unknown}"
    for name, theirs in recorded.items():
        harness.close(compare[name][0], theirs, f"{case}/{name}", compare[name][1])


def check_weights(solver: Solver, times: np.ndarray, recorded: dict) -> None:
    """Multistep weights: ours are padded on the left, theirs on the right."""
    theirs, orders = recorded.pop("lm_coeffs", None), recorded.pop("lm_orders", None)
    assert isinstance(solver, AdamsBashforth) == (theirs is not None)
    if theirs is None:
        return
    weights = adams_weights(times, solver.order, solver.transform)
    harness.close(weights.shape, theirs.shape, "lm_coeffs: shape")
    tolerance = WEIGHTS * len(weights) ** (solver.order - 1)
    tolerance *= 1 if solver.transform == "identity" else 10
    for i, (mine, their, order) in enumerate(zip(weights, theirs, orders, strict=True)):
        assert order == min(i + 1, solver.order)
        unpadded = mine[solver.order - order :]
        harness.close(unpadded, their[:order], f"lm_coeffs[{i}]", tolerance)
        assert not their[order:].any() and not mine[: solver.order - order].any()


def test_an_unknown_option_is_refused():
    known = {"cls": "euler", "num_steps": 4, "guidance": 2.0}
    objective("euler", known)
    for more in ({"churn": 1}, {"order": 2}, {"step_fn": "sde_flow"}):
        with pytest.raises((AssertionError, ValueError)):
            built = objective("euler", known | more)
            steps = Steps(built.grid.times())
            built.solver(lambda x, t, step: x, jnp.zeros(1), steps)


@pytest.mark.parametrize(
    ("name", "option", "transform"),
    [
        ("adam2", {}, "identity"),
        ("adam2", {"lms_transform_fn": None}, "identity"),
        ("adam2", {"lms_transform": "logsnr"}, "logsnr"),
        ("adam2", {"lms_transform_fn": "log_snr"}, "logsnr"),
        ("adam2", {"transform": "log(max(t,1e-3)/(1-t+1e-3))"}, "logsnr"),
        ("adam2", {"logsnr": True}, "logsnr"),
        ("adam2", {"lms_transform": "cosine"}, "cosine"),  # which the solver refuses
        ("adam2_logsnr", {}, "logsnr"),
    ],
)
def test_names_of_the_multistep_transform(name, option, transform):
    adam = {"cls": "adam", "num_steps": 4, "guidance": 2.0, "order": 2}
    assert objective(name, adam | option).solver.transform == transform
