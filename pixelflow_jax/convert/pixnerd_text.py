"""PixNerd's official state dict, text-to-image."""

from pixelflow_jax.convert.pixnerd import field_rows
from pixelflow_jax.convert.text_trunk import trunk_rows
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.tensors.layouts import patch_inputs
from pixelflow_jax.tensors.mapping import Row, linear_rows


def table(config: PixNerdText) -> list[Row]:
    """The mapping table of a model of this config."""
    layout = patch_inputs(config.channels, config.patch)
    return [
        *linear_rows("patch_embed", "s_embedder.proj", layout=layout),
        *trunk_rows(config),
        *field_rows(config.depth, config.decoder),
    ]
