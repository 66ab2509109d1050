"""The released sizes: every official name and shape, written down independently.

The lists follow the official modules (a linear layer is [out, in]), not our tables.
"""

import dataclasses
import importlib.util
import pathlib
import re

import numpy as np
import pytest

from pixelflow_jax.convert import families
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.models.interface import count
from pixelflow_jax.tensors import mapping as tables
from pixelflow_jax.tensors.lazy import LazyTensor

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
Shapes = dict[str, tuple[int, ...]]
CONTEXT = "in_context_posemb"


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    weight = {f"{name}.weight": (outputs, inputs)}
    return weight | ({f"{name}.bias": (outputs,)} if bias else {})


def convolution(name: str, inputs: int, outputs: int, size: int, bias: bool) -> Shapes:
    weight = {f"{name}.weight": (outputs, inputs, size, size)}
    return weight | ({f"{name}.bias": (outputs,)} if bias else {})


def norms(prefix: str, **widths: int) -> Shapes:
    return {f"{prefix}.{name}.weight": (width,) for name, width in widths.items()}


def time_embedder(d: int) -> Shapes:
    return linear("t_embedder.mlp.0", 256, d) | linear("t_embedder.mlp.2", d, d)


def pixelflow(d: int, depth: int, patch: int, classes: int = 0, text: int = 0):
    found = convolution("patch_embed.proj", 3, d, patch, bias=True)
    for embedder in ("timestep_embedder", "latent_size_embedder"):
        found |= linear(f"{embedder}.linear_1", 256, d)
        found |= linear(f"{embedder}.linear_2", d, d)
    if classes:
        found["class_embedder.embedding_table.weight"] = (classes + 1, d)
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        found |= linear(f"{block}.norm1.linear", d, 6 * d)
        found |= norms(block, norm3=d)
        attentions = [("attn1", d)]
        if text:
            found |= norms(block, norm2=d)
            attentions.append(("attn2", text))
        for attention, width in attentions:
            for name in "qkvo":
                inputs = width if name in "kv" else d
                found |= linear(f"{block}.{attention}.{name}_proj", inputs, d)
            found |= norms(f"{block}.{attention}", q_norm=d, k_norm=d)
        found |= linear(f"{block}.mlp.fc1", d, 4 * d)
        found |= linear(f"{block}.mlp.fc2", 4 * d, d)
    ends = linear("proj_out_1", d, 2 * d)
    return found | ends | linear("proj_out_2", d, 3 * patch * patch)


def field(first: int, depth: int, d: int, width: int, ratio: int) -> Shapes:
    """The neural field's blocks, which go on counting, and its ends."""
    found = linear("x_embedder.embedder.0", 3 + 64, width)
    for i in range(first, first + depth):
        generated = 2 * width * width * ratio
        found |= linear(f"blocks.{i}.param_generator1.0", d, generated)
        found |= norms(f"blocks.{i}", norm=width)
    return found | linear("final_layer.linear", width, 3)


def pixnerd(d: int, heads: int, depth: int, fields: int, classes: int = 1000):
    hidden = int(2 * int(4 * d) / 3)
    found = linear("s_embedder.proj", 3 * 16 * 16, d) | time_embedder(d)
    found["y_embedder.embedding_table.weight"] = (classes + 1, d)
    for i in range(depth):
        block = f"blocks.{i}"
        found |= norms(block, norm1=d, norm2=d)
        found |= linear(f"{block}.attn.qkv", d, 3 * d, bias=False)
        found |= norms(f"{block}.attn", q_norm=d // heads, k_norm=d // heads)
        found |= linear(f"{block}.attn.proj", d, d)
        for name, sides in {
            "w1": (d, hidden),
            "w3": (d, hidden),
            "w2": (hidden, d),
        }.items():
            found |= linear(f"{block}.mlp.{name}", *sides, bias=False)
        found |= linear(f"{block}.adaLN_modulation.0", d, 6 * d)
    found |= field(depth, fields, d, 64, 2)
    return found | norms("final_layer", norm=64)


def deco(d: int, heads: int, depth: int, blocks: int = 3, width: int = 32):
    """PixNerd's transformer, and a decoder whose blocks are not the transformer's."""
    found = pixnerd(d, heads, depth, 0)
    for name in ("weight", "bias"):
        del found[f"final_layer.linear.{name}"]
    del found["final_layer.norm.weight"]
    found |= linear("x_embedder.embedder.0", 3 + 64, width)
    found |= linear("dec_net.input_proj", width, width)
    found |= linear("dec_net.cond_embed", d, 16 * 16 * width)
    for i in range(blocks):
        block = f"dec_net.res_blocks.{i}"
        found |= {f"{block}.in_ln.{name}": (width,) for name in ("weight", "bias")}
        found |= linear(f"{block}.mlp.0", width, width)
        found |= linear(f"{block}.mlp.2", width, width)
        found |= linear(f"{block}.adaLN_modulation.1", width, 3 * width)
    return found | linear("dec_net.final_layer.linear", width, 3)


def text_trunk(d: int, heads: int, depth: int, refine: int, text: int, length: int):
    """What the text models of PixNerd and PixelGen share."""
    found = time_embedder(d) | linear("y_embedder.proj", text, d)
    found |= norms("y_embedder", norm=d) | {"y_pos_embedding": (1, length, d)}
    stacks = [(f"text_refine_blocks.{i}", "qkv") for i in range(refine)]
    stacks += [(f"blocks.{i}", "qkv_x") for i in range(depth)]
    for block, fused in stacks:
        found |= norms(block, norm1=d, norm2=d)
        found |= linear(f"{block}.attn.{fused}", d, 3 * d, bias=False)
        if fused == "qkv_x":
            found |= linear(f"{block}.attn.kv_y", d, 2 * d, bias=False)
        found |= norms(f"{block}.attn", q_norm=d // heads, k_norm=d // heads)
        found |= linear(f"{block}.attn.proj", d, d)
        found |= linear(f"{block}.mlp.w12", d, 8 * d, bias=False)
        found |= linear(f"{block}.mlp.w3", 4 * d, d, bias=False)
        found |= linear(f"{block}.adaLN_modulation.0", d, 6 * d)
    return found


def pixnerd_xxl():
    found = linear("s_embedder.proj", 3 * 16 * 16, 1536)
    found |= text_trunk(1536, 24, 16, 4, 2048, 128)
    return found | field(16, 2, 1536, 64, 2)


def pixelgen_xxl():
    found = linear("x_embedder.proj1", 3 * 16 * 16, 256, bias=False)
    found |= linear("x_embedder.proj2", 256, 1536)
    found |= {"pos_embed": (1, 32 * 32, 1536)}
    found |= text_trunk(1536, 24, 16, 4, 2048, 128)
    return found | linear("final_layer.linear", 1536, 3 * 16 * 16)


def jit(d: int, heads: int, depth: int, neck: int, patch: int = 16, tokens: int = 256):
    hidden = int(int(4 * d) * 2 / 3)
    first = neck or d
    found = convolution("x_embedder.proj1", 3, first, patch, bias=not neck)
    if neck:
        found |= convolution("x_embedder.proj2", neck, d, 1, bias=True)
    found |= {"pos_embed": (1, tokens, d), "in_context_posemb": (1, 32, d)}
    found |= time_embedder(d) | {"y_embedder.embedding_table.weight": (1001, d)}
    for i in range(depth):
        block = f"blocks.{i}"
        found |= norms(block, norm1=d, norm2=d)
        found |= linear(f"{block}.attn.qkv", d, 3 * d)
        found |= norms(f"{block}.attn", q_norm=d // heads, k_norm=d // heads)
        found |= linear(f"{block}.attn.proj", d, d)
        found |= linear(f"{block}.mlp.w12", d, 2 * hidden)
        found |= linear(f"{block}.mlp.w3", hidden, d)
        found |= linear(f"{block}.adaLN_modulation.1", d, 6 * d)
    found |= norms("final_layer", norm_final=d)
    found |= linear("final_layer.adaLN_modulation.1", d, 2 * d)
    return found | linear("final_layer.linear", d, 3 * patch * patch)


def asymflow(d: int, heads: int, depth: int, neck: int):
    found = jit(d, heads, depth, neck)
    found["x_embedder.pos_embed"] = found.pop("pos_embed")
    return found | {"proj_buffer": (16 * 16 * 3, 8)}


# The model, its official tensors, the papers' millions of parameters, its config.
# The paper gives PixNerd-L 458M; the official code builds 452M.
RELEASED = {
    "PixelFlow-XL/4": (pixelflow(1152, 28, 4, 1000), 677, "pixelflow:xl4_256"),
    "PixelFlow text": (pixelflow(1152, 28, 4, text=2048), 882, "pixelflow_t2i:256"),
    "PixNerd-L/16": (pixnerd(1024, 16, 22, 2), 452, "pixnerd:l16_256"),
    "PixNerd-XL/16": (pixnerd(1152, 16, 26, 4), 701, "pixnerd:xl16_256"),
    "PixNerd-XXL/16": (pixnerd_xxl(), 1172, "pixnerd_t2i:sft_512"),
    "DeCo-L/16": (deco(1024, 16, 22), 427, "deco:l16_256"),
    "DeCo-XL/16": (deco(1152, 16, 28), 682, "deco:xl16_256"),
    "PixelGen-L/16": (jit(1024, 16, 24, 128), 459, "pixelgen:l_256"),
    "PixelGen-XL/16": (jit(1152, 16, 28, 0), 677, "pixelgen:xl_256"),
    "PixelGen-XXL/16": (pixelgen_xxl(), 1123, "pixelgen_t2i:sft_512"),
    "JiT-B/16": (jit(768, 12, 12, 128), 131, "pixelgen:jit_b_256"),
    "JiT-L/16": (jit(1024, 16, 24, 128), 459, "pixelgen:jit_l_256"),
    "JiT-H/16": (jit(1280, 16, 32, 256), 953, "pixelgen:jit_h_256"),
    "AsymFlow-H/16": (asymflow(1280, 16, 32, 256), 953, "asymflow:h16_256"),
    "JiT-B/32": (jit(768, 12, 12, 128, 32), 133, "pixelgen:jit_b_512"),
    "JiT-L/32": (jit(1024, 16, 24, 128, 32), 462, "pixelgen:jit_l_512"),
    "JiT-H/32": (jit(1280, 16, 32, 256, 32), 956, "pixelgen:jit_h_512"),
}


def stored(shapes: Shapes) -> dict[str, LazyTensor]:
    """Tensors that cannot be read: nothing here may ask for values."""
    float32 = np.dtype(np.float32)
    return {key: LazyTensor(shape, float32, None) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", RELEASED)
def test_every_official_tensor_of_a_released_model_is_mapped(name):
    shapes, millions, config = RELEASED[name]
    tensors = stored(shapes)
    architecture = families.guess(tensors)
    found = families.infer(architecture, tensors, {}, "")
    ours = families.shapes_of(found.model)
    assert round(count(ours) / 1e6) == millions
    if prediction := architecture.prediction(found.model, tensors):
        ours[CONSTANTS] = prediction.constant_shapes(found.model.channels)
    assert tables.problems(architecture.table(found.model), tensors, ours) == []
    assert count(ours) == sum(tensor.size for tensor in tensors.values())
    published = type(found.model)()
    if config:
        file, _, chosen = config.partition(":")
        published = loaded(file).get_config(chosen).model
    got, wanted = families.fields(found.model), families.fields(published)
    for field_name in families.EXECUTION:
        got.pop(field_name, None), wanted.pop(field_name, None)
    assert got == wanted  # what is assumed, too


def loaded(name: str):
    path = CONFIGS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"configs_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ONE_OF_EACH = (
    *("PixelFlow-XL/4", "PixelFlow text", "PixNerd-L/16", "PixNerd-XXL/16"),
    *("PixelGen-L/16", "PixelGen-XL/16", "PixelGen-XXL/16"),
)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_lost_a_renamed_and_a_transposed_tensor_are_found_out(name):
    """Each tensor in turn: whatever the inference reads, the strict check notices."""
    shapes, _, _ = RELEASED[name]
    for key in filter(re.compile(r".*blocks\.0\.|(?!.*blocks\.)").match, shapes):
        if key == CONTEXT:  # without it, a model has no such tokens
            continue
        lost = {k: v for k, v in shapes.items() if k != key}
        assert f"missing: {key}" in found_in(lost), key
        problems = found_in(lost | {f"{key}_": shapes[key]})
        assert {f"missing: {key}", f"unexpected: {key}_"} <= set(problems), key
        # Where sizes are read from this tensor, it is the others that do not fit.
        odd = found_in(shapes | {key: (*shapes[key][:-1], shapes[key][-1] + 7)})
        is_text_width = key == "y_embedder.proj.weight"  # which nothing else tells
        assert is_text_width or any(line.startswith("misshapen: ") for line in odd), key
        turned = shapes[key][::-1]
        if turned != shapes[key]:
            problems = found_in(shapes | {key: turned})
            assert any(line.startswith(f"misshapen: {key}: ") for line in problems), key


def found_in(shapes: Shapes) -> list[str]:
    tensors = stored(shapes)
    architecture = families.guess(tensors)
    model = families.infer(architecture, tensors, {}, "").model
    known = f"{architecture.families} {model!r}"
    if known not in KNOWN:
        KNOWN[known] = families.shapes_of(model)
        if prediction := architecture.prediction(model, tensors):
            KNOWN[known][CONSTANTS] = prediction.constant_shapes(model.channels)
    return tables.problems(architecture.table(model), tensors, KNOWN[known])


KNOWN: dict[str, dict] = {}


@pytest.mark.parametrize(
    "name", [name for name in RELEASED if CONTEXT in RELEASED[name][0]]
)
def test_without_their_table_a_model_has_no_tokens_of_the_class(name):
    """All other fields are the same; where tokens would enter means nothing."""
    shapes, _, _ = RELEASED[name]
    lost = {key: shape for key, shape in shapes.items() if key != CONTEXT}
    assert found_in(lost) == []
    assert found_in(lost | {f"{CONTEXT}_": shapes[CONTEXT]}) == [
        f"unexpected: {CONTEXT}_"
    ]
    assert found_in(lost | {CONTEXT: (1, 7, 3)})[0].startswith(
        f"misshapen: {CONTEXT}: "
    )
    architecture = families.guess(shapes)
    whole, bare = (
        families.infer(architecture, stored(one), {}, "") for one in (shapes, lost)
    )
    changed = {"context_length": 0, "context_start": 0}
    assert bare.model == dataclasses.replace(whole.model, **changed)
    assert bare.assumed.keys() == whole.assumed.keys() - {"context_start"}
