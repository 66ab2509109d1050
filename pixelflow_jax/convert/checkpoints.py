"""The layouts of official checkpoints: which part is the model, and how to write one.

The official training programs store the same state dict under different names: alone,
below a key of a dictionary, with a prefix before every name. `GROUPS` and `PREFIXES`
say which; everything else of a checkpoint is left out, and named. `LAYOUTS` writes.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

from pixelflow_jax.errors import ConvertError
from pixelflow_jax.tensors.lazy import LazyTensor

RAW = "raw"
# What is taken when nothing is asked for: what the official programs sample with.
PREFERENCE = ("ema", "ema1", "ema2", RAW)

# The dictionaries that hold state dicts, and which weights these are.
GROUPS = {
    "": RAW,  # the state dict itself
    "state_dict": RAW,  # Lightning: PixNerd, PixelGen
    "model": RAW,  # training programs of PixelFlow and JiT
    "ema": "ema",  # PixelFlow's average
    "model_ema1": "ema1",  # JiT's averages, of decay 0.9999
    "model_ema2": "ema2",  # and 0.9996
}
# What stands before the names of a model's tensors inside a state dict, and which
# weights these are; None: those of the group.
PREFIXES = {
    "ema_denoiser.": "ema",
    "denoiser.": None,
    "ema_net.": "ema",
    "net.": None,
    "": None,
}
# Wrappers of PyTorch's that leave their name in front of, or inside, other names.
WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod)\.")

# Tensors that belong to no denoiser, and what they are.
BESIDE = {
    r"diffusion_trainer\.proj\..*": "REPA's projector, which only training needs",
    r"diffusion_trainer\..*": "frozen networks and state of the trainer",
    r"(vae|conditioner|diffusion_sampler|lpips|encoder)\..*": "frozen networks",
}
# Entries of a training checkpoint that are no weights, and what they are.
TRAINING = {
    r"opt|optimizer|optimizer_states": "state of the optimizer",
    r"args|hyper_parameters|.*_hparams_.*|hparams_name": "settings of the training",
    r"scaler|lr_schedulers|loops|callbacks|MixedPrecision|AMPScaler": "training state",
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """One model in a checkpoint: `tensors` by their bare official names.

    `name` is that of its kind in `PREFERENCE`, `place` where it lies: the dictionary
    and the prefix.
    """

    name: str
    place: str
    tensors: Mapping[str, LazyTensor]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The models of a file, the notes on what else it holds, its number of steps.

    `stray` are tensors of its state dicts that belong to nothing known.
    """

    weights: dict[str, Weights]
    notes: tuple[str, ...]
    step: int
    stray: tuple[str, ...]

    def chosen(self, name: str = "") -> Weights:
        """The weights of that name, or the preferred ones; ConvertError for others."""
        if not self.weights:
            raise ConvertError(
                "There is no state dict in this file: neither tensors by name nor a "
                f"dictionary of them under {', '.join(filter(None, GROUPS))}."
            )
        if not name:
            name = next(kind for kind in PREFERENCE if kind in self.weights)
        # PixelFlow's, PixNerd's and PixelGen's only average, and the first of JiT's.
        if name == "ema" and "ema1" in self.weights:
            name = "ema1"
        if name not in self.weights:
            raise ConvertError(
                f"There are no weights {name!r} in this file; it holds "
                f"{', '.join(self.weights)}."
            )
        return self.weights[name]


def checkpoint(content: object) -> Checkpoint:
    """Sort what `tensors.reader.opened` returns of a file."""
    content = content if isinstance(content, Mapping) else {}
    weights: dict[str, Weights] = {}
    notes, stray = [], []
    for group, tensors in _groups(content):
        models, others = _divided(tensors)
        for prefix, model in models.items():
            name = PREFIXES[prefix] or GROUPS[group]
            place = " ".join(filter(None, [group, prefix and f"{prefix}*"]))
            weights.setdefault(name, Weights(name, place, model))
        notes += _beside(others)
        stray += [key for key in others if not _meaning(key, BESIDE)]
    step = content.get("global_step", 0)
    return Checkpoint(
        {name: weights[name] for name in PREFERENCE if name in weights},
        (*notes, *_training(content)),
        step if isinstance(step, int) else 0,
        tuple(stray),
    )


def _groups(content: Mapping) -> Iterator[tuple[str, dict[str, LazyTensor]]]:
    """The state dicts of a file, by the names of `GROUPS`."""
    for group in GROUPS:
        entry = content.get(group) if group else content
        if isinstance(entry, Mapping):
            tensors = {k: v for k, v in entry.items() if isinstance(v, LazyTensor)}
            if tensors:
                yield group, tensors


def _divided(
    tensors: Mapping[str, LazyTensor],
) -> tuple[dict[str, dict[str, LazyTensor]], dict[str, LazyTensor]]:
    """The models of a state dict, by the prefix of their names, and the other tensors.

    Without any of the prefixes, all that is not known to be something else is one.
    """
    bare = {WRAPPERS.sub("", key): tensor for key, tensor in tensors.items()}
    if len(bare) < len(tensors):
        raise ConvertError("This file names tensors twice, with and without a wrapper.")
    models: dict[str, dict[str, LazyTensor]] = {}
    others = {}
    for key, tensor in bare.items():
        prefix = next(prefix for prefix in PREFIXES if key.startswith(prefix))
        if prefix:
            models.setdefault(prefix, {})[key.removeprefix(prefix)] = tensor
        else:
            others[key] = tensor
    if not models:
        models[""] = {k: t for k, t in others.items() if not _meaning(k, BESIDE)}
        others = {k: t for k, t in others.items() if k not in models[""]}
    return {prefix: model for prefix, model in models.items() if model}, others


def _meaning(key: str, table: Mapping[str, str]) -> str:
    return next((text for p, text in table.items() if re.fullmatch(p, key)), "")


def _beside(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """What the known ones of some tensors are, a line for each kind."""
    meanings = {key: _meaning(key, BESIDE) for key in tensors}
    return [
        f"{sum(one == text for one in meanings.values())} tensors: {text}"
        for text in sorted(set(filter(None, meanings.values())))
    ]


def _training(content: Mapping) -> list[str]:
    """What a checkpoint holds besides state dicts and numbers, a line for each."""
    names = [
        key
        for key, value in content.items()
        if key not in GROUPS and isinstance(value, dict | list)
    ]
    return [f"{name}: {_meaning(name, TRAINING) or 'no weights'}" for name in names]


def plain(tensors: Mapping[str, LazyTensor], step: int) -> dict:
    """The bare state dict, as PixelFlow is released."""
    return dict(tensors)


def lightning(tensors: Mapping[str, LazyTensor], step: int) -> dict:
    """A checkpoint of PixNerd's and PixelGen's programs, both sets of weights equal."""
    prefixes = ("denoiser.", "ema_denoiser.")
    names = {prefix + k: t for prefix in prefixes for k, t in tensors.items()}
    # Lightning refuses checkpoints without its version.
    return {
        "state_dict": names,
        "global_step": step,
        "epoch": 0,
        "pytorch-lightning_version": "2.5.0",
    }


def training(tensors: Mapping[str, LazyTensor], step: int) -> dict:
    """What PixelFlow's training program resumes from, without the optimizer."""
    return {"model": dict(tensors), "ema": dict(tensors)}


def jit(tensors: Mapping[str, LazyTensor], step: int) -> dict:
    """What JiT's program samples from, the weights and both averages equal."""
    named = {f"net.{key}": tensor for key, tensor in tensors.items()}
    return {"model": named, "model_ema1": named, "model_ema2": named}


LAYOUTS: dict[str, Callable[[Mapping[str, LazyTensor], int], dict]] = {
    "plain": plain,
    "lightning": lightning,
    "pixelflow": training,
    "jit": jit,
}
