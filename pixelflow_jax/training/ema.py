"""Exponential moving averages of the denoiser's parameters, one for every decay."""

import jax
import jax.numpy as jnp


def start_ema(params: dict, decays: tuple[float, ...]) -> dict[str, dict]:
    """Averages that begin as copies of the parameters, under the decays written out."""
    return {str(decay): jax.tree.map(jnp.copy, params) for decay in decays}


def update_ema(ema: dict[str, dict], params: dict) -> dict[str, dict]:
    """Every average moved one step: decay * average + (1 - decay) * parameter."""

    def move(decay: float, average: dict) -> dict:
        return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)

    return {decay: move(float(decay), average) for decay, average in ema.items()}
