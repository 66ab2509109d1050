"""PixNerd's REPA training step against the official code: losses and gradients."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.conditioning.drop import drop
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.flow.path import Stage, Straight
from pixelflow_jax.flow.prediction import PredictVelocity
from pixelflow_jax.flow.time import LogitNormal, Uniform
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.objective import Drawn, Objective
from pixelflow_jax.losses.perceptual import LAST, Repa, project
from pixelflow_jax.losses.weighted_terms import WeightedTerms
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.tensors import mapping as tables
from tests.golden import harness

KNOWN = {
    "lognorm_t": False,
    "feat_loss_weight": 0.5,
    "timeshift": 1.0,
    "align_layer": None,
    "null_condition_p": 0.1,
    # The projector's widths, which its weights show anyway.
    "proj_denoiser_dim": None,
    "proj_hidden_dim": None,
    "proj_encoder_dim": None,
}


@dataclasses.dataclass(kw_only=True)
class Recorded:
    """A teacher that sees what the official step's stand-in saw."""

    features_: np.ndarray

    def features(self, params: dict, images: Array, layers: tuple) -> dict:
        return {layer: jnp.asarray(self.features_) for layer in layers}


def objective(loaded: harness.Loaded, fixture, trainer: dict) -> Objective:
    law = LogitNormal if trainer["lognorm_t"] else Uniform
    features = fixture.tensors["in/dst_feature"]
    return Objective(
        model=loaded.config,
        network=loaded.network,
        stages=Straight().stages(),
        prediction=PredictVelocity(),
        time=law(shift=trainer["timeshift"]),
        terms=WeightedTerms(
            terms=[FlowMatching(), Repa(weight=trainer["feat_loss_weight"])],
            teachers=Teachers(dino=Recorded(features_=features)),
        ),
        conditioner=ClassLabels(drop=trainer["null_condition_p"]),
    )


def drawn(given: dict, objective: Objective) -> Drawn:
    """The recorded draws in the place of ours."""
    cond, null = (harness.condition(given[k]) for k in ("cond", "uncond"))
    cond = drop(given["null_uniform"], cond, null, objective.conditioner.drop)
    t = objective.time.transform(jnp.asarray(given["t_draw"]))
    image, noise = harness.nhwc(given["x"]), harness.nhwc(given["noise"])
    keys = jax.random.split(jax.random.key(0), len(t))
    return Drawn(image, (Stage().draw(image, noise, t),), (cond,), keys)


def remats(fixture) -> list[str]:
    return ["names", "none"]


@harness.parametrize("pixnerd_repa_train", "c2i", remats)
def test_training_step(fixture, case):
    check_step(fixture, case, harness.pixnerd_model)


@harness.parametrize("pixnerd_repa_train", "t2i", remats)
def test_training_step_with_text(fixture, case):
    check_step(fixture, case, harness.text_model)


def check_step(fixture, case: str, model: Callable[..., harness.Loaded]) -> None:
    trainer = harness.take(fixture.config["trainer"], KNOWN)
    loaded = model(fixture, feature_layer=trainer["align_layer"], remat=case)
    this = objective(loaded, fixture, trainer)
    params = {"denoiser": loaded.params, "projectors": harness.projector(fixture)}

    @jax.jit
    def run(params: dict) -> tuple:
        draws = drawn(fixture.under("in"), this)
        frozen_params = {"dino": {}}
        grad = jax.value_and_grad(this.loss, has_aux=True)
        (total, means), grads = grad(params, draws, frozen_params, {})
        output = this.context(params, draws, frozen_params).output
        projected = project(params["projectors"]["Repa"], output.features[0])
        return draws, total, means, grads, output.pred[0], projected

    draws, total, means, grads, pred, projected = run(params)
    point, recorded = draws.points[0], fixture.under("out")
    length = recorded["projected_feature"].shape[1]  # the encoder may have fewer tokens
    ours = {
        "loss/loss": total,
        "loss/fm_loss": means["FlowMatching"],
        "loss/cos_loss": means["Repa"],
        "t": point.t,
        "y_after_null": jax.tree.leaves(draws.conds)[0],
        "x_t": harness.nchw(point.x_t),
        "net_output": harness.nchw(pred),
        "projected_feature": projected[:, :length],
    }
    official = tables.export(loaded.table, grads["denoiser"])
    ours |= {f"grad/{name}": grad for name, grad in official.items()}
    found = harness.official_projector(grads["projectors"])
    ours |= {f"grad_proj/{name}": grad for name, grad in found.items()}
    assert not set(recorded) - set(ours)
    gradients = {k: v for k, v in recorded.items() if k.startswith("grad")}
    harness.close_gradients(ours, gradients)
    for name in recorded.keys() - gradients.keys():
        tolerance = 1e-5 if name.startswith("loss/") else harness.FORWARD
        harness.close(ours[name], recorded[name], name, tolerance)
    assert this.terms.required_features.full == (LAST,)
