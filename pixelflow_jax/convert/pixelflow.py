"""PixelFlow's official state dict, for classes and for text."""

from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.tensors.layouts import patch_convolution, same
from pixelflow_jax.tensors.mapping import Row, linear_rows


def table(config: PixelFlow) -> list[Row]:
    """The mapping table of a model of this config."""
    convolution = patch_convolution(config.channels, config.patch)
    rows = [
        *linear_rows("patch_embed", "patch_embed.proj", layout=convolution),
        *linear_rows("time_embed/hidden", "timestep_embedder.linear_1"),
        *linear_rows("time_embed/out", "timestep_embedder.linear_2"),
        *linear_rows("size_embed/hidden", "latent_size_embedder.linear_1"),
        *linear_rows("size_embed/out", "latent_size_embedder.linear_2"),
        *linear_rows("decoder/modulation", "proj_out_1"),
        # Its outputs are (row, column, channel), like ours.
        *linear_rows("decoder/linear", "proj_out_2"),
    ]
    if config.num_classes:
        rows.append(Row("class_embed/table", "class_embedder.embedding_table.weight"))
    if config.feature_layer:
        rows += _blocks(config, "early", range(config.feature_layer))
    if config.feature_layer < config.depth:
        rows += _blocks(config, "late", range(config.feature_layer, config.depth))
    return rows


def _blocks(config: PixelFlow, stack: str, layers: range) -> list[Row]:
    ours, theirs = f"{stack}/blocks", "transformer_blocks.{i}"

    def linear(a: str, *b: str, bias: bool = True) -> list[Row]:
        official = tuple(f"{theirs}.{name}" for name in b)
        return linear_rows(f"{ours}/{a}", official, layers, bias=bias)

    def norm(a: str, b: str) -> Row:
        return Row(f"{ours}/{a}/weight", f"{theirs}.{b}.weight", same, layers)

    def attention(a: str, b: str, *fused: str) -> list[Row]:
        """Each of `fused` holds the letters of projections that are one with us."""
        rows = [norm(f"{a}/{n}_norm", f"{b}.{n}_norm") for n in "qk"]
        for name, letters in [("out", "o"), *zip(fused, fused, strict=True)]:
            official = [f"{b}.{letter}_proj" for letter in letters]
            rows += linear(f"{a}/{name}", *official, bias=config.attention_bias)
        return rows

    rows = [
        *linear("modulation", "norm1.linear"),
        *attention("attention", "attn1", "qkv"),
        norm("norm3", "norm3"),
        *linear("mlp/up", "mlp.fc1"),
        *linear("mlp/down", "mlp.fc2"),
    ]
    if config.text_width:
        rows.append(norm("norm2", "norm2"))
        rows += attention("cross_attention", "attn2", "q", "kv")
    return rows
