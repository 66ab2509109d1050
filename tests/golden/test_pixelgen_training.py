"""PixelGen's training step against the official code: terms, gradients, balance.

The recorded step looks through stand-ins for LPIPS and DINOv2, whose formulas come with
the file; ours are built here and take the teachers' places in the real objective.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.conditioning.drop import drop
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.flow.path import Straight
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.time import LogitNormal, Uniform
from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.objective import Drawn, Objective
from pixelflow_jax.losses.perceptual import Lpips, PDino, Repa, project
from pixelflow_jax.losses.weighted_terms import WeightedTerms
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.tensors import mapping as tables
from tests.golden import harness

KINDS = ("JiT", "LPIPS", "DINO", "NoiseGating")
DEFAULTS = {
    "lognorm_t": False,
    "P_mean": -0.8,
    "P_std": 0.8,
    "noise_scale": 1.0,
    "timeshift": 1.0,
    "t_eps": 0.05,
    "null_condition_p": 0.1,
    "feat_loss_weight": 0.5,
    "lpips_weight": 0.1,
    "dino_weight": 0.01,
    "dino_layers": [11],
    "percept_t_threshold": 0.0,
    "percept_ratio": 1.0,
    "patch_size": 16,
    "align_layer": None,
    # The projector's widths, which its weights show anyway.
    "proj_denoiser_dim": None,
    "proj_hidden_dim": None,
    "proj_encoder_dim": None,
}


@dataclasses.dataclass(kw_only=True)
class StubDino:
    """tanh((i + 1) z W) of the pixels' patches, for the i-th of `layers`."""

    patch: int
    layers: tuple[int, ...]

    def features(self, params: Array, images: Array, layers: tuple) -> dict:
        z = ((images + 1) / 2 - 0.5) / 0.25
        b, h, w, c = z.shape
        p = self.patch
        z = z.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 5, 2, 4)
        g = jnp.einsum(
            "bnd,de->bne", z.reshape(b, -1, c * p * p), params, precision="highest"
        )
        return {k: jnp.tanh((self.layers.index(k) + 1) * g) for k in layers}


class StubLpips:
    """Differences of averaged pixels at two scales."""

    def distance(self, params, a: Array, b: Array) -> Array:
        return sum(k * jnp.mean(self.pooled(a, b, k) ** 2, (1, 2, 3)) for k in (1, 2))

    def pooled(self, a: Array, b: Array, k: int) -> Array:
        def pool(x: Array) -> Array:
            b, h, w, c = x.shape
            x = x[:, : h // k * k, : w // k * k]
            x = x.reshape(b, h // k, k, w // k, k, c)
            return jnp.tanh(x.mean((2, 4)))

        return pool(a) - pool(b)


class Case:
    """One of a file's training cases in our terms."""

    def __init__(self, fixture: harness.Fixture, name: str):
        self.fixture = fixture
        known = {"trainer_file", "t_draw", "trainer", "global_step", "cached"}
        options = dict(fixture.config["cases"][name])
        assert set(options) <= known | {"all_grads"}, f"unknown options: {options}"
        self.kind = options["trainer_file"]
        assert self.kind in KINDS
        own = {**fixture.config["trainer"], **options.get("trainer", {})}
        self.o = harness.take(own, DEFAULTS)
        self.draw_name = options["t_draw"]
        self.step = options.get("global_step", 0)
        self.cached = options.get("cached", 1.0)
        self.layers = tuple(self.o["dino_layers"])

    def terms(self) -> list:
        o = self.o
        gated = self.kind == "NoiseGating"
        threshold = o["percept_t_threshold"] if gated else 0.0
        repa = Repa(weight=o["feat_loss_weight"], teacher_layer=self.layers[-1])
        terms = [FlowMatching(), repa]
        if self.kind != "JiT":
            patch = o["patch_size"] if gated else 16
            weight = o["lpips_weight"]
            terms += [Lpips(weight=weight, threshold=threshold, patch=patch)]
        if self.kind in ("DINO", "NoiseGating"):
            weight = o["dino_weight"]
            terms += [PDino(weight=weight, layers=self.layers, threshold=threshold)]
        return terms

    def objective(self, loaded: harness.Loaded) -> Objective:
        scaled = self.kind in ("DINO", "NoiseGating")
        path = Straight(noise_scale=self.o["noise_scale"] if scaled else 1.0)
        dino = StubDino(patch=self.fixture.config["dino_patch"], layers=self.layers)
        gated = self.kind == "NoiseGating"
        return Objective(
            model=loaded.config,
            network=loaded.network,
            stages=path.stages(),
            prediction=PredictClean(t_eps=self.o["t_eps"]),
            time=self.law(),
            terms=WeightedTerms(
                terms=self.terms(),
                teachers=Teachers(dino=dino, lpips=StubLpips()),
                adaptive_weight=AdaptiveWeight(ratio=self.o["percept_ratio"])
                if gated
                else None,
            ),
            conditioner=ClassLabels(drop=self.o["null_condition_p"]),
        )

    def law(self) -> LogitNormal | Uniform:
        o = self.o
        if not o["lognorm_t"]:
            return Uniform(shift=o["timeshift"])
        return LogitNormal(mean=o["P_mean"], std=o["P_std"], shift=o["timeshift"])

    def drawn(self, objective: Objective) -> Drawn:
        given = self.fixture.under("in")
        cond, null = (harness.condition(given[k]) for k in ("cond", "uncond"))
        cond = drop(given["null_uniform"], cond, null, objective.conditioner.drop)
        t = self.law().transform(jnp.asarray(given[self.draw_name]))
        image, noise = harness.nhwc(given["x"]), harness.nhwc(given["noise"])
        point = objective.stages[0].draw(jnp.asarray(image), jnp.asarray(noise), t)
        return Drawn(
            jnp.asarray(image),
            (point,),
            (cond,),
            jax.random.split(jax.random.key(0), len(t)),
        )

    def frozen(self) -> dict:
        return {"dino": jnp.asarray(self.fixture.tensors["in/dino_W"]), "lpips": {}}


def case_names(fixture) -> list[str]:
    return list(fixture.config["cases"])


def model(fixture: harness.Fixture, feature_layer: int) -> harness.Loaded:
    text = fixture.config["variant"] == "jit_t2i"
    make = harness.text_model if text else harness.pixelgen_model
    return make(fixture, feature_layer=feature_layer)


@functools.cache
def outcome(fixture: harness.Fixture, name: str) -> tuple[dict, dict]:
    """Everything that is recorded of a case, computed by the real objective."""
    case = Case(fixture, name)
    feature_layer = case.o["align_layer"]
    loaded = model(fixture, feature_layer)
    objective, frozen_params = case.objective(loaded), case.frozen()
    params = {"denoiser": loaded.params, "projectors": harness.projector(fixture)}
    adaptive = objective.terms.adaptive_weight
    cached = {"adaptive_weight": jnp.float32(case.cached)} if adaptive else {}

    @jax.jit
    def run(params: dict, step: Array) -> tuple:
        drawn = case.drawn(objective)
        carry, raw = cached, jnp.zeros(())
        if adaptive is not None:
            pair = objective.output_gradients(params, drawn, frozen_params)
            weight, raw = adaptive.update(cached["adaptive_weight"], *pair)
            due = adaptive.is_due(step)
            carry = {
                "adaptive_weight": jnp.where(due, weight, cached["adaptive_weight"])
            }
        grad = jax.value_and_grad(objective.loss, has_aux=True)
        (loss, means), grads = grad(params, drawn, frozen_params, carry)
        context = objective.context(params, drawn, frozen_params)
        return drawn, context.output, loss, means, grads, carry, raw

    drawn, output, loss, means, grads, carry, raw = run(params, jnp.int32(case.step))
    point = drawn.points[0]
    names = {"FlowMatching": "fm_loss", "Repa": "cos_loss", "Lpips": "lpips_loss"}
    names["PDino"] = "dino_percept_loss"
    ours = {f"loss/{names[name]}": value for name, value in means.items()}
    ours |= {"loss/loss": loss, "t": point.t, "x_t": harness.nchw(point.x_t)}
    (condition,) = jax.tree.leaves(drawn.conds)
    ours |= {"y_after_null": condition, "adaptive_weight_raw": raw}
    ours |= {
        "pred_img": harness.nchw(output.pred[0]),
        "src_feature": output.features[0],
    }
    if adaptive is not None:
        ours["loss/percept_weight"] = carry["adaptive_weight"]
    return ours, grads | {"table": loaded.table}


def single_layers(fixture, case: str) -> dict:
    """P-DINO of each layer alone, ungated: the file lists them."""
    this = Case(fixture, case)
    loaded = model(fixture, this.o["align_layer"])
    found = {}
    for i, layer in enumerate(this.layers):
        objective = this.objective(loaded)
        term = PDino(layers=(layer,))
        terms = WeightedTerms(terms=[term], teachers=objective.terms.teachers)
        objective = dataclasses.replace(objective, terms=terms)
        run = jax.jit(
            lambda params, objective=objective: objective.loss(
                params, this.drawn(objective), this.frozen(), {}
            )[1]["PDino"]
        )
        found[f"loss/inter_cos_{i}"] = run({"denoiser": loaded.params})
    return found


@harness.parametrize("pixelgen_train", "jit", case_names)
def test_training_step(fixture, case):
    check_step(fixture, case)


@harness.parametrize("pixelgen_train", "jit_t2i", case_names)
def test_training_step_with_text(fixture, case):
    check_step(fixture, case)


def check_step(fixture, case: str) -> None:
    ours, grads = outcome(fixture, case)
    recorded = fixture.under(f"out/{case}")
    if len(Case(fixture, case).layers) > 1:
        ours = ours | single_layers(fixture, case)
    elif "loss/inter_cos_0" in recorded:
        # The mean over tokens before the gate, which the official code hardly applies.
        left = recorded.pop("loss/inter_cos_0")
        value = ours["loss/dino_percept_loss"]
        assert float(value) == 1.0 or abs(float(value - left)) < 1e-5
    theirs = tables.export(grads["table"], grads["denoiser"])
    ours |= {f"grad/{name}": value for name, value in theirs.items()}
    if "projectors" in grads:
        found = harness.official_projector(grads["projectors"])
        ours |= {f"grad_proj/{name}": value for name, value in found.items()}
    unknown = sorted(set(recorded) - set(ours))
    assert not unknown, f"recorded arrays that this test does not compute: {unknown}"
    gradients = {k: v for k, v in recorded.items() if k.startswith("grad")}
    harness.close_gradients(ours, gradients)
    for name in recorded.keys() - gradients.keys():
        tolerance = 1e-5 if name.startswith("loss/") else harness.FORWARD
        harness.close(ours[name], recorded[name], f"{case}/{name}", tolerance)


@harness.parametrize("pixelgen_train", "jit", lambda fixture: ["gates"])
def test_the_papers_gate_gates_each_image(fixture, case):
    """gate="paper" is the mean over the clean images alone, unlike the recorded one."""
    names = [
        n
        for n in case_names(fixture)
        if "NoiseGating" in str(fixture.config["cases"][n]["trainer_file"])
    ]
    mixed = next(n for n in names if "mixed" in fixture.config["cases"][n]["t_draw"])
    this = Case(fixture, mixed)
    loaded = harness.pixelgen_model(fixture, feature_layer=this.o["align_layer"])
    objective = this.objective(loaded)
    term = PDino(layers=this.layers)

    @jax.jit
    def values(params):
        drawn = this.drawn(objective)
        context = objective.context(params, drawn, this.frozen())
        gated = dataclasses.replace(term, gate="paper", threshold=0.3)
        return drawn.points[0].t, term(context), gated(context)

    t, plain, gated = values(
        {"denoiser": loaded.params, "projectors": harness.projector(fixture)}
    )
    inside = np.asarray(t) >= np.float32(0.3)
    assert 0 < inside.sum() < len(inside)
    np.testing.assert_allclose(
        np.mean(gated), np.asarray(plain)[inside].mean(), rtol=1e-5
    )


def test_projector_is_three_linear_layers_with_silu():
    rng = np.random.default_rng(0)
    layers = {
        f"linear{i}": {
            "kernel": rng.standard_normal((4, 4)).astype(np.float32),
            "bias": rng.standard_normal(4).astype(np.float32),
        }
        for i in range(3)
    }
    x = rng.standard_normal((2, 4)).astype(np.float32)
    silu = lambda a: a / (1 + np.exp(-a))
    y = x
    for i in range(3):
        y = y @ layers[f"linear{i}"]["kernel"] + layers[f"linear{i}"]["bias"]
        y = silu(y) if i < 2 else y
    np.testing.assert_allclose(project(layers, jnp.asarray(x)), y, atol=1e-4)
