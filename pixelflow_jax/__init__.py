"""Pixel-space diffusion in JAX: PixelFlow, PixNerd and PixelGen as one program.

    import pixelflow_jax as pf

    pipeline = pf.Pipeline.from_pretrained("emoji")
    images = pipeline(["flags", "animals-nature"], seed=1)
    own = pf.train("emoji", "runs/mine")

Importing the package is cheap: it checks that the installed jax and flax fit each
other, without importing them. What `__all__` lists is loaded when it is first asked
for: weights ready to use, configs, training, the parts that fill the six slots of a
config, and `presets`, the sampling settings of the papers' tables.
"""

import importlib
import typing

from pixelflow_jax import compat, renamed, resources

if typing.TYPE_CHECKING:
    from pixelflow_jax.cli.from_python import train
    from pixelflow_jax.config_files import load_config
    from pixelflow_jax.experiment import Experiment
    from pixelflow_jax.flow.asymmetric import PredictAsymmetric
    from pixelflow_jax.flow.dopri5 import Dopri5
    from pixelflow_jax.flow.guidance import AutoGuidance, ClassifierFree
    from pixelflow_jax.flow.path import Pyramid, Straight
    from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
    from pixelflow_jax.flow.solver import AdamsBashforth, Euler, Heun
    from pixelflow_jax.flow.time import Grid, LogitNormal, Uniform
    from pixelflow_jax.losses.flow_matching import FlowMatching
    from pixelflow_jax.losses.frequency import FrequencyMatching
    from pixelflow_jax.losses.packaged import Lite0Distance, StLpips
    from pixelflow_jax.losses.perceptual import Lpips, PDino, Repa
    from pixelflow_jax.models.deco import DeCo
    from pixelflow_jax.models.deco_text import DeCoText
    from pixelflow_jax.models.pixeldit2 import PixelDiT2
    from pixelflow_jax.models.pixeldit2_text import PixelDiT2Text
    from pixelflow_jax.models.pixelflow import PixelFlow
    from pixelflow_jax.models.pixelgen import PixelGen
    from pixelflow_jax.models.pixelgen_text import PixelGenText
    from pixelflow_jax.models.pixnerd import PixNerd
    from pixelflow_jax.models.pixnerd_text import PixNerdText
    from pixelflow_jax.pretrained.pipeline import Pipeline
    from pixelflow_jax.sampling import presets
    from pixelflow_jax.sampling.settings import Sampling

__version__ = "0.2.0"
__all__ = [
    "AdamsBashforth",
    "AutoGuidance",
    "ClassifierFree",
    "DeCo",
    "DeCoText",
    "Dopri5",
    "Euler",
    "Experiment",
    "FlowMatching",
    "FrequencyMatching",
    "Grid",
    "Heun",
    "Lite0Distance",
    "LogitNormal",
    "Lpips",
    "PDino",
    "Pipeline",
    "PixNerd",
    "PixNerdText",
    "PixelDiT2",
    "PixelDiT2Text",
    "PixelFlow",
    "PixelGen",
    "PixelGenText",
    "PredictAsymmetric",
    "PredictClean",
    "PredictVelocity",
    "Pyramid",
    "Repa",
    "Sampling",
    "StLpips",
    "Straight",
    "Uniform",
    "__version__",
    "load_config",
    "presets",
    "train",
]
# Where each of these is defined.
HOMES = {
    "cli.from_python": "train",
    "config_files": "load_config",
    "experiment": "Experiment",
    "flow.asymmetric": "PredictAsymmetric",
    "flow.dopri5": "Dopri5",
    "flow.guidance": "AutoGuidance ClassifierFree",
    "flow.path": "Pyramid Straight",
    "flow.prediction": "PredictClean PredictVelocity",
    "flow.solver": "AdamsBashforth Euler Heun",
    "flow.time": "Grid LogitNormal Uniform",
    "losses.flow_matching": "FlowMatching",
    "losses.frequency": "FrequencyMatching",
    "losses.packaged": "Lite0Distance StLpips",
    "losses.perceptual": "Lpips PDino Repa",
    "models.deco": "DeCo",
    "models.deco_text": "DeCoText",
    "models.pixeldit2": "PixelDiT2",
    "models.pixeldit2_text": "PixelDiT2Text",
    "models.pixelflow": "PixelFlow",
    "models.pixelgen": "PixelGen",
    "models.pixelgen_text": "PixelGenText",
    "models.pixnerd": "PixNerd",
    "models.pixnerd_text": "PixNerdText",
    "pretrained.pipeline": "Pipeline",
    "sampling": "presets",
    "sampling.settings": "Sampling",
}

compat.check()
renamed.install()
resources.install()


def __getattr__(name: str) -> object:
    for module, names in HOMES.items():
        if name in names.split():
            home = importlib.import_module(f"{__name__}.{module}")
            if not hasattr(home, name):  # a module of a sub-package
                return importlib.import_module(f"{__name__}.{module}.{name}")
            globals()[name] = getattr(home, name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
