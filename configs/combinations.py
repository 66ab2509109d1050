"""What no paper has combined, on ImageNet at 256 pixels.

pixelflow train --config=combinations:field_asymmetric --workdir=runs/field \\
    --config.data.source.data_dir=/data/tensorflow_datasets \\
    --config.teachers.dino.weights=/data/dinov2_vitb14_pretrain.pth

| variant              | parts, and why                                                |
|----------------------|---------------------------------------------------------------|
| perceptual_asymmetric| PixelGen-XL's terms with asymmetric prediction: both work on  |
|                      | the clean image, and eight directions of noise cost it little |
| field_asymmetric     | PixNerd's field, asymmetric prediction, FrequencyMatching: a  |
|                      | field is smooth, which full-rank noise is not                 |
| field_clean          | the same with clean prediction, which asks for no noise at all|
| text_asymmetric      | PixelGen's text model, asymmetric prediction: the basis is of |
|                      | patches, whatever their image is conditioned on               |
| cascade_clean        | PixelFlow's stages, clean prediction, REPA, FrequencyMatching:|
|                      | all stages then predict one image, in its own frequencies     |

Sizes and recipes are those of the papers' XL models, with 18 heads of 64 channels,
which the fast attention kernels take (the text model has 24). Nobody has measured any.
"""

import dataclasses

from pixelflow_jax.config_files import load_config
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.asymmetric import PredictAsymmetric
from pixelflow_jax.flow.prediction import PredictClean, Prediction
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.frequency import FrequencyMatching
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixnerd import PixNerd

HEADS = 18  # of 64 channels


def perceptual_asymmetric() -> Experiment:
    """PixelGen-XL, whose patches pass a bottleneck that begins as the basis."""
    config = load_config("pixelgen:xl_256")
    assert isinstance(config.model, PixelGen)
    model = dataclasses.replace(config.model, heads=HEADS, bottleneck=256)
    return dataclasses.replace(
        config,
        name="perceptual_asymmetric",
        model=model,
        prediction=PredictAsymmetric(),
    )


def field(name: str, prediction: Prediction) -> Experiment:
    """PixNerd-XL with another prediction and a term of frequencies."""
    config = load_config("pixnerd:xl16_256")
    assert isinstance(config.model, PixNerd)
    return dataclasses.replace(
        config,
        name=name,
        model=dataclasses.replace(config.model, heads=HEADS),
        prediction=prediction,
        time=LogitNormal(mean=-0.8, std=0.8),
        terms=[*config.terms, FrequencyMatching()],
    )


def text_asymmetric() -> Experiment:
    """PixelGen-XXL at 256 pixels, whose bottleneck begins as the basis."""
    config = load_config("pixelgen_t2i:pretrain_256")
    return dataclasses.replace(
        config, name="text_asymmetric", prediction=PredictAsymmetric()
    )


def cascade_clean() -> Experiment:
    """PixelFlow-XL, whose stages are aligned and compared at their own sizes."""
    config = load_config("pixelflow:xl4_256")
    assert isinstance(config.model, PixelFlow)
    return dataclasses.replace(
        config,
        name="cascade_clean",
        model=dataclasses.replace(config.model, heads=HEADS),
        prediction=PredictClean(),
        terms=[FlowMatching(), Repa(grid="resize"), FrequencyMatching()],
    )


VARIANTS = {
    "perceptual_asymmetric": perceptual_asymmetric,
    "field_asymmetric": lambda: field("field_asymmetric", PredictAsymmetric()),
    "field_clean": lambda: field("field_clean", PredictClean()),
    "text_asymmetric": text_asymmetric,
    "cascade_clean": cascade_clean,
}


def get_config(variant: str = "field_asymmetric") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
