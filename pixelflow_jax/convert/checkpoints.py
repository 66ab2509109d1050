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
    "module": RAW,  # DeepSpeed, where no parameter is split
    **dict.fromkeys(["model_state_dict", "net", "params", "denoiser"], RAW),
    "ema": "ema",  # PixelFlow's average
    # What other programs call an average.
    **dict.fromkeys(["model_ema", "ema_model", "ema_state_dict"], "ema"),
    **dict.fromkeys(["ema_model_state_dict", "model_ema_state_dict"], "ema"),
    **dict.fromkeys(["state_dict_ema", "params_ema", "ema_params"], "ema"),
    **dict.fromkeys(["ema_net", "ema_denoiser", "averaged_model"], "ema"),
    "model_ema1": "ema1",  # JiT's averages, of decay 0.9999
    "model_ema2": "ema2",  # and 0.9996
}
# Some put the tensors of such a dictionary into another one inside of it.
INSIDE = ("state_dict", "module", "model", "ema_model", "shadow", "params")
SHADOW = "shadow_params"  # an average as a list: its tensors have no names of their own
# What stands before the names of a model's tensors inside a state dict, and which
# weights these are; None: those of the group.
PREFIXES = {
    "ema_denoiser.": "ema",
    "denoiser.": None,
    "ema_net.": "ema",
    "net.": None,
    **dict.fromkeys(["ema_model.", "model_ema.", "ema."], "ema"),
    **dict.fromkeys(["online_model.", "model."], None),
    "": None,
}
# Wrappers of PyTorch's that leave their name in front of, or inside, other names.
WRAPPERS = re.compile(
    r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)

# Tensors that belong to no denoiser, and what they are.
BESIDE = {
    r"diffusion_trainer\.proj\..*": "REPA's projector, which only training needs",
    r"diffusion_trainer\..*": "frozen networks and state of the trainer",
    r"(vae|conditioner|diffusion_sampler|lpips|encoder)\..*": "frozen networks",
    r"(.*\.)?(n_averaged|num_updates|decay|initted|step)": "counters of an average",
}
# Entries of a training checkpoint that are no weights, and what they are.
TRAINING = {
    r"opt|optimizer|optimizer_states?|.*optimizer_state_dict": "state of the optimizer",
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
        """The weights of that name, or the preferred ones; ConvertError for others.

        The name of the dictionary that holds them will do, too.
        """
        if not self.weights:
            held = "; ".join(self.notes[:5]) or "nothing that has a name"
            raise ConvertError(
                "There is no state dict in this file: neither tensors by name nor a "
                "dictionary of them, such as state_dict, model or ema. It holds: "
                f"{held}."
            )
        if not name:
            known = [kind for kind in PREFERENCE if kind in self.weights]
            name = known[0] if known else self._only()
        # PixelFlow's, PixNerd's and PixelGen's only average, and the first of JiT's.
        if name == "ema" and "ema1" in self.weights:
            name = "ema1"
        by_place = [w for w in self.weights.values() if name in w.place.split()]
        if name not in self.weights and not by_place:
            raise ConvertError(
                f"There are no weights {name!r} in this file; it holds "
                f"{', '.join(self.weights)}."
            )
        return self.weights[name] if name in self.weights else by_place[0]

    def _only(self) -> str:
        """The one dictionary of tensors that a file has, under a name of its own."""
        if len(self.weights) > 1:
            raise ConvertError(
                "This file holds several dictionaries of tensors, none under a usual "
                f"name: choose one by --weights, of {', '.join(self.weights)}."
            )
        return next(iter(self.weights))


def checkpoint(content: object) -> Checkpoint:
    """Sort what `tensors.reader.opened` returns of a file."""
    content = content if isinstance(content, Mapping) else {}
    weights: dict[str, Weights] = {}
    notes, stray = [], []
    for group, tensors in _groups(content):
        models, others = _divided(tensors)
        for prefix, model in models.items():
            name = PREFIXES[prefix] or GROUPS.get(group, group)
            place = " ".join(filter(None, [group, prefix and f"{prefix}*"]))
            weights.setdefault(name, Weights(name, place, model))
        notes += _beside(others)
        stray += [key for key in others if not _meaning(key, BESIDE)]
    notes += _shadow(content, weights)
    step = content.get("global_step", 0)
    others = [name for name in weights if name not in PREFERENCE]
    return Checkpoint(
        {name: weights[name] for name in (*PREFERENCE, *others) if name in weights},
        (*notes, *_training(content, weights)),
        step if isinstance(step, int) else 0,
        tuple(stray),
    )


def _groups(content: Mapping) -> Iterator[tuple[str, dict[str, LazyTensor]]]:
    """The state dicts of a file, by the names of `GROUPS`, then by others."""
    others = [key for key in content if not _meaning(str(key), TRAINING)]
    for group in dict.fromkeys([*GROUPS, *map(str, others)]):
        entry = content.get(group) if group else content
        if not isinstance(entry, Mapping):
            continue
        inside = [entry, *(entry.get(name) for name in INSIDE if group in GROUPS)]
        for one in inside if group else [entry]:
            tensors = _named_tensors(one)
            if tensors:
                yield group, tensors
                break


def _named_tensors(entry: object) -> dict[str, LazyTensor]:
    if not isinstance(entry, Mapping):
        return {}
    return {str(k): v for k, v in entry.items() if isinstance(v, LazyTensor)}


def _shadow(content: Mapping, weights: dict[str, Weights]) -> list[str]:
    """Take an average that is a list, where the raw weights tell its names; notes."""
    entries = [("", content), *content.items()]
    for place, entry in entries:
        listed = entry.get(SHADOW) if isinstance(entry, Mapping) else None
        if not isinstance(listed, list) or not listed:
            continue
        raw = weights[RAW].tensors if RAW in weights else {}
        where = " ".join(filter(None, [str(place), SHADOW]))
        shapes = [getattr(tensor, "shape", None) for tensor in listed]
        if [tensor.shape for tensor in raw.values()] != shapes:
            return [
                f"{where}: an average of {len(listed)} tensors without names, which "
                "are not those of the weights"
            ]
        named = dict(zip(raw, listed, strict=True))
        weights.setdefault("ema", Weights("ema", where, named))
    return []


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
    for prefix, model in models.items():
        counters = {k: t for k, t in model.items() if _meaning(k, BESIDE)}
        others |= {k: model.pop(k) for k in counters if PREFIXES[prefix]}
    plain = next((m for p, m in models.items() if not PREFIXES[p]), others)
    models = {prefix: _with_dots(model, plain) for prefix, model in models.items()}
    if not models:
        models[""] = {k: t for k, t in others.items() if not _meaning(k, BESIDE)}
        others = {k: t for k, t in others.items() if k not in models[""]}
    return {prefix: model for prefix, model in models.items() if model}, others


def _with_dots(
    model: dict[str, LazyTensor], plain: Mapping[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """An average under the names of the weights, where its own have lost their dots."""
    names = {name.replace(".", ""): name for name in plain}
    if any("." in key for key in model) or not set(model) <= set(names):
        return model
    return {names[key]: tensor for key, tensor in model.items()}


def _meaning(key: str, table: Mapping[str, str]) -> str:
    return next((text for p, text in table.items() if re.fullmatch(p, key)), "")


def _beside(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """What the known ones of some tensors are, a line for each kind."""
    meanings = {key: _meaning(key, BESIDE) for key in tensors}
    return [
        f"{sum(one == text for one in meanings.values())} tensors: {text}"
        for text in sorted(set(filter(None, meanings.values())))
    ]


def _training(content: Mapping, taken: Mapping[str, Weights]) -> list[str]:
    """What a checkpoint holds besides state dicts and numbers, a line for each."""
    names = [
        str(key)
        for key, value in content.items()
        if key not in GROUPS and key not in taken and isinstance(value, dict | list)
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
