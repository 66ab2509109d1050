"""Which denoisers there are: those of this package, and those that others bring.

Another package brings its own by an entry point of the group `pixelflow_jax.models`,
whose value is a module or a class in one:

    [project.entry-points."pixelflow_jax.models"]
    mine = "my_package.model"
"""

from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.registry import group_of, implementations

GROUP = group_of(DenoiserConfig)


def denoiser_classes() -> dict[str, type[DenoiserConfig]]:
    """The config class of every denoiser by its name; see `registry` for the rules."""
    return implementations(DenoiserConfig)
