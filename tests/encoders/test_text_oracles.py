"""Text encoders against transformers: with torch, where it is."""

import jax
import numpy as np
import pytest

from pixelflow_jax.encoders.bert import PACKAGE, Bert
from pixelflow_jax.errors import WeightsError
from pixelflow_jax.models.interface import count
from pixelflow_jax.nn.precision import Precision
from tests.encoders.tiny_text import GEOMETRIES, KINDS, VOCABULARY, encoder, prompts
from tests.teachers.official import EXACT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

each = pytest.mark.parametrize("kind", KINDS)


def config(kind: str):
    """transformers' config of our tiny sizes."""
    g = GEOMETRIES[kind]
    same = {"vocab_size": VOCABULARY}
    if kind == "t5":
        return transformers.T5Config(
            d_model=g.width,
            d_kv=g.head_width,
            d_ff=g.hidden,
            num_layers=g.depth,
            num_heads=g.heads,
            feed_forward_proj="gated-gelu",
            **same,
        )
    same |= {
        "hidden_size": g.width,
        "intermediate_size": g.hidden,
        "num_hidden_layers": g.depth,
        "num_attention_heads": g.heads,
    }
    if kind == "bert":
        return transformers.BertConfig(max_position_embeddings=g.positions, **same)
    return transformers.Qwen3Config(
        num_key_value_heads=g.kv_heads,
        head_dim=g.head_width,
        rope_theta=g.period,
        tie_word_embeddings=True,
        **same,
    )


# The network alone; with a head or a decoder, and what the network is called there.
CLASSES = {
    "t5": ("T5EncoderModel", "T5ForConditionalGeneration", "encoder"),
    "qwen3": ("Qwen3Model", "Qwen3ForCausalLM", "model"),
    "bert": ("BertModel", "BertForMaskedLM", "bert"),
}


def model(kind: str, name: str = "", **more):
    """A transformers model of random weights that are not small."""
    torch.manual_seed(0)
    found = getattr(transformers, name or CLASSES[kind][0])
    found = found._from_config(config(kind), **more).eval()
    with torch.no_grad():
        for key, parameter in found.named_parameters():
            size = 0.4 if "embed" in key or "shared" in key else 0.15
            parameter.add_(size * torch.randn_like(parameter))
    return found


def expected(network, tokens, mask) -> np.ndarray:
    ids = torch.from_numpy(tokens).long()
    mask = None if mask is None else torch.from_numpy(mask).long()
    with torch.no_grad():
        return network(input_ids=ids, attention_mask=mask)[0].numpy()


@each
@pytest.mark.parametrize("saved", ["one file", "shards"])
@pytest.mark.parametrize("headed", [False, True], ids=["alone", "headed"])
def test_what_transformers_saves_loads_and_agrees(kind, saved, headed, tmp_path):
    alone, with_head, part = CLASSES[kind]
    whole = model(kind, with_head if headed else alone)
    network = getattr(whole, part) if headed else whole
    size = "1GB" if saved == "one file" else "12KB"
    whole.save_pretrained(tmp_path, max_shard_size=size)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert (len(shards) > 1) == (saved == "shards")
    net = encoder(kind, weights=str(tmp_path))
    params = net.load()
    kept = [k for k, _ in network.named_parameters() if "pooler" not in k]
    assert count(params) == sum(network.get_parameter(k).numel() for k in kept)
    tokens, mask = prompts()
    run = jax.jit(net.states)
    for given in (mask, None):
        theirs = expected(network, tokens, given)
        np.testing.assert_allclose(run(params, tokens, given), theirs, atol=1e-5)
    if saved == "shards":
        shards[1].unlink()
        with pytest.raises(WeightsError, match=f"lacks shards: {shards[1].name}"):
            net.load()


@pytest.mark.parametrize(("backend", "empty"), [("sdpa", "zero"), ("eager", "attend")])
def test_the_empty_text_of_either_backend(backend, empty, tmp_path):
    network = model("qwen3", attn_implementation=backend)
    network.save_pretrained(tmp_path)
    net = encoder("qwen3", weights=str(tmp_path), empty_text=empty)
    tokens, mask = (part[None] for part in net.empty(9))
    theirs = expected(network, tokens, mask)
    found = jax.jit(net.states)(net.load(), tokens, mask)
    np.testing.assert_allclose(found, theirs, atol=1e-5)


@each
def test_bfloat16_files_load_as_they_are(kind, tmp_path):
    network = model(kind)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16())
    tokens, mask = prompts()
    theirs = expected(network, tokens, mask)
    network.to(torch.bfloat16).save_pretrained(tmp_path)
    net = encoder(kind, weights=str(tmp_path))
    found = jax.jit(net.states)(net.load(), tokens, mask)
    np.testing.assert_allclose(found, theirs, atol=1e-5)


def test_half_precision_rounds_the_rotary_frequencies_like_a_cast_network():
    network = model("qwen3")
    places = torch.arange(200)[None]
    for precision, dtype in ((EXACT, torch.float32), (Precision(), torch.bfloat16)):
        rotary = network.to(dtype).rotary_emb
        turns = encoder("qwen3", precision=precision).turns(200)
        for ours, theirs in zip(turns, rotary(torch.zeros(1), places), strict=True):
            theirs = theirs[0, :, : ours.shape[1]].numpy()
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_minilms_real_weights_agree():
    package = pytest.importorskip(PACKAGE)
    network = transformers.AutoModel.from_pretrained(package.get_model_path()).eval()
    net = Bert(precision=EXACT)
    texts = ["A dog runs along the beach, chased by two others.", "Strawberries.", ""]
    read = net.reader(40)(texts)
    tokens, mask = read["tokens"], read["mask"]
    for given in (mask, None):
        found = jax.jit(net.states)(net.load(), tokens, given)
        theirs = expected(network, tokens, given)
        np.testing.assert_allclose(found, theirs, atol=1e-4)
        np.testing.assert_allclose(found[:2][mask[:2]], theirs[:2][mask[:2]], atol=2e-5)
