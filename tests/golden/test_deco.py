"""DeCo against the official code: forward, frequency loss, training step."""

import jax
import jax.numpy as jnp
import numpy as np

from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.flow.path import Straight
from pixelflow_jax.flow.prediction import PredictVelocity
from pixelflow_jax.flow.time import LogitNormal, Uniform
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.frequency import (
    YCBCR,
    FrequencyMatching,
    dct_matrix,
    frequencies,
    frequency_weights,
)
from pixelflow_jax.losses.objective import Objective
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.losses.weighted_terms import WeightedTerms
from pixelflow_jax.nn.field import dct_features
from pixelflow_jax.nn.patch import patchify
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.tensors import mapping as tables
from tests.golden import harness
from tests.golden.test_forward import trunk
from tests.golden.test_training import Recorded, drawn

KNOWN = {
    "lognorm_t": False,
    "feat_loss_weight": 0.5,
    "freq_loss_weight": 1.0,
    "freq_quality": 85,
    "freq_mode": "inv_gamma",
    "freq_gamma": 1.0,
    "timeshift": 1.0,
    "align_layer": None,
    "null_condition_p": 0.1,
}


def quality_and_gamma(spec: dict, prefix: str = "") -> tuple[int, float]:
    """Ours, from the reference's.

    It clips the quality, and its mode "inv" is gamma 1: dividing by the mean cancels
    its factor.
    """
    gamma = spec[f"{prefix}gamma"] if spec[f"{prefix}mode"] == "inv_gamma" else 1.0
    return min(max(int(spec[f"{prefix}quality"]), 1), 100), gamma


def decoded(decoder, image, condition) -> dict:
    """The decoder's intermediates, under the reference's names."""
    pixels = patchify(image, decoder.patch)
    embedded = decoder.embed(pixels, decoder.patch)
    x = decoder.proj(embedded)
    each = decoder.condition(condition)
    out = {"x_embedder": embedded, "input_proj": x, "cond_embed": each}
    active = jax.nn.silu(each.reshape(x.shape))
    for i, block in enumerate(harness.blocks(decoder.stack)):
        out[f"res_block{i}_in_ln"] = block.norm(x)
        x = out[f"res_block{i}"] = block(x, active)
    out["decoder_out"] = patchify(decoder.decode(image, condition), decoder.patch)
    return {name: a.reshape(-1, *a.shape[2:]) for name, a in out.items()}


def names_of_sizes(fixture) -> list[str]:
    return [f"{height}x{width}" for height, width in fixture.config["sizes"]]


@harness.parametrize("deco_forward", None, names_of_sizes)
def test_forward(fixture, case):
    loaded = harness.deco_model(fixture)
    given, recorded = fixture.under(f"in/{case}"), fixture.under(f"out/{case}")
    image, labels = harness.nhwc(given["x"]), given["y"].astype(np.int32)

    @jax.jit
    def run(params, image, t, labels, given_s):
        model = loaded.module(params)
        out = trunk(model, image, t, labels)
        condition = out.pop("nerf_condition_s")
        out |= decoded(model.decoder, image, condition)
        out["decoder_condition_s"] = condition.reshape(-1, condition.shape[-1])
        b, h, w, _ = image.shape
        grid = condition.reshape(b, h // model.patch, w // model.patch, -1)
        out["forward_sx_s"] = jnp.moveaxis(grid, -1, 1)
        out["output"] = model.decoder.decode(image, condition)
        if given_s is not None:
            out["given_s_output"] = model.decoder.decode(image, given_s)
        return out

    ours = run(loaded.params, image, given["t"], labels, given.get("given_s"))
    for name, theirs in recorded.items():
        found = np.asarray(ours[name])
        if name.endswith("output"):
            found = harness.nchw(found)
        # Long arrays are cut to their first rows.
        harness.close(found[: len(theirs)], theirs, f"{case}/{name}", 1e-5)


@harness.parametrize("deco_forward", None, lambda fixture: ["table"])
def test_coordinates(fixture, case):
    patch = fixture.config["model"]["patch_size"]
    recorded = fixture.tensors["out/pixel_dct"]
    harness.close(dct_features(patch)[None], recorded, "pixel_dct", 5e-6)


@harness.parametrize("deco_train", None, lambda fixture: fixture.config["freqcases"])
def test_frequency_loss(fixture, case):
    """The velocities are the images: a network that predicts them, from zero noise."""
    spec = fixture.config["freqcases"][case]
    given, recorded = (
        fixture.under(f"in/freq/{case}"),
        fixture.under(f"out/freq/{case}"),
    )
    weights = frequency_weights(*quality_and_gamma({"gamma": 1.0, **spec}))
    a, b = harness.nhwc(given["a"]), harness.nhwc(given["b"])

    def loss(a):
        error = frequencies(a - b)
        return jnp.mean(weights * error * error)

    value, gradient = jax.value_and_grad(loss)(a)
    found = {
        "weight": weights,
        "loss": value[None],
        "grad_a": harness.nchw(gradient),
        "dct_a": jnp.moveaxis(frequencies(a), 3, 1),
        "ycbcr_a": harness.nchw(a @ YCBCR.T.astype(np.float32)),
    }
    for name, theirs in recorded.items():
        harness.close(found[name][: len(theirs)], theirs, f"{case}/{name}", 2e-6)
    size = np.abs(recorded["grad_a"]).max()
    ours = found["grad_a"] / size
    harness.close(ours, recorded["grad_a"] / size, f"{case}/grad_a", 1e-5)
    matrix = fixture.tensors["out/freq/dct_matrix"]
    harness.close(dct_matrix().astype(np.float32), matrix, "dct_matrix", 1e-6)


@harness.parametrize("deco_train", None, lambda fixture: fixture.config["cases"])
def test_training_step(fixture, case):
    o = harness.take(fixture.config["cases"][case]["trainer"], KNOWN)
    loaded = harness.deco_model(fixture, o["align_layer"])
    given, recorded = fixture.under(f"in/{case}"), fixture.under(f"out/{case}")
    patch, matrix = fixture.config["dino_patch"], fixture.tensors["in/dino_W"]
    features = harness.stub_tokens(harness.nhwc(given["raw_image"]), matrix, patch)
    law = LogitNormal if o["lognorm_t"] else Uniform
    quality, gamma = quality_and_gamma(o, "freq_")
    this = Objective(
        model=loaded.config,
        network=loaded.network,
        stages=Straight().stages(),
        prediction=PredictVelocity(),
        time=law(shift=o["timeshift"]),
        terms=WeightedTerms(
            terms=[
                FlowMatching(),
                FrequencyMatching(
                    weight=o["freq_loss_weight"], quality=quality, gamma=gamma
                ),
                Repa(weight=o["feat_loss_weight"]),
            ],
            teachers=Teachers(dino=Recorded(features_=features)),
        ),
        conditioner=ClassLabels(drop=o["null_condition_p"]),
    )
    params = {"denoiser": loaded.params, "projectors": harness.projector(fixture)}
    draws = drawn({**given, "cond": given["y"]}, this)

    @jax.jit
    def run(params, draws):
        grad = jax.value_and_grad(this.loss, has_aux=True)
        (total, means), grads = grad(params, draws, {"dino": {}}, {})
        pred = this.context(params, draws, {"dino": {}}).output.pred[0]
        return total, means, grads, pred

    total, means, grads, pred = run(params, draws)
    squares = sum(jnp.sum(g * g) for g in jax.tree.leaves(grads))
    ours = {
        "loss/loss": total[None],
        "loss/fm_loss": means["FlowMatching"][None],
        "loss/fm_loss_freq": means["FrequencyMatching"][None],
        "loss/cos_loss": means["Repa"][None],
        "output": harness.nchw(pred),
        "t": draws.points[0].t,
        "x_t": harness.nchw(draws.points[0].x_t),
        "y": draws.conds[0].labels,
        "grad_norm_total": jnp.sqrt(squares)[None],
    }
    for name, theirs in recorded.items():
        harness.close(ours[name], theirs, f"{case}/{name}", 1e-5)
    official = tables.export(loaded.table, grads["denoiser"])
    harness.close_gradients(official, fixture.under(f"grad/{case}"))
    if any(name.startswith(f"grad_proj/{case}/") for name in fixture.tensors):
        ours = harness.official_projector(grads["projectors"])
        harness.close_gradients(ours, fixture.under(f"grad_proj/{case}"))
