"""Folders whose tensors are spread over files that must be merged first."""

import itertools
import pathlib
import pickle
import pickletools
import re

from pixelflow_jax.tensors import pickles

LOOKED_AT = 10_000  # files of a folder
RANKS = re.compile(r"(.*[._-])?(mp_)?rank[._-]?\d+.*\.(pt|pth|bin|ckpt)")
DEEPSPEED = re.compile(r"(zero_to_fp32\.py|(zero_pp_)?.*mp_rank_\d+_.*states\.pt)")
NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


def meaning(folder: pathlib.Path) -> str:
    """What a folder of that kind is and how to merge it; "" for all others."""
    listed = list(itertools.islice(folder.iterdir(), LOOKED_AT))
    names = sorted(path.name for path in listed)
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return (
            f"{folder} is a distributed checkpoint of PyTorch: {_keys(folder)} Merge "
            "them into one file: python -m torch.distributed.checkpoint.format_utils "
            f"dcp_to_torch {folder} merged.pt"
        )
    deep = [name for name in names if DEEPSPEED.fullmatch(name)]
    steps = [p for p in listed if p.name.startswith("global_step") and p.is_dir()]
    if deep or steps:
        files = deep or sorted(path.name for path in steps[0].iterdir())
        return (
            f"{folder} is a checkpoint of DeepSpeed, of the files {_some(files)}. "
            f"Merge them: python zero_to_fp32.py {folder} merged (the script lies "
            "beside them); without ZeRO-3, *_model_states.pt is whole: name that file."
        )
    inside = [p for p in listed if p.is_dir() and (p / ".metadata").is_file()]
    if inside:
        return meaning(inside[0])
    ranks = [name for name in names if RANKS.fullmatch(name)]
    if len(ranks) > 1:
        return (
            f"{folder} holds one file of each process (FSDP): {_some(ranks)}. Merge "
            "them with the program that wrote them, such as `accelerate merge-weights`."
        )
    return ""


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _keys(folder: pathlib.Path) -> str:
    """The names of tensors that a checkpoint's own table holds; nothing is executed."""
    texts: list[str] = []
    try:
        with open(folder / ".metadata", "rb") as file:
            content = file.read(pickles.MOST)
        for code, text, _ in pickletools.genops(content):
            if "UNICODE" in code.name and NAME.fullmatch(str(text)):
                texts.append(str(text))
    except (OSError, ValueError, pickle.UnpicklingError):
        pass
    # Classes are named by their modules.
    names = [t for t in dict.fromkeys(texts) if not t.startswith(("torch.", "numpy."))]
    return f"its tensors are {_some(names)}." if names else "its table cannot be read."
