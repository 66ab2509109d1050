"""PixNerd's REPA training step against the official code: losses and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.conditioning import drop
from pixelflow_jax.convert import tables
from pixelflow_jax.flow.path import Stage
from pixelflow_jax.flow.prediction import PredictVelocity
from pixelflow_jax.flow.time import LogitNormal, Uniform
from pixelflow_jax.models.base import Cond
from pixelflow_jax.objective import Context, FlowMatching
from tests.golden import harness


def project(projector: dict[str, Array], x: Array) -> Array:
    """Linear, SiLU, Linear, SiLU, Linear, on the official names and layouts."""
    for number in (0, 2, 4):
        kernel, bias = (projector[f"0.{number}.{name}"] for name in ("weight", "bias"))
        x = jnp.einsum("...i,oi->...o", x, kernel, precision="highest") + bias
        x = jax.nn.silu(x) if number < 4 else x
    return x


def cosine_loss(ours: Array, theirs: Array) -> Array:
    """Mean of 1 - cosine over the tokens."""
    norm = lambda a: jnp.maximum(jnp.linalg.norm(a, axis=-1), 1e-8)
    product = jnp.sum(ours * theirs, -1, dtype=jnp.float32)
    return jnp.mean(1 - product / (norm(ours) * norm(theirs)))


def points(fixture, trainer: dict):
    """The condition after dropping, and the training points."""
    given = fixture.under("in")
    cond, null = (Cond(labels=given[k].astype(np.int32)) for k in ("cond", "uncond"))
    dropped = drop(given["null_uniform"], cond, null, trainer["null_condition_p"])
    law = (LogitNormal if trainer["lognorm_t"] else Uniform)(shift=trainer["timeshift"])
    t = law.transform(jnp.asarray(given["t_draw"]))
    image, noise = harness.nhwc(given["x"]), harness.nhwc(given["noise"])
    return dropped, Stage().draw(image, noise, t)


def make_loss(
    loaded: harness.Loaded, cond: Cond, point, features: Array, weight: float
):
    def loss(params, projector):
        out = loaded.network.apply(params, (point.x_t,), (point.clock,), (cond,))
        flow = jnp.mean(FlowMatching()(Context((point,), out, PredictVelocity())))
        projected = project(projector, out.tap[0])
        cosine = cosine_loss(projected[:, : features.shape[1]], features)
        total = flow + weight * cosine
        aux = {
            "net_output": out.pred[0],
            "projected_feature": projected,
            "loss/fm_loss": flow,
            "loss/cos_loss": cosine,
            "loss/loss": total,
        }
        return total, aux

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def remats(fixture) -> list[str]:
    return ["names", "none"]


@harness.parametrize("pixnerd_repa_train", "c2i", remats)
def test_training_step(fixture, case):
    known = {
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
    trainer = harness.take(fixture.config["trainer"], known)
    loaded = harness.pixnerd_model(fixture, tap=trainer["align_layer"], remat=case)
    cond, point = points(fixture, trainer)
    features = fixture.tensors["in/dst_feature"]
    loss = make_loss(loaded, cond, point, features, trainer["feat_loss_weight"])
    projector = {k: jnp.asarray(v) for k, v in fixture.under("params_proj").items()}
    (_, aux), (grads, projector_grads) = loss(loaded.params, projector)

    ours = aux | {"t": point.t, "y_after_null": cond.labels}
    ours["x_t"] = harness.nchw(point.x_t)
    ours["net_output"] = harness.nchw(aux["net_output"])
    official = tables.export(loaded.table, grads)
    ours |= {f"grad/{name}": grad for name, grad in official.items()}
    ours |= {f"grad_proj/{name}": grad for name, grad in projector_grads.items()}
    recorded = fixture.under("out")
    length = recorded["projected_feature"].shape[1]  # the encoder may have fewer tokens
    ours["projected_feature"] = aux["projected_feature"][:, :length]

    assert not set(recorded) - set(ours)
    for name, theirs in recorded.items():
        is_loss = name.startswith("loss/")
        harness.close(ours[name], theirs, name, 1e-5 if is_loss else harness.FORWARD)
        if "grad" in name:  # gradients are small: compare them to their own size too
            size = np.abs(theirs).max()
            harness.close(ours[name] / size, theirs / size, f"{name} (relative)")
