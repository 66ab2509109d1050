"""Real, tiny tokenizers of each encoder's kind, with its special tokens."""

import pathlib

import pytest

from tests.encoders.tiny_text import GEOMETRIES, KINDS

WORDS = "a cat dog and the sat on mat red".split()


def unigram():
    """T5's kind: pieces of words with a sign for the space before them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [("s", -5.0), ("▁", -6.0)]
    pieces += [(f"▁{word}", -3.0) for word in ("big", "sea", "sky")]
    found = Tokenizer(models.Unigram(pieces, unk_id=2))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    found.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return found


def bytewise():
    """Qwen's kind: bytes, merged by rules; nothing is put around a text."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate("abc")}
    vocabulary |= {"<|endoftext|>": 3}
    vocabulary |= {token: i for i, token in enumerate("dogtĠ.éçÃ©nsk", 4)}
    merges = [("c", "a"), ("ca", "t"), ("d", "o"), ("do", "g")]
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    found = Tokenizer(models.BPE(vocabulary, merges))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return found


def wordpiece():
    """BERT's kind, in lower case; it cuts and pads by itself, as MiniLM's does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    names = ["[PAD]", "[UNK]", "x", "y", "[CLS]", "[SEP]", "##s", *WORDS]
    vocabulary = {name: i for i, name in enumerate(names)}
    found = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer()
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 4), ("[SEP]", 5)]
    )
    found.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    found.enable_truncation(4)
    found.enable_padding(length=4)
    return found


MAKERS = {"t5": unigram, "qwen3": bytewise, "bert": wordpiece}
assert list(MAKERS) == KINDS and set(MAKERS) == set(GEOMETRIES)


def saved(kind: str, folder: pathlib.Path) -> str:
    """A folder with that kind's tokenizer.json; skips without the packages."""
    pytest.importorskip("transformers")
    folder.mkdir(parents=True, exist_ok=True)
    MAKERS[kind]().save(str(folder / "tokenizer.json"))
    return str(folder)
