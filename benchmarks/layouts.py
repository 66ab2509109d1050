"""A cascade's stages in one training step: packed, one after the other, or padded."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from pixelflow_jax.models.interface import Condition, Inputs, Output

Apply = Callable[..., Output]


def separate(apply: Apply) -> Apply:
    """One forward pass for each resolution."""

    def run(
        params: dict, batch: tuple[Inputs, ...], *, key: Array | None = None
    ) -> Output:
        parts = [apply(params, (inputs,), key=key) for inputs in batch]
        return Output(
            tuple(part.pred[0] for part in parts),
            tuple(part.features[0] for part in parts),
        )

    return run


def padded(apply: Apply) -> Apply:
    """All images padded to the size of the largest, as one resolution."""

    def run(
        params: dict, batch: tuple[Inputs, ...], *, key: Array | None = None
    ) -> Output:
        height, width = batch[-1].image.shape[1:3]
        wide = [
            jnp.pad(
                image,
                ((0, 0), (0, height - image.shape[1]), (0, width - image.shape[2]))
                + ((0, 0),),
            )
            for image, _, _ in batch
        ]
        labels = jnp.concatenate([inputs.cond.labels for inputs in batch])
        timestep = jnp.concatenate([inputs.timestep for inputs in batch])
        inputs = Inputs(jnp.concatenate(wide), timestep, Condition(labels=labels))
        out = apply(params, (inputs,), key=key)
        parts, start = [], 0
        for image, _, _ in batch:
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
