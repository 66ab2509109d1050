"""PixelGen's official state dict, class-conditional (JiT)."""

from pixelflow_jax.convert.pixnerd import attention_rows, embedding_rows
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.tensors.layouts import leading, patch_convolution
from pixelflow_jax.tensors.mapping import Row, linear_rows


def table(config: PixelGen) -> list[Row]:
    """The mapping table of a model of this config."""
    rows = [
        *_patches(config),
        *embedding_rows(),
        Row("position", "pos_embed", leading),
        Row("decoder/norm/weight", "final_layer.norm_final.weight"),
        *linear_rows("decoder/modulation", "final_layer.adaLN_modulation.1"),
        *linear_rows("decoder/linear", "final_layer.linear"),  # (row, column, channel)
    ]
    if config.context_length:
        rows.append(Row("context", "in_context_posemb", leading))
    cuts = (0, *config.cuts, config.depth)
    for number, stack in enumerate(("early", "middle", "late")):
        layers = range(*cuts[number : number + 2])
        rows += _blocks(stack, layers) if layers else []
    return rows


def _patches(config: PixelGen) -> list[Row]:
    """Two convolutions, of which only the second has a bias; or one with a bias."""
    whole, neck = patch_convolution(config.channels, config.patch), config.bottleneck
    first, second = "x_embedder.proj1", "x_embedder.proj2"
    if not neck:
        return linear_rows("patch_embed", first, layout=whole)
    return [
        *linear_rows("patch_embed", first, layout=whole, bias=False),
        *linear_rows("patch_expand", second, layout=patch_convolution(neck, 1)),
    ]


def _blocks(stack: str, layers: range) -> list[Row]:
    ours, theirs = f"{stack}/blocks", "blocks.{i}"
    gate_up = (f"{ours}/mlp/gate", f"{ours}/mlp/up")
    return [
        *attention_rows(stack, layers, bias=True),
        *linear_rows(gate_up, f"{theirs}.mlp.w12", layers),
        *linear_rows(f"{ours}/mlp/down", f"{theirs}.mlp.w3", layers),
        *linear_rows(f"{ours}/modulation", f"{theirs}.adaLN_modulation.1", layers),
    ]
