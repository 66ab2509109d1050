"""PixelGen's official state dict, text-to-image (JiT)."""

from pixelflow_jax.convert.text_trunk import trunk_rows
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.tensors.layouts import leading, patch_inputs, patch_outputs
from pixelflow_jax.tensors.mapping import Row, linear_rows


def table(config: PixelGenText) -> list[Row]:
    """The mapping table of a model of this config."""
    whole = patch_inputs(config.channels, config.patch)
    pixels = patch_outputs(config.channels, config.patch)
    return [
        *linear_rows("patch_embed", "x_embedder.proj1", layout=whole, bias=False),
        *linear_rows("patch_expand", "x_embedder.proj2"),
        Row("position", "pos_embed", leading),
        *trunk_rows(config),
        Row("decoder/linear/kernel", "final_layer.linear.weight", pixels),
        Row("decoder/linear/bias", "final_layer.linear.bias", pixels),
    ]
