"""A prediction that asks for all that one may ask for, and its perfect network.

It is AsymFlow's (arXiv 2605.12964) on patches: the network gives the clean image less
the part of the noise that lies in a subspace learnt from the data. It is given the
point scaled, with another timestep, and clamps differently while it samples.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pixelflow_jax.flow.path import per_image
from pixelflow_jax.flow.prediction import CONSTANTS, PLAIN, Prediction
from pixelflow_jax.models.interface import Network, Output
from pixelflow_jax.nn.patch import patchify, unpatchify

PATCH, RANK, SCALE = 2, 3, 0.5


def projected(x, basis):
    """The part of every patch of `x` [b, h, w, c] that lies in the basis' subspace."""
    patches = patchify(x, PATCH)
    rows = patches.reshape(*patches.shape[:2], -1)
    inside = jnp.einsum("bnd,dr,er->bne", rows, basis, basis, precision="highest")
    return unpatchify(inside.reshape(patches.shape), PATCH, *x.shape[1:3])


def shrink(remaining):
    """k, by which the network's input is smaller, from 1 - t."""
    return 1 / (SCALE + (1 - SCALE) * remaining)


@dataclasses.dataclass(kw_only=True)
class Asymmetric(Prediction):
    """The prediction as a config node; it predicts nothing before it is bound."""

    smallest: float = 1e-6
    smallest_while_sampling: float = 0.04

    def for_sampling(self):
        return dataclasses.replace(self, smallest=self.smallest_while_sampling)

    def problems(self, stages):
        ends_early = any(stage.end < 1 for stage in stages)
        return ["Asymmetric needs a path of one stage"] if ends_early else []

    def inputs(self, x_t, t, stage=PLAIN):
        k = shrink(1 - t)
        return per_image(k, x_t) * x_t, stage.timestep(1 - k * (1 - t))

    def loss_weight(self, point):
        return jnp.square((1 - point.t) / jnp.maximum(1 - point.t, 0.05))

    def constants(self, images):
        gram = 0.0
        for batch in images:
            rows = np.asarray(patchify(jnp.asarray(batch), PATCH), np.float64)
            rows = rows.reshape(-1, PATCH * PATCH * batch.shape[-1])
            gram = gram + rows.T @ rows
        return {"basis": np.linalg.eigh(gram)[1][:, -RANK:].astype(np.float32)}

    def constant_shapes(self, channels):
        shape = (PATCH * PATCH * channels, RANK)
        return {"basis": jax.ShapeDtypeStruct(shape, np.float32)}

    def bind(self, constants):
        return Bound(self, constants["basis"])

    def init(self, params, constants):
        return {**params, "basis": constants["basis"]}


@dataclasses.dataclass
class Bound(Prediction):
    """The prediction with its basis: the output is x / s - P e, of a scale s."""

    config: Asymmetric
    basis: jax.Array

    def inputs(self, x_t, t, stage=PLAIN):
        return self.config.inputs(x_t, t, stage)

    def velocity(self, out, x_t, t, stage=PLAIN):
        remaining = per_image(1 - t, x_t)
        clamped = jnp.maximum(remaining, self.config.smallest)
        inside, x_inside = projected(out, self.basis), projected(x_t, self.basis)
        outside = SCALE * (out - inside) - (x_t - x_inside)
        k = shrink(remaining)
        noisy = (1 - SCALE) * remaining * k * x_inside  # 1 - s k, without cancelling
        return SCALE * k * inside + (outside - noisy) / clamped

    def target(self, point):
        return point.end - point.start

    def clean(self, out, x_t, t, stage=PLAIN):
        return x_t + per_image(1 - t, x_t) * self.velocity(out, x_t, t)


def perfect(image) -> Network:
    """A network that knows `image` [h, w, c], as the outputs of the prediction say it.

    It finds the true time and point in what it is given, and the basis among the frozen
    parameters; timesteps come precomputed where they are static.
    """

    def apply(params, batch, *, key=None, pre=None, frozen_params):
        (given,) = batch
        timestep = given.timestep if pre is None else pre
        shrunk = 1 - timestep  # k (1 - t)
        remaining = SCALE * shrunk / (1 - (1 - SCALE) * shrunk)
        x_t = given.image / per_image(shrink(remaining), given.image)
        remaining = per_image(remaining, x_t)
        noise = (x_t - (1 - remaining) * image) / remaining
        out = image / SCALE - projected(noise, frozen_params[CONSTANTS]["basis"])
        return Output((out,), ())

    def precompute(params, batch):
        return batch[0].timestep

    return Network(init=None, apply=apply, precompute=precompute)
