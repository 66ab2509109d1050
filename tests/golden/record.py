"""Our own outputs, recorded once parity with the official code was established.

    python tests/golden/record.py           writes recorded.safetensors anew
    python tests/golden/record.py --check   compares instead, and fails on a difference

Only outputs are stored. Weights and inputs come from formulas: an array called `name`
is numpy's RandomState(crc32(name)).standard_normal(shape) in float32, times a scale and
plus an offset. Weights have their official names and shapes:

    norm weights                1 + 0.15 z
    other vectors               0.1 z
    embedding tables            0.5 z
    matrices [out, in]          z / sqrt(in)

A new model adds a function to RECORDERS; it returns its outputs by name.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
import zlib
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from pixelflow_jax.conditioning.drop import drop
from pixelflow_jax.convert import pixelflow, pixelgen, pixnerd
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Stage, block_noise, pyramid
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
from pixelflow_jax.flow.solver import AdamsBashforth, Euler, Heun, Steps
from pixelflow_jax.flow.time import Grid, LogitNormal
from pixelflow_jax.losses.context import Context
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.models.interface import Condition, Inputs, Network, network
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixnerd import LinearDecoder, NeuralField, PixNerd
from pixelflow_jax.nn.embed import rotary_table
from pixelflow_jax.nn.field import dct_features
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.fields import Net
from pixelflow_jax.sampling.sampler import Sampler
from pixelflow_jax.tensors import mapping as tables

FILE = pathlib.Path(__file__).with_name("recorded.safetensors")
TOLERANCE = 5e-5  # of the larger of 1 and the largest value
EXACT = Precision(compute="float32", matmul="highest")
MODEL = PixNerd(
    num_classes=5,
    patch=4,
    width=24,
    heads=3,
    depth=2,
    feature_layer=1,
    decoder=NeuralField(width=6, depth=2),
    stack=StackConfig(remat="none"),
)
BASELINE = PixNerd(
    num_classes=5,
    patch=4,
    width=24,
    heads=3,
    depth=2,
    feature_layer=1,
    decoder=LinearDecoder(),
)
SAMPLERS = {
    "euler": Euler(),
    "euler_sde": Euler(step="sde"),
    "euler_sde_preserve": Euler(step="sde_preserve"),
    "heun": Heun(),
    "heun_reuse": Heun(reuse=True),
    "adams2": AdamsBashforth(order=2),
    "adams2_logsnr": AdamsBashforth(order=2, transform="logsnr"),
    "adams3": AdamsBashforth(order=3),
    "adams4": AdamsBashforth(order=4),
}
GRADIENTS = (
    "s_embedder.proj.bias",
    "t_embedder.mlp.2.bias",
    "y_embedder.embedding_table.weight",
    "blocks.0.adaLN_modulation.0.bias",
    "blocks.0.attn.qkv.weight",
    "blocks.1.mlp.w2.weight",
    "blocks.2.param_generator1.0.bias",
    "x_embedder.embedder.0.weight",
    "final_layer.linear.weight",
)


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The standard normal array called `name`."""
    draws = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return draws.astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The official weight called `name`, by the formula above."""
    z = normal(name, shape)
    if "norm" in name:
        return 1 + np.float32(0.15) * z
    if len(shape) == 1:
        return np.float32(0.1) * z
    scale = 0.5 if "embedding_table" in name else shape[1] ** -0.5
    return np.float32(scale) * z


TABLES = {PixNerd: pixnerd, PixelFlow: pixelflow, PixelGen: pixelgen}


def model(config: PixNerd | PixelFlow | PixelGen) -> tuple[Network, dict]:
    """The network of a config, with weights by formula."""
    net = network(config, EXACT)
    table = TABLES[type(config)].table(config)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), net.shapes())
    official = {k: weight(k, v.shape) for k, v in tables.export(table, zeros).items()}
    return net, jax.tree.map(jnp.asarray, tables.load(table, official))


def image(name: str, batch: int, height: int, width: int) -> jax.Array:
    """A batch of images by formula, [batch, height, width, 3]."""
    return jnp.asarray(normal(name, (batch, height, width, 3)))


def record_tables() -> dict:
    """A few rows of the coordinate features and of a rotary table."""
    cos, sin = rotary_table(3, 5, 24, 16.0)
    return {"dct": dct_features(16)[::37], "rope_cos": cos, "rope_sin": sin}


def record_forward() -> dict:
    """Outputs and a few features at two sizes, of the field and of the baseline."""
    outputs = {}
    times, labels = jnp.array([0.15, 0.8]), Condition(labels=jnp.array([1, 5]))
    for kind, config in (("field", MODEL), ("linear", BASELINE)):
        net, params = model(config)
        for height, width in ((16, 16), (8, 20)):
            case = f"{kind}_{height}x{width}"
            out = jax.jit(net.apply)(
                params,
                (Inputs(image(case, 2, height, width), times, labels),),
            )
            outputs |= {case: out.pred[0], f"{case}_tap": out.features[0][:, :2]}
    return outputs


def record_pixelflow() -> dict:
    """Two resolutions in one packed pass, with classes and with text."""
    small = {"patch": 2, "width": 24, "heads": 3, "depth": 2, "feature_layer": 1}
    text = jnp.asarray(normal("text", (2, 5, 16)))
    mask = jnp.arange(5) < jnp.array([[3], [5]])
    conds = {
        "class": Condition(labels=jnp.array([1, 5])),
        "text": Condition(text=text, mask=mask),
    }
    outputs = {}
    for kind, cond in conds.items():
        fields = {"num_classes": 5} if kind == "class" else {"num_classes": 0}
        fields |= {} if kind == "class" else {"text_width": 16}
        net, params = model(PixelFlow(**small, **fields))
        batch = (
            Inputs(image(f"{kind}_small", 2, 4, 4), jnp.array([3.0, 170.0]), cond),
            Inputs(image(f"{kind}_large", 2, 8, 6), jnp.array([500.5, 999.0]), cond),
        )
        out = jax.jit(net.apply)(params, batch)
        outputs |= {f"{kind}_4x4": out.pred[0], f"{kind}_8x6": out.pred[1]}
        outputs[f"{kind}_tap"] = out.features[1][:, :2]
    return outputs


def record_cascade() -> dict:
    """Points of every stage, and what each jump makes of a result and fresh noise."""
    clean, outputs, end = image("cascade", 2, 16, 8), {}, None
    t = jnp.array([0.2, 0.9])
    for k, stage in enumerate(pyramid(3)):
        noise = image(f"cascade_noise{k}", 2, *stage.size(16, 8))
        point = stage.draw(clean, noise, t)
        outputs |= {f"x_t{k}": point.x_t, f"clock{k}": point.timestep}
        outputs[f"target{k}"] = PredictVelocity().target(point)
        if end is not None:
            fresh = block_noise(noise, stage.gamma)
            outputs[f"begin{k}"] = stage.begin(end, fresh)
        end = point.end
    return outputs


def record_pixelgen() -> dict:
    """JiT with and without the bottleneck and class tokens."""
    small = {"num_classes": 5, "patch": 4, "image_size": 8, "width": 24, "heads": 3}
    small |= {"depth": 3, "feature_layer": 1, "dropout": 0.0}
    variants = {
        "bottleneck": {"bottleneck": 6, "context_length": 3, "context_start": 2},
        "direct": {"context_length": 0},
    }
    outputs = {}
    for name, fields in variants.items():
        net, params = model(PixelGen(**small, **fields))
        cond = Condition(labels=jnp.array([1, 5]))
        inputs = Inputs(image(f"jit_{name}", 2, 8, 8), jnp.array([0.15, 0.8]), cond)
        out = jax.jit(net.apply)(params, (inputs,))
        outputs |= {name: out.pred[0], f"{name}_tap": out.features[0]}
    return outputs


@functools.cache
def small_model() -> tuple[Network, dict]:
    """A smaller model for the samplers, which take longest to compile."""
    field = dataclasses.replace(MODEL.decoder, depth=1)
    return model(dataclasses.replace(MODEL, depth=1, feature_layer=0, decoder=field))


def record_sampler(name: str) -> dict:
    """The last image of a solver under guidance in an interval."""
    net, params = small_model()
    start = image("start", 2, 8, 8)
    steps = jnp.asarray(normal("steps", (5, *start.shape)))
    cond, null = (
        Condition(labels=jnp.array([0, 3])),
        Condition(labels=jnp.array([5, 5])),
    )
    sampler = Sampler(
        stages=(Stage(),),
        prediction=PredictClean() if name.startswith("heun") else PredictVelocity(),
        guidance=ClassifierFree(scale=2.5, low=0.1, high=0.7, interval="(]"),
        solver=SAMPLERS[name],
        grid=Grid(steps=5, last_step=0.1, shift=2.0),
    )
    times = sampler.grid.times()

    @jax.jit
    def solve(params, x):
        field = sampler.guidance(sampler.fields(0, Net(net, params), cond, null), 0)
        return sampler.solver(field, x, Steps(times, lambda i: steps[i])).x

    return {"image": solve(params, start)}


def record_training() -> dict:
    """Loss and gradients of one batch; velocity and clean-image prediction."""
    net, params = model(MODEL)
    clean, noise = image("clean", 4, 8, 8), image("noise", 4, 8, 8)
    t = LogitNormal(mean=-0.2, shift=1.5).transform(jnp.asarray(normal("t", (4,))))
    point = Stage().draw(clean, noise, t)
    cond = Condition(labels=jnp.array([0, 1, 2, 3]))
    draw = jnp.array([0.05, 0.5, 0.1, 0.9])
    cond = drop(draw, cond, Condition(labels=jnp.full(4, 5)), 0.1)

    def loss(params, prediction):
        out = net.apply(params, (Inputs(point.x_t, point.timestep, cond),))
        return jnp.mean(FlowMatching()(Context((point,), out, prediction)))

    value, grads = jax.jit(jax.value_and_grad(lambda p: loss(p, PredictVelocity())))(
        params
    )
    official = tables.export(pixnerd.table(MODEL), grads)
    return {
        "labels": cond.labels.astype(jnp.float32),
        "loss_velocity": value,
        "loss_clean": jax.jit(lambda p: loss(p, PredictClean()))(params),
        **{f"grad/{name}": official[name] for name in GRADIENTS},
    }


RECORDERS: dict[str, Callable[[], dict]] = {
    "pixnerd/tables": record_tables,
    "pixnerd/forward": record_forward,
    "pixnerd/training": record_training,
    "pixelflow/forward": record_pixelflow,
    "pixelflow/cascade": record_cascade,
    "pixelgen/forward": record_pixelgen,
    **{
        f"pixnerd/sampler_{name}": functools.partial(record_sampler, name)
        for name in SAMPLERS
    },
}


def outputs(name: str) -> dict[str, np.ndarray]:
    """What the recorder called `name` gives now, under the names of the file."""
    # safetensors writes the memory as it lies: strided views would come out scrambled.
    found = {
        f"{name}/{k}": np.ascontiguousarray(v) for k, v in RECORDERS[name]().items()
    }
    assert all(array.dtype == np.float32 for array in found.values())
    return found


def differences(ours: dict, recorded: dict) -> list[str]:
    """What differs between outputs and their records, one line each."""
    lines = [f"not recorded: {name}" for name in sorted(set(ours) - set(recorded))]
    lines += [f"gone: {name}" for name in sorted(set(recorded) - set(ours))]
    for name in sorted(set(ours) & set(recorded)):
        mine, theirs = ours[name], recorded[name]
        if mine.shape != theirs.shape:
            lines.append(f"{name}: shape {mine.shape}, not {theirs.shape}")
            continue
        off = float(np.abs(mine - theirs).max())
        if not off <= TOLERANCE * max(1.0, float(np.abs(theirs).max())):
            lines.append(f"{name}: off by {off:.2e}")
    return lines


def main() -> None:
    """Write or check the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    ours = {k: v for name in RECORDERS for k, v in outputs(name).items()}
    if check:
        lines = differences(ours, load_file(FILE))
        sys.exit("\n".join(lines) if lines else None)
    save_file(ours, FILE)
    print(f"{FILE}: {len(ours)} arrays, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
