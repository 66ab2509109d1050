"""The velocity fields of a stage, as networks with their parameters give them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from pixelflow_jax.flow.guidance import Branches, Field
from pixelflow_jax.flow.path import Stage
from pixelflow_jax.flow.prediction import CONSTANTS, Prediction
from pixelflow_jax.models.interface import Condition, Inputs, Network, Output

# What is precomputed may take as many bytes as this; it matters where a batch is too
# small to hide reading the weights for it in every step.
PRECOMPUTE_BYTES = 2**28


class Net(NamedTuple):
    """A network with its parameters.

    `frozen_params` are those of the frozen networks that it looks through, by name, and
    the constants of its prediction.
    """

    network: Network
    params: dict
    frozen_params: dict = {}

    def __call__(self, batch: tuple[Inputs, ...], pre: Any = None) -> Output:
        """What the network makes of images, with what it precomputed, if at hand."""
        return self.network.apply(
            self.params, batch, pre=pre, frozen_params=self.frozen_params
        )

    def bound(self, prediction: Prediction) -> Prediction:
        """The prediction of its output, with the constants that belong to it."""
        return prediction.bind(self.frozen_params.get(CONSTANTS, {}))


class StaticTimes(NamedTuple):
    """All times at which a field is asked, rising, and the shape of its images.

    Times may be an argument of the program; the last one may be repeated.
    """

    times: np.ndarray | Array
    shape: tuple[int, ...]


class StageView(NamedTuple):
    """How networks see a stage.

    They are given what belongs to the time `timestep_scale` * t. Where all times are
    static, what a network makes of them is computed ahead of the steps, at once.
    """

    stage: Stage
    prediction: Prediction
    timestep_scale: float = 1.0
    static_times: StaticTimes | None = None

    def inputs(
        self,
        net: Net,
        x: Float[Array, "b h w c"],
        t: Float[Array, "*times"],
        cond: Condition,
    ) -> Inputs:
        """What a network is given at `x` [b, h, w, c] and in-stage time `t`, or [b]."""
        prediction, t = net.bound(self.prediction), self.timestep_scale * t
        image, timestep = prediction.inputs(x, t, self.stage)
        return Inputs(image, jnp.broadcast_to(timestep, (len(x),)), cond)


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
        inputs = view.inputs(net, x, t, cond)
        output = net((inputs,), precomputed(t) if precomputed else None)
        prediction = net.bound(view.prediction)
        return prediction.velocity(output.pred[0], x, t, view.stage)

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
    # Of images it reads the shapes alone.
    count = len(jax.tree.leaves(cond)[0])
    blank = jnp.zeros((count, *view.static_times.shape[1:]))
    one = lambda t: precompute(net.params, (view.inputs(net, blank, t, cond),))
    times = jnp.asarray(view.static_times.times)
    shapes = jax.tree.leaves(jax.eval_shape(jax.vmap(one), times))
    if sum(a.size * a.dtype.itemsize for a in shapes) > PRECOMPUTE_BYTES:
        return None
    table = jax.vmap(one)(times)

    def at(t: Array) -> Any:
        number = jnp.sum(times < t)
        return jax.tree.map(lambda a: a[number], table)

    return at


def _alternate(
    a: Shaped[Array, "b ..."], b: Shaped[Array, "b ..."]
) -> Shaped[Array, "2*b ..."]:
    """[b, ...] twice to [2 b, ...]: a0, b0, a1, b1, ..."""
    return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])
