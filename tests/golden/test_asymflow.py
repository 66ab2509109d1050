"""AsymFlow against the official code, in our signs: t = 1 - sigma, v = -u."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.convert import actions, asymflow
from pixelflow_jax.flow.asymmetric import PredictAsymmetric
from pixelflow_jax.flow.basis import BASIS, Gram
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Stage, Straight
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.flow.solver import Euler, Heun
from pixelflow_jax.flow.time import Grid, LogitNormal
from pixelflow_jax.losses.context import Context
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.objective import Drawn, Objective
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.losses.weighted_terms import WeightedTerms
from pixelflow_jax.models.interface import Condition, Inputs, Output, network
from pixelflow_jax.nn.patch import patchify
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.sampling.fields import Net
from pixelflow_jax.sampling.sampler import Noise, Sampler
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.tensors import mapping as tables
from pixelflow_jax.tensors.paths import nested
from tests.convert import checkpoints
from tests.golden import harness
from tests.golden.test_training import Recorded

KIND = "asymflow_prediction"
OWN = ("base_rank", "num_timesteps", "sigma_min")


def prediction(fixture, **changes) -> PredictAsymmetric:
    """The fixture's, with the official time."""
    o = fixture.config
    return PredictAsymmetric(
        **{
            "rank": o["model"]["base_rank"],
            "patch": o["model"]["patch_size"],
            "tau": o["train_sigma_min"],
            "sampling_tau": o["model"]["sigma_min"],
            "loss_tau": o["loss_sigma_min"],
            "timestep": "noise",
            **changes,
        }
    )


def formulas(fixture) -> list[str]:
    o = fixture.config
    return [
        f"rank{rank}_scale{scale:g}" for rank in o["ranks"] for scale in o["scales"]
    ]


@harness.parametrize(KIND, None, formulas)
def test_formulas(fixture, case):
    rank, scale = (part.lstrip("rankscle") for part in case.split("_"))
    ours = prediction(fixture, rank=int(rank), scale=float(scale))
    given, recorded = fixture.under("in/pred"), fixture.under(f"out/pred/{case}")
    constants = {BASIS: given["basis_full"][:, : ours.rank]}
    wanted = ours.constant_shapes(given["x"].shape[1])
    constants = {name: constants[name] for name in wanted}  # none at the ends
    image, noise, x_t = (harness.nhwc(given[name]) for name in ("x", "noise", "x_t"))
    out, t, sigma = harness.nhwc(given["net_output"]), given["t"], given["sigma"]
    point = Stage().draw(image, noise, t)
    harness.close(point.x_t, x_t, "x_t", 1e-6)
    told, timestep = ours.inputs(x_t, t)
    k = recorded["input_scale"]
    harness.close(told, k[:, None, None, None] * x_t, "inputs", 1e-5)
    harness.close(timestep, recorded["net_sigma"], "net_sigma", 1e-5)
    weight = fixture.tensors["out/pred/loss_weight"] ** 2
    harness.close(ours.loss_weight(point), weight, "loss_weight", 2e-6)
    # Below sigma .5 the official float32 divides its own rounding by sigma.
    tolerance = np.where(sigma > 0.5, 1e-5, np.where(sigma > 0.02, 3e-5, 1.5e-4))
    for mode, one in (("train", ours), ("sample", ours.for_sampling())):
        bound = one.bind(constants)
        found = {
            "velocity": bound.velocity(out, x_t, t),
            "clean": bound.clean(out, x_t, t),
        }
        for name, array in found.items():
            theirs = harness.nhwc(recorded[f"{mode}/{name}"])
            for i, allowed in enumerate(tolerance):
                harness.close(array[i], theirs[i], f"{case}/{mode}/{name}/{i}", allowed)
    bound = ours.bind(constants)
    context = Context((point,), Output((out,), ()), bound)
    loss = FlowMatching()(context).mean()[None]
    harness.close(loss, recorded["train/loss"], f"{case}/loss", 1e-4)
    if "target" in recorded:
        right = bound.velocity(harness.nhwc(recorded["target"]), x_t, t)
        sure = sigma > 0.5
        harness.close(right[sure], (image - noise)[sure], f"{case}/target", 1e-5)


@harness.parametrize(KIND, None, lambda fixture: ["pca"])
def test_the_basis_of_images(fixture, case):
    o, patch = fixture.config["pca"], fixture.config["model"]["patch_size"]
    images = harness.nhwc(fixture.tensors["in/pca/images01"] * 2 - 1)
    batches = [images[i : i + o["batch"]] for i in range(0, len(images), o["batch"])]
    recorded = fixture.under("out/pca")
    gram = Gram(patch)
    for batch in batches:
        gram.add(batch[: o["num_images"] - gram.images])
    harness.close(gram.matrix, recorded["gram"], "gram", 1e-6)
    harness.close(gram.directions()[0], recorded["eigenvalues"], "eigenvalues", 1e-6)
    ours = prediction(fixture, rank=o["rank"], images=o["num_images"])
    basis = ours.constants(iter(batches))[BASIS]
    harness.close(basis @ basis.T, recorded["projector"], "projector", 1e-5)
    signs = np.sign((basis * recorded["proj_mat"]).sum(0))
    harness.close(basis * signs, recorded["proj_mat"], "proj_mat", 1e-5)


@harness.parametrize(KIND, None, lambda fixture: ["bottleneck"])
def test_the_bottleneck_begins_as_the_basis(fixture, case):
    loaded = model(fixture)
    rows = [row for row in loaded.table if "x_embedder.proj1.weight" in row.names()]
    (row,) = rows
    kernel = row.layout.load(fixture.tensors["in/bottleneck/proj1_before"])
    params = {**loaded.params, "patch_embed": {"kernel": kernel}}
    constants = {BASIS: loaded.basis}
    begun = prediction(fixture).init(params, constants)["patch_embed"]["kernel"]
    theirs = fixture.tensors["out/bottleneck/proj1_after"]
    harness.close(row.layout.export(np.asarray(begun)), theirs, "proj1", 1e-6)


@dataclasses.dataclass
class Model:
    """The network with its weights and its basis."""

    config: object
    network: object
    params: dict
    table: list
    basis: np.ndarray


@functools.cache
def model(fixture, feature_layer: int | None = None) -> Model:
    official = fixture.config["model"].items()
    kwargs = {k: v for k, v in official if k not in OWN} | {"use_bottleneck": True}
    config = harness.pixelgen_config(kwargs, feature_layer=feature_layer)
    net, table = network(config, harness.EXACT), asymflow.table(config)
    official = fixture.under("params")
    buffers = asymflow.buffers(config, prediction(fixture))
    for name, array in buffers.items():
        harness.close(array, official.pop(name), name, 1e-6)
    flat = {k: v.read() for k, v in tables.imported(table, official).items()}
    params = nested(flat)
    basis = params.pop(CONSTANTS)[BASIS]
    assert jax.tree.structure(params) == jax.tree.structure(net.shapes())
    return Model(config, net, jax.tree.map(jnp.asarray, params), table, basis)


@harness.parametrize(KIND, None, lambda fixture: fixture.config["scales"])
def test_forward(fixture, case):
    loaded, ours = model(fixture), prediction(fixture, scale=case)
    ours = ours.for_sampling().bind({BASIS: loaded.basis})
    given = fixture.under("in/model")
    x_t, t = harness.nhwc(given["forward_x_t"]), 1 - given["forward_sigma"]
    labels = given["labels"].astype(np.int32)

    @jax.jit
    def run(params):
        inputs = Inputs(*ours.inputs(x_t, t), Condition(labels=labels))
        out = loaded.network.apply(params, (inputs,)).pred[0]
        return out, ours.velocity(out, x_t, t)

    out, velocity = run(loaded.params)
    recorded = fixture.under(f"out/model/scale{case:g}")
    harness.close(harness.nchw(velocity), recorded["velocity"], "velocity", 1e-5)
    harness.close(-harness.nchw(velocity), recorded["u"], "u", 1e-5)
    packed = patchify(-out, loaded.config.patch)
    packed = packed.reshape(*packed.shape[:2], -1)
    harness.close(packed, recorded["net_output_packed"], "net_output_packed", 1e-5)


@harness.parametrize(KIND, None, lambda fixture: ["step"])
def test_training_step(fixture, case):
    o, given = fixture.config, fixture.under("in/model")
    loaded = model(fixture, o["repa"]["cache_after_block"] + 1)
    law = o["timestep"]
    time = LogitNormal(mean=-law["logit_normal_mean"], std=law["logit_normal_std"])
    features = given["dst_feature"]
    this = Objective(
        model=loaded.config,
        network=loaded.network,
        stages=Straight().stages(),
        prediction=prediction(fixture).bind({BASIS: loaded.basis}),
        time=time,
        terms=WeightedTerms(
            terms=[FlowMatching(), Repa(weight=o["repa"]["loss_weight"])],
            teachers=Teachers(dino=Recorded(features_=features)),
        ),
        conditioner=ClassLabels(),
    )
    image, noise = harness.nhwc(given["x"]), harness.nhwc(given["noise"])
    recorded = fixture.under("out/train")
    # Sigma is clamped to [t_min, 1].
    t = jnp.minimum(time.transform(-given["t_normal_draw"]), 1 - o["t_min"])
    sigma = recorded["sigma"]
    forced = np.abs((1 - t) - sigma) > 1e-5  # samples whose time was set by hand
    t = jnp.where(forced, 1 - sigma, t)
    labels = given["labels"].astype(np.int32)
    keys = jax.random.split(jax.random.key(0), len(t))
    point = Stage().draw(image, noise, t)
    draws = Drawn(image, (point,), (Condition(labels=labels),), keys)
    params = {"denoiser": loaded.params}
    proj = fixture.under("params_proj")
    params["projectors"] = harness.repa_layers(proj, "projector")

    @jax.jit
    def run(params):
        grad = jax.value_and_grad(this.loss, has_aux=True)
        (total, means), grads = grad(params, draws, {"dino": {}}, {})
        context = this.context(params, draws, {"dino": {}})
        return total, means, grads, context.velocity()[0], FlowMatching()(context)

    total, means, grads, velocity, each = run(params)
    weight = o["repa"]["loss_weight"]
    squares = sum(jnp.sum(g * g) for g in jax.tree.leaves(grads))
    found = {
        # REPA's is minus the cosine there, 1 - the cosine here.
        "loss": total[None] - weight,
        "loss_diffusion": means["FlowMatching"][None],
        "loss_align": weight * (means["Repa"][None] - 1),
        "loss_diffusion_per_sample": each,
        "grad_norm_total": jnp.sqrt(squares)[None],
        "t": t,
        "sigma": 1 - t,
        "x_t": harness.nchw(point.x_t),
        "u": -harness.nchw(velocity),
    }
    for name, theirs in recorded.items():
        harness.close(found[name], theirs, name, 2e-5)
    rows = [row for row in loaded.table if CONSTANTS not in row.paths()[0]]
    harness.close_gradients(
        tables.export(rows, grads["denoiser"]), fixture.under("grad")
    )
    ours = harness.official_repa(grads["projectors"], "projector")
    harness.close_gradients(ours, fixture.under("grad_proj"))


@harness.parametrize(KIND, None, lambda fixture: ["heun"])
def test_sampler(fixture, case):
    o, loaded = fixture.config["sampler"], model(fixture)
    solver = {"FlowHeunODE": Heun(), "FlowEulerODE": Euler()}[o["name"]]
    low, high = o["guidance_interval_sigma"]
    sampler = Sampler(
        stages=Straight().stages(),
        prediction=prediction(fixture),
        guidance=ClassifierFree(
            scale=o["guidance_scale"],
            low=1 - high,
            high=1 - low,
            interval="[]",
            interval_time="evaluation",
        ),
        solver=solver,
        grid=Grid(steps=o["steps"]),
    )
    given = fixture.under("in/sampler")
    labels = given["labels"].astype(np.int32)
    null = np.full_like(labels, loaded.config.num_classes)
    conds = Condition(labels=labels), Condition(labels=null)
    noise, frozen = harness.nhwc(given["noise"]), {CONSTANTS: {BASIS: loaded.basis}}

    @jax.jit
    def run(params, noise):
        net = Net(loaded.network, params, frozen)
        fields = lambda index: sampler.fields(index, net, *conds, shape=noise.shape)
        return sampler.follow(
            fields, Noise(lambda i: noise, lambda i, step: noise)
        ).images

    images = run(loaded.params, noise)
    recorded = fixture.tensors["out/sampler/final"]
    harness.close(harness.nchw(images), recorded, "final", 1e-5)


@harness.parametrize(KIND, None, lambda fixture: ["file"])
def test_official_weights_there_and_back(fixture, case, tmp_path):
    theirs, loaded = fixture.under("params"), model(fixture)
    source = checkpoints.save(theirs, tmp_path / "official.safetensors")
    flags = [f"context_start={loaded.config.context_start}", "feature_layer=2"]
    sets = [x for flag in flags for x in ("--set", flag)]
    checkpoints.run("from-torch", source, tmp_path / "ours", *sets)
    ref = published.find(tmp_path / "ours")
    wanted = prediction(fixture, tau=1e-6, sampling_tau=0.04, loss_tau=0.05)
    assert ref.description.config.prediction == wanted
    np.testing.assert_array_equal(ref.constants()[BASIS], theirs["proj_buffer"])
    back = tmp_path / "back.safetensors"
    checkpoints.run("to-torch", tmp_path / "ours", back)
    again = {k: v.read() for k, v in actions.reader.opened(back).items()}
    assert again.keys() == theirs.keys()
    for name, array in theirs.items():
        if "freqs" in name:  # computed, to the last bit of an angle
            np.testing.assert_allclose(again[name], array, atol=1e-6)
        else:
            np.testing.assert_array_equal(again[name], array)
    theirs["scale_buffer"] = np.array([1.7], np.float32)
    name = "feat_rope.base_rope.freqs_cos"
    theirs[name] = theirs[name] + 1
    broken = checkpoints.save(theirs, tmp_path / "broken.safetensors")
    with pytest.raises(actions.ConvertError, match="differs: feat_rope.base_rope"):
        actions.understood(broken)
