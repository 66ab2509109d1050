"""PixNerd's official state dict, class-conditional (and the DiT baseline's)."""

from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.tensors.layouts import patch_inputs, patch_outputs, same
from pixelflow_jax.tensors.mapping import Row, linear_rows


def table(config: PixNerd) -> list[Row]:
    """The mapping table of a model of this config."""
    field = isinstance(config.decoder, NeuralField)
    embedder = "s_embedder.proj" if field else "x_embedder.proj"
    layout = patch_inputs(config.channels, config.patch)
    rows = linear_rows("patch_embed", embedder, layout=layout) + embedding_rows()
    if config.feature_layer:
        rows += _blocks("early", range(config.feature_layer))
    if config.feature_layer < config.depth:
        rows += _blocks("late", range(config.feature_layer, config.depth))
    return rows + (
        field_rows(config.depth, config.decoder) if field else _tokens(config)
    )


def embedding_rows() -> list[Row]:
    """Rows of the embeddings of time and class, which PixelGen has too."""
    table = Row("class_embed/table", "y_embedder.embedding_table.weight")
    return [*time_rows("time_embed"), table]


def time_rows(ours: str) -> list[Row]:
    """Rows of the time embedding, which is at this path with us."""
    return [
        *linear_rows(f"{ours}/hidden", "t_embedder.mlp.0"),
        *linear_rows(f"{ours}/out", "t_embedder.mlp.2"),
    ]


def attention_rows(
    stack: str,
    layers: range,
    *,
    bias: bool,
    official: str = "blocks",
    fused: str = "qkv",
) -> list[Row]:
    """Rows of a stack's norms and attention, which PixelGen has too, with a bias.

    `official` and `fused` are the official names of the blocks, and of the projection
    to queries, keys and values.
    """
    ours, theirs = f"{stack}/blocks", f"{official}.{{i}}"
    norms = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attention/q_norm": "attn.q_norm",
        "attention/k_norm": "attn.k_norm",
    }
    rows = [
        Row(f"{ours}/{a}/weight", f"{theirs}.{b}.weight", same, layers)
        for a, b in norms.items()
    ]
    qkv, out = f"{theirs}.attn.{fused}", f"{theirs}.attn.proj"
    rows += linear_rows(f"{ours}/attention/qkv", qkv, layers, bias=bias)
    return rows + linear_rows(f"{ours}/attention/out", out, layers)


def _blocks(stack: str, layers: range) -> list[Row]:
    ours, theirs = f"{stack}/blocks", "blocks.{i}"
    rows = attention_rows(stack, layers, bias=False)
    for a, b in {"gate": "w1", "up": "w3", "down": "w2"}.items():
        rows += linear_rows(f"{ours}/mlp/{a}", f"{theirs}.mlp.{b}", layers, bias=False)
    modulation = f"{theirs}.adaLN_modulation.0"
    return rows + linear_rows(f"{ours}/modulation", modulation, layers)


def field_rows(depth: int, field: NeuralField) -> list[Row]:
    """Rows of a field behind `depth` blocks of the transformer."""
    layers = range(depth, depth + field.depth)
    ours = "decoder/field/blocks"
    rows = [
        *linear_rows("decoder/embed/proj", "x_embedder.embedder.0"),
        Row(f"{ours}/norm/weight", "blocks.{i}.norm.weight", same, layers),
        *linear_rows(f"{ours}/generator", "blocks.{i}.param_generator1.0", layers),
        *linear_rows("decoder/linear", "final_layer.linear"),
    ]
    if field.output_norm:
        rows.append(Row("decoder/norm/weight", "final_layer.norm.weight"))
    return rows


def _tokens(config: PixNerd) -> list[Row]:
    layout = patch_outputs(config.channels, config.patch)
    return [
        *linear_rows("decoder/modulation", "final_layer.adaLN_modulation.0"),
        Row("decoder/linear/kernel", "final_layer.linear.weight", layout),
        Row("decoder/linear/bias", "final_layer.linear.bias", layout),
    ]
