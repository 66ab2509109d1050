"""What a config needs besides the model: how the released weights are sampled from."""

import dataclasses

from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.tfds import Tfds
from pixelflow_jax.encoders.qwen3 import Qwen3
from pixelflow_jax.errors import ConvertError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import stage_ramp
from pixelflow_jax.flow.path import Pyramid, Straight
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.time import LogitNormal, Uniform
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd import PixNerd
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.sampling import presets
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.validate import size_problems

JIT = "jit"  # the family that shares PixelGen's network and not its sampler
KICKOFF = 8  # tokens along a side of PixelFlow's first stage


def image_size(model: DenoiserConfig) -> int:
    """The size of images the weights were released for, where the model knows none."""
    if isinstance(model, PixelGen | PixelGenText):
        return model.image_size
    return 512 if isinstance(model, PixNerdText) else 256


def experiment(family: str, model: DenoiserConfig, size: int, name: str) -> Experiment:
    """The config of released weights, for images of `size` x `size`.

    Raises ConvertError where the model cannot draw images of that size.
    """
    found = Experiment(
        name=name,
        model=model,
        data=Data(source=Tfds(), image_size=size),
        conditioner=_conditioner(model),
        sampling=_sampling(family, model, size),
    )
    if isinstance(model, PixelFlow):
        path, time = Pyramid(num_stages=_stages(model, size)), Uniform(levels=1000)
        found = dataclasses.replace(found, path=path, time=time)
    if isinstance(model, PixelGen | PixelGenText):
        # JiT scales its noise with the image: 2 at 512 pixels.
        path = Straight(noise_scale=size / 256 if family == JIT else 1.0)
        time = LogitNormal(mean=-0.8, std=0.8)
        found = dataclasses.replace(
            found, path=path, time=time, prediction=PredictClean()
        )
    if problems := size_problems(found, size, size):
        listed = "; ".join(problems)
        raise ConvertError(f"{listed}. Mend that with --set or --image-size.")
    return found


def _stages(model: PixelFlow, size: int) -> int:
    return max(1, (size // (model.patch * KICKOFF)).bit_length())


def _conditioner(model: DenoiserConfig) -> ClassLabels | Text:
    if model.num_classes:
        return ClassLabels()
    if isinstance(model, PixNerdText | PixelGenText):
        return Text(encoder=Qwen3(), length=model.text_length)
    return Text()


def _sampling(family: str, model: DenoiserConfig, size: int) -> Sampling:
    if isinstance(model, PixNerdText | PixelGenText):
        return presets.adams25_cfg4()
    if isinstance(model, PixNerd):
        large = size > 256
        return presets.pixnerd_euler100_512() if large else presets.pixnerd_euler50()
    if isinstance(model, PixelGen):
        if family == JIT:
            return presets.jit_heun50(model.width)
        return presets.pixelgen_heun50()
    if not model.num_classes:
        return presets.euler10_cfg4()
    sampling = presets.dopri5_stagewise24()
    sampling.guidance.ramp = stage_ramp(_stages(model, size))
    return sampling
