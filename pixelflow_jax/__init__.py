"""Pixel-space diffusion in JAX: PixelFlow, PixNerd and PixelGen as one program.

Importing the package is cheap: it checks that the installed jax and flax fit each
other, without importing them. What it offers is loaded when first asked for:
`Pipeline`, weights ready to use; `load_config`, the experiment of a config.
"""

import typing

from pixelflow_jax import compat, renamed, resources

if typing.TYPE_CHECKING:
    from pixelflow_jax.config_files import load_config
    from pixelflow_jax.pretrained.pipeline import Pipeline

__version__ = "0.2.0"
__all__ = ["Pipeline", "__version__", "load_config"]

compat.check()
renamed.install()
resources.install()


def __getattr__(name: str) -> object:
    if name == "Pipeline":
        from pixelflow_jax.pretrained.pipeline import Pipeline

        return Pipeline
    if name == "load_config":
        from pixelflow_jax.config_files import load_config

        return load_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
