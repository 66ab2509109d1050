"""The part of an official state dict that the text-to-image models share."""

from pixelflow_jax.convert.pixnerd import attention_rows, time_rows
from pixelflow_jax.models.text_trunk import TextConfig
from pixelflow_jax.tensors.layouts import leading
from pixelflow_jax.tensors.mapping import Row, linear_rows


def trunk_rows(config: TextConfig) -> list[Row]:
    """Rows of the trunk of a model of this config."""
    embed = "trunk/text_embed"
    rows = [
        *time_rows("trunk/time_embed"),
        *linear_rows(f"{embed}/proj", "y_embedder.proj"),
        Row(f"{embed}/norm/weight", "y_embedder.norm.weight"),
        Row(f"{embed}/position", "y_pos_embedding", leading),
    ]
    if config.text_depth:
        blocks = range(config.text_depth)
        rows += _blocks("trunk/refine", blocks, "text_refine_blocks", "qkv")
    cuts = {
        "early": range(config.feature_layer),
        "late": range(config.feature_layer, config.depth),
    }
    for name, layers in cuts.items():
        if layers:
            rows += _joint(f"trunk/{name}", layers)
    return rows


def _joint(stack: str, layers: range) -> list[Row]:
    ours, theirs = f"{stack}/blocks/attention/text_kv", "blocks.{i}.attn.kv_y"
    rows = linear_rows(ours, theirs, layers, bias=False)
    return _blocks(stack, layers, "blocks", "qkv_x") + rows


def _blocks(stack: str, layers: range, official: str, fused: str) -> list[Row]:
    ours, theirs = f"{stack}/blocks", f"{official}.{{i}}"
    gate_up = (f"{ours}/mlp/gate", f"{ours}/mlp/up")
    modulation = f"{theirs}.adaLN_modulation.0"
    return [
        *attention_rows(stack, layers, bias=False, official=official, fused=fused),
        *linear_rows(gate_up, f"{theirs}.mlp.w12", layers, bias=False),
        *linear_rows(f"{ours}/mlp/down", f"{theirs}.mlp.w3", layers, bias=False),
        *linear_rows(f"{ours}/modulation", modulation, layers),
    ]
