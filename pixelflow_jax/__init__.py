"""Pixel-space diffusion in JAX: PixelFlow, PixNerd and PixelGen as one program.

Importing the package is cheap: it checks that the installed jax and flax fit each
other, without importing them. `pixelflow_jax.Pipeline` is loaded when first asked for.
"""

from pixelflow_jax import compat

__version__ = "0.1.0"

compat.check()


def __getattr__(name: str) -> object:
    if name == "Pipeline":
        from pixelflow_jax.pretrained.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
