"""What was called otherwise in version 0.1, and what it is called now.

One table for all that reads old words: files of format version 1 (`config_versions`,
`training.checkpoint`), and the messages for old imports, flags and config files.
"""

import difflib
import importlib.abc
import re
import sys
from collections.abc import Iterable, Sequence

PACKAGE = "pixelflow_jax"

# Modules, without the package's name.
MODULES = {
    "conditioning": "conditioning.conditioner",
    "convert.errors": "errors",
    "convert.infer": "convert.sizes",
    "convert.official": "convert.checkpoints",
    "convert.pixelgen_text": "convert.pixelgen",
    "convert.pixnerd_text": "convert.pixnerd",
    "convert.released": "convert.families",
    "convert.tables": "tensors.mapping",
    "convert.text_trunk": "convert.rows",
    "convert.variants": "convert.families",
    "data.colourfont": "data.emoji.colourfont",
    "data.colours": "data.emoji.colours",
    "data.emoji": "data.emoji.source",
    "data.errors": "errors",
    "data.parquet": "data.prepare.parquet",
    "data.progress": "data.prepare.progress",
    "data.shard_writer": "data.prepare.shard_writer",
    "data.tars": "data.prepare.tars",
    "description": "pretrained.card",
    "draw": "cli.sample",
    "evaluation.generate": "sampling.batches",
    "evaluation.output": "sampling.output",
    "evaluation.preview": "sampling.preview",
    "hub": "tensors.hub",
    "models.base": "models.interface",
    "models.checks": "models.trunk",
    "nodes": "config_io",
    "objective": "losses.objective",
    "perceptual": "losses.perceptual",
    "pipeline": "pretrained.pipeline",
    "presets": "sampling.presets",
    "prompts": "conditioning.prompts",
    "published": "pretrained.weights",
    "sampler": "sampling.sampler",
    "teachers.bert": "encoders.bert",
    "teachers.encoders": "encoders.layers",
    "teachers.qwen3": "encoders.qwen3",
    "teachers.t5": "encoders.t5",
    "teachers.text": "encoders.tokenizers",
    "teachers.weights": "tensors.locate",
    "training.balance": "losses.adaptive_weight",
    "training.initial": "pretrained.finetune",
    "training.text_features": "cli.text_features",
    "weightfiles": "tensors",
    "weightfiles.pytorch": "tensors.torch_files",
    "weightfiles.reader": "tensors.reader",
    "weightfiles.safe": "tensors.safetensors_files",
    "weightfiles.stored": "tensors.lazy",
}

# Classes of a config, as files name them.
CLASSES = {"Loop": "StackConfig", "Balance": "AdaptiveWeight"}

# Fields of a config's classes, as files name them.
FIELDS = {
    "balance": "adaptive_weight",
    "closed": "interval",
    "loop": "stack",
    "tap": "feature_layer",
    "told": "timestep_scale",
}

# Fields that are elsewhere now, and where.
MOVED = {
    "attention": "kernels.attention of the Experiment",
    "kernel": "kernels.field of the Experiment",
    "kernels": "kernels.blocks of the Experiment",
}

# Entries of a training state: of its parameters, and of what it carries along.
STATE = {"heads": "projectors", "balance": "adaptive_weight"}

# Other names that a user's file may import.
NAMES = {
    **CLASSES,
    "Cond": "Condition",
    "Fit": "Compatibility",
    "Found": "WeightsRef",
    "NODES": "node_classes",
    "Needs": "RequiredFeatures",
    "Recipe": "Objective",
    "Run": "TrainingRun",
    "Seen": "TargetFeatures",
    "Stored": "LazyTensor",
    "TeacherError": "WeightsError",
    "TimeLaw": "TimeSampler",
    "Told": "InferredConfig",
    "WeightFileError": "WeightsError",
    "misfitting": "shape_errors",
    "mistyped": "type_errors",
}


def module_hint(name: str) -> str:
    """What a module of that name is called now, a sentence; "" for one not renamed."""
    old = name.removeprefix(f"{PACKAGE}.")
    if old == name or old not in MODULES:
        return ""
    return f"{name} is called {PACKAGE}.{MODULES[old]} now."


def name_hint(module: str, name: str) -> str:
    """Where an old name of a module is now, a sentence; "" for one not renamed."""
    home = MODULES.get(module.removeprefix(f"{PACKAGE}."))
    where = f" in {PACKAGE}.{home}" if home else ""
    if name in NAMES:
        return f"{name} is called {NAMES[name]} now{where}."
    return f"{name} is{where} now." if where else ""


def field_hint(cls: str, name: str, fields: Sequence[str]) -> str:
    """Which field is meant by one that a class does not have; "" or a sentence."""
    new = FIELDS.get(name, "")
    if new in fields:
        return f"{cls}.{name} is called {new} now. "
    if name in MOVED:
        return f"{cls}.{name} is {MOVED[name]} now. "
    near = difflib.get_close_matches(name, fields, 1)
    return f"Did you mean {near[0]}? " if near else ""


class _OldModules(importlib.abc.MetaPathFinder):
    """Refuses imports of modules by their old names, with the new one."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: object = None
    ) -> None:
        """Raises ModuleNotFoundError for an old name; asked where no other finds it."""
        if hint := module_hint(fullname):
            # Without its `name`, by which `from package import module` would hide it.
            raise ModuleNotFoundError(f"No module named {fullname!r}: {hint}")


def install() -> None:
    """Let imports of old names say the new ones."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())


def import_hint(error: ImportError) -> str:
    """What an import that failed should be now; "" or a sentence."""
    match = re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
    return name_hint(match[2], match[1]) if match else ""
