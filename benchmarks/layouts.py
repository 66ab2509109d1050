"""A cascade's stages in one training step: packed, one after the other, or padded."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from pixelflow_jax.models.interface import Condition, Output

Apply = Callable[..., Output]


def separate(apply: Apply) -> Apply:
    """One forward pass for each group."""

    def run(
        params: dict, groups, timesteps, conds, *, key: Array | None = None
    ) -> Output:
        parts = [
            apply(params, (image,), (timestep,), (cond,), key=key)
            for image, timestep, cond in zip(groups, timesteps, conds, strict=True)
        ]
        return Output(
            tuple(part.pred[0] for part in parts),
            tuple(part.features[0] for part in parts),
        )

    return run


def padded(apply: Apply) -> Apply:
    """All images padded to the size of the largest, in one group."""

    def run(
        params: dict, groups, timesteps, conds, *, key: Array | None = None
    ) -> Output:
        height, width = groups[-1].shape[1:3]
        wide = [
            jnp.pad(
                image,
                ((0, 0), (0, height - image.shape[1]), (0, width - image.shape[2]))
                + ((0, 0),),
            )
            for image in groups
        ]
        labels = Condition(labels=jnp.concatenate([cond.labels for cond in conds]))
        timestep = jnp.concatenate(timesteps)
        out = apply(params, (jnp.concatenate(wide),), (timestep,), (labels,), key=key)
        parts, start = [], 0
        for image in groups:
            own = out.pred[0][start : start + len(image)]
            parts.append(own[:, : image.shape[1], : image.shape[2]])
            start += len(image)
        return Output(tuple(parts), ())

    return run


LAYOUTS: dict[str, Callable[[Apply], Apply]] = {
    "packed": lambda apply: apply,
    "separate": separate,
    "padded": padded,
}
