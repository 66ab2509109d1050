"""The velocity fields of a stage, as networks with their parameters give them."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.flow.guidance import Branches, Field
from pixelflow_jax.flow.path import Stage
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.models.interface import Condition, Inputs, Network

# What is precomputed may take as many bytes as this; it matters where a batch is too
# small to hide reading the weights for it in every step.
PRECOMPUTE_BYTES = 2**28


class Net(NamedTuple):
    """A network with its parameters.

    `frozen_params` are those of the frozen networks that it looks through, by name.
    """

    network: Network
    params: dict
    frozen_params: dict = {}


class StaticTimes(NamedTuple):
    """All times at which a field is asked, rising, and the shape of its images."""

    times: np.ndarray
    shape: tuple[int, ...]


class StageView(NamedTuple):
    """How networks see a stage.

    They are given the timestep of `timestep_scale` * t. Where all times are static,
    what a network makes of them is computed ahead of the steps, at once.
    """

    stage: Stage
    prediction: Prediction
    timestep_scale: float = 1.0
    static_times: StaticTimes | None = None

    def timesteps(self, t: Array, count: int) -> Array:
        """The timesteps of `count` images at in-stage time `t`, a scalar or [count]."""
        timestep = self.stage.timestep(self.timestep_scale * t)
        return jnp.broadcast_to(timestep, (count,))


def stage_fields(
    view: StageView, net: Net, cond: Condition, null: Condition, guide: Net | None
) -> Branches:
    """The velocity fields of a stage: conditional, with the null, and with a guide.

    The doubled batch alternates between the two halves, so that a batch that is split
    over devices stays where it is.
    """
    pair = jax.tree.map(_alternate, cond, null)
    plain, doubled = _velocity(view, net, cond), _velocity(view, net, pair)

    def both(x: Array, t: Array, step: Array) -> tuple[Array, Array]:
        t = _alternate(t, t) if jnp.ndim(t) else t
        v = doubled(_alternate(x, x), t, step)
        v = v.reshape(x.shape[0], 2, *x.shape[1:])
        return v[:, 0], v[:, 1]

    if guide is None:
        return Branches(plain, both, None)
    weak = _velocity(view, guide, cond)
    return Branches(
        plain, both, lambda x, t, step: (plain(x, t, step), weak(x, t, step))
    )


def _velocity(view: StageView, net: Net, cond: Condition) -> Field:
    """The velocity that a network's outputs imply under `cond`."""
    precomputed = _precompute(view, net, cond)

    def field(x: Array, t: Array, step: Array) -> Array:
        output = net.network.apply(
            net.params,
            (Inputs(x, view.timesteps(t, len(x)), cond),),
            pre=precomputed(t) if precomputed else None,
            frozen_params=net.frozen_params,
        )
        return view.prediction.velocity(output.pred[0], x, t, view.stage)

    return field


def _precompute(
    view: StageView, net: Net, cond: Condition
) -> Callable[[Array], Any] | None:
    """What the network makes of time and condition, as a function of a static time.

    None where times are not static, the network does not tell time and image apart, or
    for all times it is too much.
    """
    precompute = net.network.precompute
    if view.static_times is None or precompute is None:
        return None
    count = len(jax.tree.leaves(cond)[0])
    shape = (count, *view.static_times.shape[1:])
    # Of images it reads the shapes alone.
    image = cast(Array, jax.ShapeDtypeStruct(shape, jnp.float32))
    one = lambda t: precompute(
        net.params, (Inputs(image, view.timesteps(t, count), cond),)
    )
    times = jnp.asarray(view.static_times.times)
    shapes = jax.tree.leaves(jax.eval_shape(jax.vmap(one), times))
    if sum(a.size * a.dtype.itemsize for a in shapes) > PRECOMPUTE_BYTES:
        return None
    table = jax.vmap(one)(times)

    def at(t: Array) -> Any:
        number = jnp.sum(times < t)
        return jax.tree.map(lambda a: a[number], table)

    return at


def _alternate(a: Array, b: Array) -> Array:
    """[b, ...] twice to [2 b, ...]: a0, b0, a1, b1, ..."""
    return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])
