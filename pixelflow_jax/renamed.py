"""What was called otherwise in version 0.1, and what it is called now.

One table for all that reads old words: files of format version 1 (`config_versions`,
`training.checkpoint`), and the messages for old imports, flags and config files.
"""

import difflib
import importlib.abc
import sys
from collections.abc import Iterable, Sequence

PACKAGE = "pixelflow_jax"

# Modules, without the package's name.
MODULES = {
    "conditioning": "conditioning.interface",
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
    "nn.field_kernel": "nn.kernels.neural_field",
    "nn.heads": "nn.kernels.qkv_norm_rope",
    "nn.heads_kernel": "nn.kernels.qkv_norm_rope",
    "nn.hidden": "nn.kernels.activate_and_project",
    "nn.hidden_kernel": "nn.kernels.activate_and_project",
    "nn.residual": "nn.kernels.adaln_residual",
    "nn.residual_kernel": "nn.kernels.adaln_residual",
    "nn.text_block": "nn.attention",
    "nn.tiling": "nn.kernels.launch",
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


def module_of(name: str) -> str:
    """Where the contents of a module of that name are now, or most of them."""
    old = name.removeprefix(f"{PACKAGE}.")
    return f"{PACKAGE}.{MODULES[old]}" if old != name and old in MODULES else name


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
        now = module_of(fullname)
        if now != fullname:
            # Without its `name`, by which `from package import module` would hide it.
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: it is called {now!r} now"
            )


def install() -> None:
    """Let imports of old names say the new ones."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())
