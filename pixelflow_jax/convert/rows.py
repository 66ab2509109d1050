"""Rows of mapping tables that PixNerd's and PixelGen's models share."""

from pixelflow_jax.models.text_trunk import TextConfig
from pixelflow_jax.tensors.layouts import leading, same
from pixelflow_jax.tensors.mapping import Row, linear_rows


def time_rows(ours: str) -> list[Row]:
    """Rows of the time embedding, which is at this path with us."""
    return [
        *linear_rows(f"{ours}/hidden", "t_embedder.mlp.0"),
        *linear_rows(f"{ours}/out", "t_embedder.mlp.2"),
    ]


def time_and_class_rows() -> list[Row]:
    """Rows of the embeddings of a class-conditional model."""
    classes = Row("class_embed/table", "y_embedder.embedding_table.weight")
    return [*time_rows("time_embed"), classes]


def attention_rows(
    stack: str,
    layers: range,
    *,
    bias: bool,
    official: str = "blocks",
    fused: str = "qkv",
) -> list[Row]:
    """Rows of a stack's norms and attention; `bias` is that of queries, keys, values.

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


def gated_mlp_rows(
    stack: str, layers: range, *, bias: bool, official: str = "blocks"
) -> list[Row]:
    """Rows of MLPs whose gate and hidden layer are one matrix there."""
    ours, theirs = f"{stack}/blocks/mlp", f"{official}.{{i}}.mlp"
    gate_up = (f"{ours}/gate", f"{ours}/up")
    return [
        *linear_rows(gate_up, f"{theirs}.w12", layers, bias=bias),
        *linear_rows(f"{ours}/down", f"{theirs}.w3", layers, bias=bias),
    ]


def modulation_rows(
    stack: str, layers: range, number: int, official: str = "blocks"
) -> list[Row]:
    """Rows of adaLN, whose linear layer is number 0, or 1 behind a SiLU."""
    theirs = f"{official}.{{i}}.adaLN_modulation.{number}"
    return linear_rows(f"{stack}/blocks/modulation", theirs, layers)


def stacks(*cuts: int) -> dict[str, range]:
    """The layers of each stack that has some, from 0, where they end, and the depth."""
    names = ("early", "late") if len(cuts) == 3 else ("early", "middle", "late")
    parts = zip(names, cuts[:-1], cuts[1:], strict=True)
    return {name: range(start, end) for name, start, end in parts if start < end}


def text_trunk_rows(config: TextConfig) -> list[Row]:
    """Rows of the trunk that the text models share."""
    embed = "trunk/text_embed"
    rows = [
        *time_rows("trunk/time_embed"),
        *linear_rows(f"{embed}/proj", "y_embedder.proj"),
        Row(f"{embed}/norm/weight", "y_embedder.norm.weight"),
        Row(f"{embed}/position", "y_pos_embedding", leading),
    ]
    if config.text_depth:
        blocks, official = range(config.text_depth), "text_refine_blocks"
        rows += _text_blocks("trunk/refine", blocks, official, "qkv")
    for name, layers in stacks(0, config.feature_layer, config.depth).items():
        stack = f"trunk/{name}"
        ours, theirs = f"{stack}/blocks/attention/text_kv", "blocks.{i}.attn.kv_y"
        rows += _text_blocks(stack, layers, "blocks", "qkv_x")
        rows += linear_rows(ours, theirs, layers, bias=False)
    return rows


def _text_blocks(stack: str, layers: range, official: str, fused: str) -> list[Row]:
    return [
        *attention_rows(stack, layers, bias=False, official=official, fused=fused),
        *gated_mlp_rows(stack, layers, bias=False, official=official),
        *modulation_rows(stack, layers, 0, official),
    ]
