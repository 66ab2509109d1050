"""Texts to tokens: framed, padded, cut with a warning; wrong tokenizers are refused."""

import dataclasses
import logging
import pickle
import sys
import types

import numpy as np
import pytest

from pixelflow_jax.encoders.bert import PACKAGE, Bert
from pixelflow_jax.encoders.qwen3 import Qwen3
from pixelflow_jax.encoders.t5 import T5
from pixelflow_jax.encoders.tokenizers import Frame, Special
from pixelflow_jax.errors import WeightsError
from tests.encoders.tiny_text import GEOMETRIES, KINDS, encoder
from tests.encoders.tokenizers_of import saved

each = pytest.mark.parametrize("kind", KINDS)
# What each kind makes of "a cat", of "cats", and puts around a text.
PIECES = {
    "t5": ([3, 4], [4, 12], [], [1], 0),
    "qwen3": ([0, 8, 18], [18, 15], [], [], 3),
    "bert": ([7, 8], [8, 6], [4], [5], 0),
}


def reader(kind: str, folder, length: int = 8, **fields):
    fields = {"tokenizer": saved(kind, folder), **fields}
    return encoder(kind, **fields).reader(length)


@each
def test_texts_are_framed_and_padded_on_the_right(kind, tmp_path):
    pieces, plural, before, after, padding = PIECES[kind]
    read = reader(kind, tmp_path)
    read.check()
    found = read(["a cat", "", "cats"])
    assert found["tokens"].dtype == np.int32 and found["mask"].dtype == np.bool_
    for row, inside in enumerate((pieces, [], plural)):
        framed = [*before, *inside, *after]
        padded = framed + [padding] * (8 - len(framed))
        assert found["tokens"][row].tolist() == padded
        assert found["mask"][row].tolist() == [i < len(framed) for i in range(8)]
    assert read([])["tokens"].shape == read([])["mask"].shape == (0, 8)
    assert not read.cut


@each
def test_the_empty_text_is_what_the_encoder_says(kind, tmp_path):
    for length in (3, 8, 60):
        net = encoder(kind)
        found = reader(kind, tmp_path, length)(["", ""])
        for ours, theirs in zip(found.values(), net.empty(length), strict=True):
            np.testing.assert_array_equal(ours, np.stack([theirs, theirs]))
            assert ours.dtype == theirs.dtype


def test_the_empty_text_of_the_published_encoders():
    """As their tokenizers write it: </s>; nothing; [CLS] [SEP]."""
    for net, expected, real in (
        (T5(), [1, 0, 0, 0], 1),
        (Qwen3(), [151_643] * 4, 0),
        (Bert(), [101, 102, 0, 0], 2),
    ):
        tokens, mask = net.empty(4)
        assert (
            tokens.tolist() == expected and mask.sum() == real and not mask[real:].any()
        )


@each
def test_transformers_makes_the_same_tokens(kind, tmp_path):
    """Called as the official pipelines call it: cut and filled up to a length."""
    names = {"t5": "<pad>", "qwen3": "<|endoftext|>", "bert": "[PAD]"}
    read = reader(kind, tmp_path, 7)
    official = pytest.importorskip("transformers").PreTrainedTokenizerFast(
        tokenizer_file=f"{tmp_path}/tokenizer.json", pad_token=names[kind]
    )
    texts = ["a cat and a dog sat on a mat", "cats", "", " dog  ", "a dog.", "é ç 7"]
    theirs = official(texts, truncation=True, max_length=7, padding="max_length")
    found = read(texts)
    assert found["tokens"].tolist() == theirs["input_ids"]
    assert found["mask"].astype(int).tolist() == theirs["attention_mask"]


@each
def test_a_long_text_is_cut_and_the_cut_is_shown(kind, tmp_path, caplog):
    pieces, _, before, after, _ = PIECES[kind]
    length = len(before) + len(pieces) + len(after)
    read = reader(kind, tmp_path, length)
    text = "a cat and a dog sat on the mat" if kind != "qwen3" else "a cat.dog dog dog"
    with caplog.at_level(logging.WARNING):
        found = read(["a cat", text, text])
        read([text, text + " dog"])
    np.testing.assert_array_equal(found["tokens"][0], found["tokens"][1])
    np.testing.assert_array_equal(found["tokens"][1], found["tokens"][2])
    assert (
        found["mask"].all()
        and found["tokens"][0].tolist()[-1] == ([*pieces, *after][-1])
    )
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and read.cut == 4
    for number, message in enumerate(messages, 1):
        gone = text.removeprefix("a cat").strip() + " dog" * (number - 1)
        for part in (
            f"than {length} tokens",
            f"number {number}",
            "'a cat'",
            repr(gone),
        ):
            assert part in message, message


def test_only_the_words_beside_a_cut_are_shown(tmp_path, caplog):
    words = ["red", "cat", "dog", "mat"] * 30
    with caplog.at_level(logging.WARNING):
        reader("bert", tmp_path, 62)([" ".join(words)])
    (message,) = (record.getMessage() for record in caplog.records)
    kept, gone = " ".join(words[:60]), " ".join(words[60:])
    parts = f"'...{kept[-30:]}' is read", f"'{gone[:30]}...' (the last 60 tokens)"
    assert all(part in message for part in parts), message


@each
def test_what_is_no_text_is_refused(kind, tmp_path):
    read = reader(kind, tmp_path)
    for texts, part in (
        (["a", b"cat"], "Text 1 is bytes, not str: b'cat'"),
        ([None], "Text 0 is NoneType"),
        ("a cat", "not one text: put it in a list"),
        (["a", b"caf\xe9".decode("utf-8", "surrogateescape")], "Text 1 cannot be writ"),
    ):
        with pytest.raises(ValueError, match=part):
            read(texts)


@each
def test_a_reader_travels_to_other_processes(kind, tmp_path):
    read = reader(kind, tmp_path)
    expected = read(["a cat"])
    again = pickle.loads(pickle.dumps(read))
    assert len(pickle.dumps(read)) < 2000  # without the opened tokenizer
    for name, value in again(["a cat"]).items():
        np.testing.assert_array_equal(value, expected[name])


@each
def test_the_tokenizer_lies_beside_the_weights_unless_named(kind, tmp_path):
    folder = saved(kind, tmp_path)
    for weights in (folder, f"{folder}/model.safetensors"):
        (tmp_path / "model.safetensors").touch()
        read = encoder(kind, weights=weights).reader(8)
        assert read(["a cat"])["mask"].any()
    with pytest.raises(WeightsError, match=r"config\.conditioner\.encoder\.tokenizer"):
        encoder("t5").reader(8).check()


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    """transformers would make a tokenizer of special tokens alone."""
    pytest.importorskip("transformers")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "T5Tokenizer"}'
    )
    for folder, there in (
        (tmp_path, "tokenizer_config.json"),
        (tmp_path / "x", "noth"),
    ):
        folder.mkdir(exist_ok=True)
        read = T5(tokenizer=str(folder)).reader(8)
        with pytest.raises(WeightsError) as raised:
            read.check()
        for part in ("holds no tokenizer", "spiece.model", there, "flan-t5-xl"):
            assert part in str(raised.value)
        with pytest.raises(WeightsError):
            read(["a cat"])
    with pytest.raises(WeightsError, match="There is no file .*gone.*tokenizer=PATH"):
        T5(tokenizer=str(tmp_path / "gone")).reader(8).check()


def test_sentencepiece_without_a_tokenizer_json(tmp_path):
    """As T5 v1.1's folders hold it."""
    pytest.importorskip("transformers")
    pieces = pytest.importorskip("sentencepiece")
    words = ["a", "cat", "dog", "sat", "on", "the", "mat", "red", "tree"]
    lines = [" ".join(words[i:] + words[:i]) for i in range(9)] * 20
    pieces.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    theirs = pieces.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    size = theirs.vocab_size() + 100  # with T5's tokens for gaps
    geometry = dataclasses.replace(GEOMETRIES["t5"], vocabulary=size)
    net = encoder("t5", geometry=geometry, tokenizer=str(tmp_path))
    texts = ["the cat sat on a red mat", "  trees   "]
    found = net.reader(20)(texts)
    for text, tokens, mask in zip(texts, *found.values(), strict=True):
        assert tokens[mask].tolist() == [*theirs.encode(text), 1]


def test_a_vocabulary_without_its_merges_is_refused(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(WeightsError, match="holds no tokenizer.*but vocab.json"):
        encoder("qwen3", tokenizer=str(tmp_path)).reader(8).check()


def test_damaged_and_unreadable_tokenizers_are_refused(tmp_path):
    folder = saved("t5", tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        encoder("t5", tokenizer=folder).reader(8).check()
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "spiece.model").write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match="cannot be read.*bring its tokenizer.json"):
        encoder("t5", tokenizer=folder).reader(8).check()


@each
def test_the_tokenizer_of_another_encoder_is_refused(kind, tmp_path):
    for other in KINDS:
        net = encoder(kind, tokenizer=saved(other, tmp_path / other))
        if other == kind:
            net.reader(8).check()
            continue
        with pytest.raises(WeightsError, match="is not that of .*its .* the encoder's"):
            net.reader(8).check()


@pytest.mark.parametrize(
    ("vocabulary", "part"),
    [(12, "has 17 tokens, more than the encoder's 12"), (35, "17 tokens, the encoder")],
)
def test_a_tokenizer_of_another_size_is_refused(vocabulary, part, tmp_path):
    net = encoder("t5", tokenizer=saved("t5", tmp_path))
    for size, wrong in ((17, False), (34, False), (vocabulary, True)):
        net.geometry = dataclasses.replace(net.geometry, vocabulary=size)
        if not wrong:
            net.reader(8).check()
            continue
        with pytest.raises(WeightsError, match=part):
            net.reader(8).check()


def test_the_package_transformers_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsError, match=r"pip install 'pixelflow_jax\[text\]'"):
        T5(tokenizer=str(tmp_path)).reader(8).check()


def test_only_tokenizer_files_are_downloaded(tmp_path, monkeypatch):
    folder, asked = saved("t5", tmp_path / "tokenizer"), []

    def snapshot_download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    read = encoder("t5", tokenizer="hf://someone/net/tokenizer").reader(8)
    found, here = read(["a cat"]), encoder("t5", tokenizer=folder).reader(8)(["a cat"])
    np.testing.assert_array_equal(found["tokens"], here["tokens"])
    ((repository, patterns),) = asked
    assert repository == "someone/net" and "tokenizer/tokenizer.json" in patterns
    assert not any("safetensors" in pattern for pattern in patterns)


def test_lengths_without_room_for_a_text_are_refused(tmp_path):
    for kind, shortest in (("t5", 2), ("qwen3", 1), ("bert", 3)):
        reader(kind, tmp_path / kind, shortest)
        with pytest.raises(ValueError, match="leaves no room for a text"):
            reader(kind, tmp_path / kind, shortest - 1)
    with pytest.raises(ValueError, match="65 tokens are more than the 64"):
        reader("bert", tmp_path / "bert", 65)
    with pytest.raises(ValueError, match="3 tokens do not fit into 2"):
        Frame("", Special("p", 0)).around([1, 2, 3], 2)


def test_minilms_own_tokenizer(tmp_path, caplog):
    """It would cut at 128 tokens by itself."""
    pytest.importorskip("transformers")
    package = pytest.importorskip(PACKAGE)
    read = Bert().reader(256)
    found = read(["A dog's Café.", "word " * 200])
    expected = [101, 1037, 3899, 1005, 1055, 7668, 1012, 102]
    assert found["tokens"][0][:9].tolist() == [*expected, 0]
    assert found["mask"].sum(-1).tolist() == [8, 202] and not read.cut
    # The same from its vocabulary alone, by transformers' class.
    model = package.get_model_path()
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    again = Bert(tokenizer=str(tmp_path)).reader(256)(["A dog's Café.", "word " * 200])
    np.testing.assert_array_equal(again["tokens"], found["tokens"])
