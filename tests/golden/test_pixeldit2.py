"""PixelDiT2 against the official code: forward, training step, samplers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from pixelflow_jax.conditioning.grounded import GroundedLabels
from pixelflow_jax.convert import pixeldit2
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Straight
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.solver import Euler, Heun
from pixelflow_jax.flow.time import Grid, LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.objective import Drawn, Objective
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.losses.weighted_terms import WeightedTerms
from pixelflow_jax.models.grounding import GROUNDING
from pixelflow_jax.models.interface import Condition, Inputs
from pixelflow_jax.models.pixeldit2 import PixelDiT2
from pixelflow_jax.sampling.fields import Net
from pixelflow_jax.sampling.sampler import Noise, Sampler
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov2_table import Geometry
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.tensors import mapping as tables
from tests.convert import checkpoints
from tests.golden import harness
from tests.golden.test_training import Recorded

KIND = "grounded_dit_forward"
TRAINER = {
    "p_mean": -0.8,
    "p_std": 0.8,
    "null_condition_p": 0.1,
    "grounding_drop_p": None,  # that of the class
    "grounding_joint_drop_p": 0.0,
    "grounding_drop_mode": "independent",
    "repa_align_layer": None,
    "repa_weight": 0.5,
    "noise_scale": 1.0,
    "t_eps": 0.05,
}
SAMPLER = {
    "num_steps": 50,
    "guidance": 2.4,
    "guidance_interval_min": 0.1,
    "guidance_interval_max": 0.9,
    "noise_scale": 1.0,
    "t_eps": 0.05,
}


@dataclasses.dataclass(kw_only=True)
class StubEncoder(DinoV2):
    """Prepares images as DINOv2 does, with another network behind."""

    def features(self, params, images, layers=(-1,)):
        x = self.prepared(images)
        b, h, w, c = x.shape
        p = self.sizes.patch
        cut = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 5, 2, 4)
        flat = cut.reshape(b, -1, c * p * p)
        tokens = jnp.einsum("bnd,de->bne", flat, params["W"], precision="highest")
        return {layer: jnp.tanh(tokens) for layer in layers}


def config(fixture, patch: int, feature_layer: int, **more) -> PixelDiT2:
    o = fixture.config["model"]
    known = dict.fromkeys(
        "in_channels hidden_size num_heads depth patch_size num_classes "
        "in_context_len in_context_start".split()
    ) | {"grounding_proj_blocks": 1, "grounding_proj_heads": 0}
    known |= {"mlp_hidden_multiple": 0, "single_silu_cond": False}
    # Attention's dropout does nothing there; the other one is off where it is recorded.
    o = harness.take(o, known | {"attn_dropout": 0.0, "proj_dropout": 0.0})
    assert not o["proj_dropout"]
    geometry = Geometry(
        width=fixture.config["encoder_feature_dim"], heads=1, depth=1, patch=patch
    )
    return PixelDiT2(
        num_classes=o["num_classes"],
        channels=o["in_channels"],
        patch=o["patch_size"],
        width=o["hidden_size"],
        heads=o["num_heads"],
        depth=o["depth"],
        context_length=o["in_context_len"],
        context_start=o["in_context_start"],
        feature_layer=feature_layer,
        mlp_multiple=o["mlp_hidden_multiple"],
        encoder=StubEncoder(geometry=geometry, base_patch=o["patch_size"]),
        ground_depth=o["grounding_proj_blocks"],
        ground_heads=o["grounding_proj_heads"] or 0,
        **{"single_silu": o["single_silu_cond"], **more},
    )


def first_patch(fixture) -> int:
    """The encoder's patch in training and in sampling."""
    return fixture.config["encoder_patches"][0]


@functools.cache
def model(fixture, patch: int, feature_layer: int = 1, single_silu=False):
    ours = config(fixture, patch, feature_layer, single_silu=single_silu)
    return harness.Loaded(ours, fixture.under("params"), pixeldit2.table(ours))


def frozen(fixture, patch: int) -> dict:
    return {
        GROUNDING: {"W": jnp.asarray(fixture.tensors[f"in/encoder_W_patch{patch}"])}
    }


def cases(fixture) -> list[str]:
    names = {
        "/".join(key.split("/")[1:3])
        for key in fixture.tensors
        if key[:4] == "out/" and "/enc" in key
    }
    return sorted(names)


def without_context(fixture, recorded: dict) -> dict:
    """The first block's output without the tokens of the class."""
    o = fixture.config["model"]
    ahead = 0 if o["in_context_start"] else o["in_context_len"]
    cut = {k: v[:, ahead:] for k, v in recorded.items() if k == "block0"}
    return recorded | cut


@harness.parametrize(KIND, None, cases)
def test_forward(fixture, case):
    size, options = case.split("/")
    patch = int(options.removeprefix("enc").split("_")[0])
    silu = fixture.config["model"].get("single_silu_cond", False)
    single = silu or options.endswith("_single_silu")
    loaded = model(fixture, patch, single_silu=single)
    given, recorded = fixture.under(f"in/{size}"), fixture.under(f"out/{case}")
    image, t = harness.nhwc(given["x"]), given["t"]
    labels, params = given["y"].astype(np.int32), frozen(fixture, patch)

    @jax.jit
    def run(weights, looks):
        cond = Condition(labels=labels, grounding=looks)
        batch = (Inputs(image, t, cond),)
        module = loaded.module(weights)
        (known,) = module.precompute(batch)
        out = loaded.network.apply(weights, batch, frozen_params=params)
        encoder = loaded.config.encoder
        return out.pred[0], {
            "encoder_input": encoder.prepared(image),
            "encoder_tokens": encoder.features(params[GROUNDING], image)[-1],
            "grounding": module.ground(params[GROUNDING], image, known.ground),
            "t_embedder": module.time_embed(t),
            "block0": out.features[0],
        }

    recorded = without_context(fixture, recorded)

    looks = np.ones(len(t), bool)
    pred, found = run(loaded.params, looks)
    found["output"] = harness.nchw(pred)
    found["encoder_input"] = harness.nchw(found["encoder_input"])
    skipped, _ = run(loaded.params, ~looks)
    found["output_skip"] = harness.nchw(skipped)
    masked, _ = run(loaded.params, ~given["skip_mask"].astype(bool))
    found["output_mask"] = harness.nchw(masked)
    left = {"s_embedder", "final_tokens"}
    left |= {name for name in recorded if name.startswith("block")} - {"block0"}
    assert set(recorded) - left <= set(found)
    for name in set(recorded) - left:
        ours = np.asarray(found[name])[: len(recorded[name])]
        harness.close(ours, recorded[name], f"{case}/{name}", 2e-5)


@harness.parametrize(KIND, None, lambda fixture: ["file"])
def test_official_weights_there_and_back(fixture, case, tmp_path):
    theirs, ours = fixture.under("params"), config(fixture, first_patch(fixture), 1)
    source = checkpoints.save(theirs, tmp_path / "official.safetensors")
    names = "feature_layer context_start dropout mlp_multiple single_silu".split()
    flags = [x for n in names for x in ("--set", f"{n}={getattr(ours, n)}")]
    checkpoints.run(
        *("from-torch", source, tmp_path / "ours", "--image-size", 16), *flags
    )
    found, params = checkpoints.read(tmp_path / "ours")
    model = dataclasses.replace(found.model, encoder=ours.encoder)
    assert model == dataclasses.replace(ours, ground_heads=ours.heads)
    assert found.conditioner == GroundedLabels() and len(jax.tree.leaves(params))
    checkpoints.run("to-torch", tmp_path / "ours", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    checkpoints.identical(back, theirs)


@harness.parametrize(KIND, None, lambda fixture: fixture.config["train_cases"])
def test_training_step(fixture, case):
    spec = fixture.config["train_cases"][case]
    o = harness.take(spec["trainer"], TRAINER)
    given, recorded = (
        fixture.under(f"in/train/{case}"),
        fixture.under(f"out/train/{case}"),
    )
    patch, silu = first_patch(fixture), fixture.config["model"].get("single_silu_cond")
    loaded = model(fixture, patch, o["repa_align_layer"], bool(silu))
    image, noise = harness.nhwc(given["x"]), harness.nhwc(given["noise"])
    features = harness.stub_tokens(
        (image + 1) / 2, given["teacher_W"], spec["teacher_patch"]
    )
    own = o["grounding_drop_p"]
    conditioner = GroundedLabels(
        drop=o["null_condition_p"],
        grounding_drop=o["null_condition_p"] if own is None else own,
        joint_drop=o["grounding_joint_drop_p"],
        together=o["grounding_drop_mode"],
    )
    stages = Straight(noise_scale=o["noise_scale"]).stages()
    time = LogitNormal(mean=o["p_mean"], std=o["p_std"])
    this = Objective(
        model=loaded.config,
        network=loaded.network,
        stages=stages,
        prediction=PredictClean(t_eps=o["t_eps"]),
        time=time,
        terms=WeightedTerms(
            terms=[FlowMatching(), Repa(weight=o["repa_weight"], grid="pool")],
            teachers=Teachers(dino=Recorded(features_=features)),
        ),
        conditioner=conditioner,
    )
    cond = conditioner.encode({}, {"label": jnp.asarray(given["y"].astype(np.int32))})
    null = conditioner.null({}, cond, loaded.config)
    draws = (given[f"{n}_uniform"] for n in ("class", "grounding", "joint"))
    cond = conditioner.dropped_by(*draws, cond, null)
    t = time.transform(jnp.asarray(given["t_normal_draw"]))
    keys = jax.random.split(jax.random.key(0), len(t))
    drawn = Drawn(image, (stages[0].draw(image, noise, t),), (cond,), keys)
    params = {"denoiser": loaded.params}
    params["projectors"] = harness.repa_layers(fixture.tensors, "params_proj", "/")
    frozen_params = {"dino": {}, **frozen(fixture, patch)}

    @jax.jit
    def run(params):
        grad = jax.value_and_grad(this.loss, has_aux=True)
        return grad(params, drawn, frozen_params, {})

    (total, means), grads = run(params)
    squares = sum(jnp.sum(g * g) for g in jax.tree.leaves(grads))
    found = {
        "loss/loss": total[None],
        "loss/fm_loss": means["FlowMatching"][None],
        "loss/cos_loss": means["Repa"][None],
        "grad_norm_total": jnp.sqrt(squares)[None],
        "y_after_drop": cond.labels,
        "grounding_drop": ~cond.grounding,
    }
    assert set(found) == set(recorded)
    for name, theirs in recorded.items():
        harness.close(np.float32(found[name]), theirs, f"{case}/{name}", 1e-5)
    official = tables.export(loaded.table, grads["denoiser"])
    harness.close_gradients(official, fixture.under(f"grad/{case}"))
    if any(name.startswith(f"grad_proj/{case}/") for name in fixture.tensors):
        ours = harness.official_repa(grads["projectors"], f"grad_proj/{case}", "/")
        recorded = {k: v for k, v in fixture.tensors.items() if k in ours}
        harness.close_gradients(ours, recorded)


@harness.parametrize(KIND, None, lambda fixture: ["heun", "euler"])
def test_sampler(fixture, case):
    o, patch = harness.take(fixture.config["sampler"], SAMPLER), first_patch(fixture)
    silu = bool(fixture.config["model"].get("single_silu_cond"))
    loaded = model(fixture, patch, single_silu=silu)
    given = fixture.under(f"in/sampler/{case}")
    low = o["guidance_interval_min"]
    sampler = Sampler(
        stages=Straight(noise_scale=o["noise_scale"]).stages(),
        prediction=PredictClean(t_eps=o["t_eps"]),
        guidance=ClassifierFree(
            scale=o["guidance"],
            low=low if low > 0 else -np.inf,
            high=o["guidance_interval_max"],
            interval_time="evaluation",
        ),
        solver={"heun": Heun(), "euler": Euler()}[case],
        grid=Grid(steps=o["num_steps"]),
    )
    labels = jnp.asarray(given["labels"].astype(np.int32))
    conditioner = GroundedLabels()
    cond = conditioner.encode({}, {"label": labels})
    null = conditioner.null({}, cond, loaded.config)
    noise, frozen_params = harness.nhwc(given["noise"]), frozen(fixture, patch)

    @jax.jit
    def run(weights):
        net = Net(loaded.network, weights, frozen_params)
        fields = lambda index: sampler.fields(index, net, cond, null, shape=noise.shape)
        whole = Noise(lambda index: noise, lambda index, step: noise)
        return sampler.follow(fields, whole).images

    images = harness.nchw(run(loaded.params))
    recorded = fixture.tensors[f"out/sampler/{case}/x_trajs"]
    harness.close(images, recorded[-1], f"{case}/final", 2e-5)
