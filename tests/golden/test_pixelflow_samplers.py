"""PixelFlow's samplers against the official pipelines: Euler, Dopri5; class, text.

The draws of the official code take the place of our noise; everything else runs as in a
program that samples.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.guidance import RAMP, ClassifierFree
from pixelflow_jax.flow.path import pyramid
from pixelflow_jax.flow.prediction import PredictVelocity
from pixelflow_jax.flow.solver import Euler, Solution, Solver, Steps
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.interface import Condition
from pixelflow_jax.sampling.fields import Net
from pixelflow_jax.sampling.sampler import Noise, Sampler, Samples
from tests.golden import harness, twins

SAMPLERS = 2e-5
ADAPTIVE = 2e-2  # rounding decides step sizes: float64 and float32 differ by 6e-3
OPTIONS = {
    "model": None,
    "scheduler": None,
    "prompt": None,
    "height": None,
    "width": None,
    "steps": None,
    "guidance": None,
    "shift": 1.0,
    "dopri5": False,
    # What the recorded prompts were made from; their states are recorded too.
    "text_encoder": None,
    "max_token_length": None,
}


@dataclasses.dataclass
class Recording(Solver):
    """A solver that keeps what it returned."""

    solver: Solver
    solutions: list[Solution]

    def __call__(self, field, x, steps: Steps):
        self.solutions.append(self.solver(field, x, steps._replace(record=True)))
        return self.solutions[-1]


@dataclasses.dataclass
class Pipeline:
    """The official pipeline's settings, in our terms."""

    fixture: harness.Fixture

    def __post_init__(self):
        o = harness.take(self.fixture.config, OPTIONS)
        self.adaptive = o["dopri5"]
        options = scheduler(o["scheduler"])
        self.stages = pyramid(**options)
        tiny, steps = 1 / options["num_train_timesteps"], tuple(o["steps"])
        self.grid = Grid(stage_steps=steps, shift=o["shift"], last_step=tiny)
        if self.adaptive:
            self.grid = Grid(stage_steps=steps, timestep_scale=1 - tiny)
        self.by_class = bool(o["model"]["num_classes"])
        ramp = RAMP[: len(self.stages)] if self.by_class else ()
        self.guidance = ClassifierFree(scale=o["guidance"], ramp=ramp)
        self.solver = Dopri5(control="batch") if self.adaptive else Euler()
        self.classes = o["model"]["num_classes"]
        self.prompt = o["prompt"]

    def conditions(self) -> tuple[Condition, Condition]:
        if self.by_class:
            labels = jnp.asarray(self.prompt)
            return Condition(labels=labels), Condition(
                labels=jnp.full_like(labels, self.classes)
            )
        recorded = self.fixture.under("out")
        negative, positive = np.split(recorded["prompt_embeds"], 2)
        masks = np.split(recorded["prompt_attention_mask"] == 1, 2)
        null, cond = zip((negative, positive), masks, strict=True)
        return tuple(Condition(text=text, mask=mask) for text, mask in (cond, null))

    def fresh(self, index: int) -> jax.Array:
        name = f"in/renoise_stage{index}" if index else "in/initial_noise"
        return jnp.asarray(harness.nhwc(self.fixture.tensors[name]))

    def run(self) -> tuple[Samples, list[Solution]]:
        loaded = harness.pixelflow_model(self.fixture)
        cond, null = self.conditions()

        @jax.jit
        def program(params: dict) -> tuple[Samples, list[Solution]]:
            solutions: list[Solution] = []
            sampler = Sampler(
                stages=self.stages,
                prediction=PredictVelocity(),
                guidance=self.guidance,
                solver=Recording(self.solver, solutions),
                grid=self.grid,
            )
            net, noise = Net(loaded.network, params), Noise(self.fresh, None)
            fields = lambda index: sampler.fields(index, net, cond, null)
            if self.adaptive:
                return twins.follow(sampler, fields, noise), solutions
            return sampler.follow(fields, noise), solutions

        return jax.device_get(program(loaded.params))


def scheduler(options: dict) -> dict:
    return harness.take(
        options, {"num_train_timesteps": 1000, "num_stages": 4, "gamma": -1 / 3}
    )


def whole(fixture) -> list[str]:
    return ["pipeline"]


def check_stage_tables(pipeline: Pipeline, recorded: dict) -> None:
    for k, stage in enumerate(pipeline.stages):
        scale = pipeline.guidance.scale_of(k)
        harness.close(scale, recorded[f"stage{k}/guidance"], f"stage{k}/guidance", 1e-6)
        if not pipeline.adaptive:
            times = pipeline.grid.times(k)
            harness.close(times, recorded[f"stage{k}/t"], f"stage{k}/t", 1e-6)
            told, name = stage.timestep(times[:-1]), f"stage{k}/Timesteps"
            harness.close(told, recorded[name], name, 1e-6)


@harness.parametrize("pixelflow_euler", None, whole)
def test_euler(fixture, case):
    pipeline = Pipeline(fixture)
    samples, solutions = pipeline.run()
    recorded = fixture.under("out")
    check_stage_tables(pipeline, recorded)
    tables = ("Timesteps", "t", "guidance")
    left = {name for name in recorded if name.split("/")[-1] not in tables}
    for k, solution in enumerate(solutions):
        ours = {"latents_in": solution.states[0]}
        after = [*solution.states[1:], solution.x]
        ours |= {f"step{i}_latents": x for i, x in enumerate(after)}
        velocities = enumerate(solution.velocities)
        ours |= {f"step{i}_guided_velocity": v for i, v in velocities}
        for name, value in ours.items():
            if f"stage{k}/{name}" in left:
                theirs = recorded[f"stage{k}/{name}"]
                left.remove(f"stage{k}/{name}")
                value = harness.nchw(value)
                harness.close(value, theirs, f"stage{k}/{name}", SAMPLERS)
    ours = np.clip(samples.images / 2 + 0.5, 0, 1)
    harness.close(ours, recorded["samples_nhwc_01"], "samples", SAMPLERS)
    assert left <= {"samples_nhwc_01", "prompt_embeds", "prompt_attention_mask"}


@harness.parametrize("pixelflow_dopri5", None, whole)
def test_dopri5(fixture, case):
    pipeline = Pipeline(fixture)
    samples, solutions = pipeline.run()
    recorded = fixture.under("out")
    check_stage_tables(pipeline, recorded)
    for k, solution in enumerate(solutions):
        count = int(recorded[f"stage{k}/dopri5_nfe"])
        assert int(solution.evaluations) == count, f"stage {k}"
        before = harness.nchw(solution.states[0])
        theirs = recorded[f"stage{k}/latents_in"]
        harness.close(before, theirs, f"stage{k}/latents_in", ADAPTIVE)
    ours = np.clip(samples.images / 2 + 0.5, 0, 1)
    harness.close(ours, recorded["samples_nhwc_01"], "samples", ADAPTIVE)
