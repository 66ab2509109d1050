"""PixelREPA against the official code: training step, adapter, sampler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pixelflow_jax.conditioning.drop import drop
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.convert import pixelgen
from pixelflow_jax.convert.rows import (
    attention_rows,
    gated_mlp_rows,
    modulation_rows,
    time_and_class_rows,
)
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Straight
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.solver import Euler, Heun
from pixelflow_jax.flow.time import Grid, LogitNormal
from pixelflow_jax.losses import adapter
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.objective import Drawn, Objective
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.losses.weighted_terms import WeightedTerms
from pixelflow_jax.models.interface import Condition
from pixelflow_jax.sampling.fields import Net
from pixelflow_jax.sampling.sampler import Noise, Sampler
from pixelflow_jax.teachers.dinov2 import MEAN, STD
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.tensors import mapping as tables
from pixelflow_jax.tensors.layouts import leading
from pixelflow_jax.tensors.mapping import Row, linear_rows
from tests.golden import harness
from tests.golden.test_training import Recorded

KIND, ADAPTER = "repa_adapter", "masked_transformer_adapter."
case_names = lambda fixture: fixture.config["cases"]


@functools.cache
def model(fixture) -> harness.Loaded:
    jit, whole = fixture.config["jit"], fixture.config
    kwargs = {k: v for k, v in jit.items()} | {
        "input_size": whole["img_size"],
        "in_channels": 3,
        "num_classes": whole["num_classes"],
        "use_bottleneck": True,
    }
    start = jit["in_context_start"]
    config = harness.pixelgen_config(kwargs, feature_layer=start)
    official = {
        k.removeprefix("net."): v
        for k, v in fixture.under("params").items()
        if k != "net.mask_token"
    }
    return harness.Loaded(config, official, pixelgen.table(config))


def adapter_table(fixture, projected: bool) -> list[Row]:
    """The adapter's official names, those of its projection where it has one."""
    depth = fixture.config["adapter"]["depth"]
    rows = [*time_and_class_rows(), Row("context", "in_context_posemb", leading)]
    rows += attention_rows("stack", range(depth), bias=True)
    rows += gated_mlp_rows("stack", range(depth), bias=True)
    rows += modulation_rows("stack", range(depth), 1)
    rows.append(Row("mask", "mask_token", MASK))
    if projected:
        norm = "projection_layer.mlp.1"
        rows += linear_rows("projection/hidden", "projection_layer.mlp.0")
        rows += [Row(f"projection/{n}", f"{norm}.{n}") for n in ("weight", "bias")]
        rows += linear_rows("projection/out", "projection_layer.mlp.3")
    return rows


MASK = type(leading)(lambda a: a[0, 0], lambda a: a[None, None])


def adapter_params(fixture, case: str, projected: bool) -> dict:
    official = {
        k.removeprefix(ADAPTER): v for k, v in fixture.under(f"params_{case}").items()
    }
    official["mask_token"] = fixture.tensors["params/net.mask_token"]
    rows = adapter_table(fixture, projected)
    used = {key for row in rows for key in row.keys()}
    # Where widths agree, the official projection is there without being used.
    unused = {k for k in official if k not in used}
    assert all(k.startswith("projection_layer.") and not projected for k in unused)
    given = {k: v for k, v in official.items() if k in used}
    return jax.tree.map(jnp.asarray, tables.load(rows, given))


def teacher_tokens(fixture, case: str, options: dict) -> np.ndarray:
    """The stand-in for DINOv2 on resized images."""
    x = harness.nhwc(fixture.tensors["in/x"])
    side = options["repa_image_size"]
    normal = ((x + 1) / 2 - MEAN) / STD
    shape = (len(x), side, side, 3)
    resized = np.asarray(jax.image.resize(normal, shape, "linear", antialias=False))
    recorded = fixture.under(f"out/{case}")
    harness.close(harness.nchw(resized), recorded["repa_input"], "repa_input", 1e-5)
    # The stand-in of the harness takes images in [0, 1].
    tokens = harness.stub_tokens(
        resized * 0.25 + 0.5,
        fixture.tensors[f"in/{case}/dino_W"],
        options["repa_patch_size"],
    )
    harness.close(tokens, recorded["dino_tokens"], "dino_tokens", 1e-5)
    return tokens


@harness.parametrize(KIND, None, case_names)
def test_training_step(fixture, case, monkeypatch):
    o, whole = fixture.config["cases"][case], fixture.config
    loaded, given = model(fixture), fixture.under("in")
    recorded = fixture.under(f"out/{case}")
    features = teacher_tokens(fixture, case, o)
    projected = o["dino_dim"] != loaded.config.width
    ours = adapter.MaskedAdapter(
        depth=whole["adapter"]["depth"],
        heads=whole["adapter"]["num_heads"],
        mask=o["mask_ratio"],
        context_length=whole["adapter"]["in_context_len"],
    )
    draws_of_mask = given["mask_uniform"].reshape(len(given["x"]), -1)
    monkeypatch.setattr(adapter, "uniform", lambda keys, count: draws_of_mask)
    stages = Straight(noise_scale=o.get("noise_scale", 1.0)).stages()
    time = LogitNormal(mean=whole["P_mean"], std=whole["P_std"])
    conditioner = ClassLabels(drop=whole["label_drop_prob"])
    this = Objective(
        model=loaded.config,
        network=loaded.network,
        stages=stages,
        prediction=PredictClean(t_eps=whole["t_eps"]),
        time=time,
        terms=WeightedTerms(
            terms=[
                FlowMatching(),
                Repa(weight=whole["loss_weight_mta"], projector=ours),
            ],
            teachers=Teachers(dino=Recorded(features_=features)),
        ),
        conditioner=conditioner,
    )
    image, noise = harness.nhwc(given["x"]), harness.nhwc(given["noise"])
    t = time.transform(jnp.asarray(given["t_normal_draw"]))
    cond = Condition(labels=jnp.asarray(given["labels"].astype(np.int32)))
    null = conditioner.null({}, cond, loaded.config)
    cond = drop(given["label_drop_uniform"], cond, null, conditioner.drop)
    keys = jax.random.split(jax.random.key(0), len(t))
    point = stages[0].draw(image, noise, t)
    drawn = Drawn(image, (point,), (cond,), keys)
    params = {
        "denoiser": loaded.params,
        "projectors": {"Repa": adapter_params(fixture, case, projected)},
    }

    @jax.jit
    def run(params):
        grad = jax.value_and_grad(this.loss, has_aux=True)
        (total, means), grads = grad(params, drawn, {"dino": {}}, {})
        context = this.context(params, drawn, {"dino": {}})
        return (
            total,
            means,
            grads,
            context.output,
            this.terms.terms[1]._adapted(context),
        )

    total, means, grads, output, adapted = run(params)
    squares = sum(jnp.sum(g * g) for g in jax.tree.leaves(grads))
    found = {
        "loss/loss": total[None],
        "loss/loss_jit": means["FlowMatching"][None],
        "loss/loss_mta": means["Repa"][None],
        "labels_after_drop": cond.labels,
        "t": t,
        "z": harness.nchw(point.x_t),
        "x_pred": harness.nchw(output.pred[0]),
        "encoder_tokens": output.features[0],
        "mask_keep": draws_of_mask > o["mask_ratio"],
        "adapter_out": adapted[0],
        "grad_norm_total": jnp.sqrt(squares)[None],
    }
    elsewhere = ("dino_tokens", "repa_input", "adapter_in", "adapter_block", "sampler_")
    left = {name for name in recorded if name.startswith(elsewhere)}
    assert set(recorded) - left == set(found)
    for name in found:
        harness.close(np.float32(found[name]), recorded[name], f"{case}/{name}", 2e-5)
    official = tables.export(loaded.table, grads["denoiser"])
    mine = {f"net.{name}": grad for name, grad in official.items()}
    rows = adapter_table(fixture, projected)
    adapters = tables.export(rows, grads["projectors"]["Repa"])
    mine |= {f"{ADAPTER}{name}": grad for name, grad in adapters.items()}
    mine["net.mask_token"] = mine.pop(f"{ADAPTER}mask_token")
    harness.close_gradients(mine, fixture.under(f"grad/{case}"))


@harness.parametrize(KIND, None, case_names)
def test_sampler(fixture, case):
    o, whole, loaded = fixture.config["cases"][case], fixture.config, model(fixture)
    low, high = whole["interval"]
    sampler = Sampler(
        stages=Straight(noise_scale=o.get("noise_scale", 1.0)).stages(),
        prediction=PredictClean(t_eps=whole["t_eps"]),
        guidance=ClassifierFree(
            scale=whole["cfg"],
            low=low or -np.inf,  # no lower end at 0
            high=high,
            interval_time="evaluation",
        ),
        solver=Euler() if o.get("method") == "euler" else Heun(),
        grid=Grid(steps=whole["steps"]),
    )
    labels = fixture.tensors[f"in/{case}/sampler_labels"].astype(np.int32)
    conds = (
        Condition(labels=labels),
        Condition(labels=np.full_like(labels, whole["num_classes"])),
    )
    noise = harness.nhwc(fixture.tensors[f"in/{case}/sampler_noise"])
    recorded = fixture.under(f"out/{case}")
    first = harness.nhwc(recorded["sampler_z_per_call"][0])
    begun = sampler.stages[0].begin(None, noise)
    harness.close(begun, first, f"{case}/start", 1e-6)

    @jax.jit
    def run(params):
        net = Net(loaded.network, params)
        fields = lambda index: sampler.fields(index, net, *conds, shape=noise.shape)
        given = Noise(lambda index: noise, lambda index, step: noise)
        return sampler.follow(fields, given).images

    images = harness.nchw(run(loaded.params))
    harness.close(images, recorded["sampler_final"], f"{case}/final", 1e-5)
