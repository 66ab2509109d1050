"""PixNerd's official state dict, class-conditional (and the DiT baseline's)."""

from pixelflow_jax.convert.tables import (
    Row,
    patch_inputs,
    patch_outputs,
    same,
    transpose,
)
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd


def table(config: PixNerd) -> list[Row]:
    """The mapping table of a model of this config."""
    rows = [
        Row(
            "patch_embed/kernel",
            "s_embedder.proj.weight",
            patch_inputs(config.channels, config.patch),
        ),
        Row("patch_embed/bias", "s_embedder.proj.bias"),
        *_linear("time_embed/hidden", "t_embedder.mlp.0"),
        *_linear("time_embed/out", "t_embedder.mlp.2"),
        Row("class_embed/table", "y_embedder.embedding_table.weight"),
    ]
    if config.tap:
        rows += _blocks("early", range(config.tap))
    if config.tap < config.depth:
        rows += _blocks("late", range(config.tap, config.depth))
    if isinstance(config.decoder, NeuralField):
        return rows + _field(config, config.decoder)
    return [_rename_embedder(row) for row in rows] + _tokens(config)


def _linear(ours: str, theirs: str, layers: range | None = None, bias: bool = True):
    rows = [Row(f"{ours}/kernel", f"{theirs}.weight", transpose, layers)]
    if bias:
        rows.append(Row(f"{ours}/bias", f"{theirs}.bias", same, layers))
    return rows


def _blocks(stack: str, layers: range) -> list[Row]:
    ours, theirs = f"{stack}/blocks", "blocks.{i}"
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
    rows += _linear(f"{ours}/attention/qkv", f"{theirs}.attn.qkv", layers, bias=False)
    rows += _linear(f"{ours}/attention/out", f"{theirs}.attn.proj", layers)
    for a, b in {"gate": "w1", "up": "w3", "down": "w2"}.items():
        rows += _linear(f"{ours}/mlp/{a}", f"{theirs}.mlp.{b}", layers, bias=False)
    return rows + _linear(f"{ours}/modulation", f"{theirs}.adaLN_modulation.0", layers)


def _field(config: PixNerd, field: NeuralField) -> list[Row]:
    layers = range(config.depth, config.depth + field.depth)
    ours = "decoder/field/blocks"
    rows = [
        *_linear("decoder/embed/proj", "x_embedder.embedder.0"),
        Row(f"{ours}/norm/weight", "blocks.{i}.norm.weight", same, layers),
        *_linear(f"{ours}/generator", "blocks.{i}.param_generator1.0", layers),
        *_linear("decoder/linear", "final_layer.linear"),
    ]
    if field.output_norm:
        rows.append(Row("decoder/norm/weight", "final_layer.norm.weight"))
    return rows


def _tokens(config: PixNerd) -> list[Row]:
    layout = patch_outputs(config.channels, config.patch)
    return [
        *_linear("decoder/modulation", "final_layer.adaLN_modulation.0"),
        Row("decoder/linear/kernel", "final_layer.linear.weight", layout),
        Row("decoder/linear/bias", "final_layer.linear.bias", layout),
    ]


def _rename_embedder(row: Row) -> Row:
    """The baseline calls the patch embedding x_embedder."""
    return Row(
        row.ours,
        row.theirs.replace("s_embedder", "x_embedder"),
        row.transform,
        row.layers,
    )
