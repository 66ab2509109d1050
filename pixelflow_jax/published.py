"""Weights on disk and on the Hub: found, read, and written.

A published folder holds `config.json` (`Description`), `model.safetensors` (parameters
by their path, float32 or bfloat16), and `README.md`, a model card. The same in a single
file: the description lies in the metadata of a `.safetensors` file. A training run's
workdir is read from its newest checkpoint.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from pixelflow_jax import hub, sharding
from pixelflow_jax.conditioning import Text
from pixelflow_jax.data.errors import DataError
from pixelflow_jax.data.images import save_png
from pixelflow_jax.description import (
    FORMAT,
    PICTURE,
    Description,
    PipelineError,
    on_any_devices,
)
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.base import misfitting
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.initial import Initial, InitialError, compare, described

LOG = logging.getLogger(__name__)
CONFIG, CARD = "config.json", "README.md"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("float32", "bfloat16")
RAW, BOTH = "raw", "both"
# What a folder of other people's weights holds.
FOREIGN = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
CONVERT = (
    "If these are weights of the official code, convert them: "
    "`python -m pixelflow_jax.convert from-torch FILE FOLDER`."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """Weights that were found, to be read.

    `averages` names the sets of weights to choose from, the first one being the usual
    one; `read` reads one of them.
    """

    where: str
    description: Description
    averages: tuple[str, ...]
    read: Callable[[str], dict]

    def choose(self, ema: str) -> str:
        """The set called `ema` ("": the usual one); PipelineError where there is none.

        Published weights are one set without a name.
        """
        if not ema or ema in self.averages:
            return ema or self.averages[0]
        if self.averages == ("",):
            raise PipelineError(
                f"{self.where} holds one set of weights, so there is no average "
                f"{ema!r} to choose: leave it away, or load the run's workdir."
            )
        raise PipelineError(
            f"This run has no average {ema!r}; choose one of "
            f"{', '.join(self.averages)}."
        )

    def origin(self, ema: str) -> str:
        """Where a set of weights comes from, in words."""
        if not ema:
            return self.description.origin
        step, name = self.description.step, self.description.config.name
        which = "without averaging" if ema == RAW else f"average with decay {ema}"
        return f"step {step:,} of the run {name!r}, {which}"


def find(name: str | pathlib.Path, revision: str | None = None) -> Stored:
    """The weights called `name`; their parameters are not read yet.

    `name` is a published folder, a `.safetensors` file of ours, a run's workdir, or,
    where nothing lies at such a path, "organisation/name" on the Hugging Face Hub,
    at `revision`. A revision may also follow the name after an "@". A `pathlib.Path` is
    never looked for on the Hub. Raises PipelineError, or CheckpointError for a damaged
    checkpoint.
    """
    path = _locate(name, revision)
    if path.is_file() and path.suffix == ".safetensors":
        return _stored_file(path)
    if (path / "checkpoints").is_dir():
        return _stored_run(path)
    if path.is_dir():
        return _stored_folder(path)
    raise PipelineError(
        f"No weights at {path}: give a published folder, a .safetensors file written "
        f"by Pipeline.save, or a training run's workdir (it holds checkpoints/). "
        f"{CONVERT}"
    )


def _locate(name: str | pathlib.Path, revision: str | None) -> pathlib.Path:
    """The path that `name` is, or that the Hub's files of that name were saved to."""
    path = pathlib.Path(name).expanduser()
    named = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([^@]+))?", str(name))
    if path.exists() and revision:
        raise PipelineError(
            f"{name} lies on this disk and has no revision {revision!r}: leave the "
            "revision away."
        )
    if path.suffix == ".safetensors" and not path.exists():
        raise PipelineError(f"There is no file {path}.")
    if path.exists() or isinstance(name, pathlib.Path) or not named:
        return path
    wanted = [CONFIG, WEIGHTS, INDEX, "model-*.safetensors"]
    try:
        return hub.fetch(named[1], wanted, revision or named[2])
    except hub.HubError as error:
        raise PipelineError(f"There is no {path} on this disk, and {error}") from error


def _stored_run(workdir: pathlib.Path) -> Stored:
    with contextlib.closing(Checkpointer(workdir / "checkpoints", None)) as saved:
        step = saved.latest()
        if step is None:
            raise PipelineError(
                f"{workdir}/checkpoints holds no complete checkpoint yet: train first."
            )
        config = on_any_devices(saved.config(step))

    def read(ema: str) -> dict:
        whole = sharding.replicated(config.mesh.build())
        shapes = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole),
            config.network().shapes(),
        )
        with contextlib.closing(Checkpointer(workdir / "checkpoints", None)) as saved:
            return saved.restore_weights(step, shapes, ema)

    names = _class_names(config)
    description = Description(config=config, class_names=names, step=step)
    averages = (*map(str, config.ema), RAW)
    return Stored(
        where=str(workdir), description=description, averages=averages, read=read
    )


def _class_names(config: Experiment) -> tuple[str, ...]:
    """The data set's class names, or numbers where the data set is not at hand."""
    if isinstance(config.conditioner, Text):
        return ()
    try:
        return config.data.class_names
    except DataError as error:
        LOG.warning("Classes go by their numbers, without the data set: %s", error)
        return tuple(map(str, range(config.model.num_classes)))


def _stored_file(path: pathlib.Path) -> Stored:
    with _reading(path), safe_open(path, "flax") as file:
        data = json.loads((file.metadata() or {}).get(FORMAT, "null"))
    if data is None:
        raise PipelineError(
            f"{path} was not written by Pipeline.save: its metadata hold no "
            f"{FORMAT!r}, and so no config. {CONVERT}"
        )
    return _stored([path], Description.from_dict(data, str(path)), str(path))


def _stored_folder(folder: pathlib.Path) -> Stored:
    data = _read_config(folder)
    description = Description.from_dict(data, f"{folder}/{CONFIG}")
    return _stored(_files(folder), description, str(folder))


def _read_config(folder: pathlib.Path) -> dict:
    """What config.json says; PipelineError where it is absent or not ours."""
    try:
        data = json.loads((folder / CONFIG).read_text("utf-8"))
    except FileNotFoundError:
        foreign = [p.name for p in folder.iterdir() if p.suffix in FOREIGN]
        found = f" (only {', '.join(sorted(foreign)[:5])})" if foreign else ""
        raise PipelineError(
            f"No weights at {folder} that can be loaded: it holds no {CONFIG}{found}. A"
            " published folder has one, and is written anew where writing was cut "
            f"short; a training run's workdir holds checkpoints/. {CONVERT}"
        ) from None
    except ValueError as error:
        raise PipelineError(
            f"{folder}/{CONFIG} cannot be read ({error}): fetch or export the folder "
            "again."
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PipelineError(
            f"{folder}/{CONFIG} is not of the format {FORMAT!r}: no published folder of"
            f" ours, nor the workdir of a run that has saved something. {CONVERT}"
        )
    return data


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The weight files of a published folder: one, or those of an index."""
    names = {WEIGHTS}
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        try:
            index = json.loads((folder / INDEX).read_text("utf-8"))
            names = set(index["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise PipelineError(
                f"{folder}/{INDEX} cannot be read ({type(error).__name__}: {error}): "
                "fetch or export the folder again."
            ) from error
    # A name with folders in it would lead out of this one.
    absent = [n for n in names if "/" in n or not (folder / n).is_file()]
    if absent:
        raise PipelineError(
            f"{folder} lacks {', '.join(sorted(absent))}: fetch or export it again."
        )
    return [folder / name for name in sorted(names)]


def _stored(files: list[pathlib.Path], description: Description, where: str) -> Stored:
    def read(_: str) -> dict:
        flat = {}
        for path in files:
            with _reading(path), safe_open(path, "flax") as file:
                names = file.keys()
                flat |= {n: jnp.asarray(file.get_tensor(n), "float32") for n in names}
        params = traverse_util.unflatten_dict(flat, sep="/")
        problems = misfitting(params, description.config.network().shapes())
        if problems:
            raise PipelineError(
                f"{where} does not hold the weights of the model its own config "
                "describes:\n  " + "\n  ".join(problems)
            )
        return params

    return Stored(where=where, description=description, averages=("",), read=read)


@contextlib.contextmanager
def _reading(path: pathlib.Path):
    """Turns a failed read into a PipelineError that says what to do."""
    try:
        yield
    except Exception as error:  # safetensors has exceptions of its own
        raise PipelineError(
            f"{path} cannot be read ({error}): it is truncated, or not a file that "
            "Pipeline.save wrote. Fetch or export it again."
        ) from error


def write_file(
    path: pathlib.Path, params: dict, description: Description, dtype: str
) -> None:
    """Write parameters and description as one `.safetensors` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, params, dtype, {FORMAT: json.dumps(description.to_dict())})


def write_folder(
    folder: pathlib.Path,
    params: dict,
    description: Description,
    dtype: str,
    *,
    picture: np.ndarray | None = None,
    name: str = "",
) -> None:
    """Write a published folder, or replace the one that lies there.

    `picture`, uint8 [h, w, 3], is shown in the card, which tells to load the weights by
    `name` ("": the folder's path). Raises PipelineError for a run's workdir.
    """
    if (folder / "checkpoints").exists():
        raise PipelineError(
            f"{folder} is the workdir of a training run: export to another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    # The config comes last: a folder that was cut short has none, and is refused.
    for stale in (CONFIG, INDEX, PICTURE):
        (folder / stale).unlink(missing_ok=True)
    _save(folder / WEIGHTS, params, dtype, {"format": FORMAT})
    if picture is not None:
        save_png(folder / PICTURE, picture)
    card = description.card(name or str(folder), dtype, picture is not None)
    (folder / CARD).write_text(card, "utf-8")
    (folder / CONFIG).write_text(json.dumps(description.to_dict(), indent=1), "utf-8")


def _save(path: pathlib.Path, params: dict, dtype: str, metadata: dict) -> None:
    if dtype not in DTYPES:
        raise PipelineError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}.")
    flat = traverse_util.flatten_dict(params, sep="/")
    arrays = {name: jnp.asarray(a, dtype) for name, a in flat.items()}
    try:
        save_file(arrays, path, metadata=metadata)
    except SafetensorError as error:
        raise PipelineError(
            f"{path} cannot be written ({error}): give a path that this user may write "
            "to, on a disk with room."
        ) from error


def initial(config: Experiment) -> Initial:
    """What the run of `config` begins with: the weights that `config.init_from` names.

    See `training.initial` for the rule. Raises InitialError for weights of another
    model, and PipelineError for those that cannot be loaded.
    """
    stored = find(config.init_from)
    theirs = stored.description.config
    fit = compare(theirs.model, config.model)
    both = config.init_ema == BOTH
    try:
        fit.check(config.init_reset)
        first = stored.choose(RAW if both else config.init_ema)
        chosen = {str(d): stored.choose(str(d)) if both else first for d in config.ema}
    except (InitialError, PipelineError) as error:
        raise InitialError(
            f"The run cannot begin with init_from={config.init_from!r}. {error}"
        ) from error
    read = {name: fit.take(stored.read(name)) for name in {first, *chosen.values()}}
    lines = [f"init_from={config.init_from}: {stored.origin(first)}"]
    if both:
        lines.append(f"averages: from those of the same decay, {', '.join(chosen)}")
    lines += [*fit.report(), *_other_differences(stored.description, config)]
    ema = {decay: read[name] for decay, name in chosen.items()}
    return Initial(read[first], ema, "\n".join(lines))


def _other_differences(theirs: Description, config: Experiment) -> list[str]:
    """What differs besides shapes, and a user may want to know of; in lines."""
    nodes = [
        {
            "model": one.model,
            "prediction": one.prediction,
            "path": one.path,
            "conditioner": one.conditioner,
        }
        for one in (theirs.config, config)
    ]
    lines = described(*nodes)
    if 0 < theirs.config.model.num_classes == config.model.num_classes:
        old, new = theirs.class_names, config.data.class_names
        pairs = enumerate(zip(old, new, strict=True))
        others = [f"class {i}: {a!r} -> {b!r}" for i, (a, b) in pairs if a != b]
        lines += others[:5] + ["and more classes"] * (len(others) > 5)
    listed = [f"  {line}" for line in lines]
    return ["what else differs (there -> here):", *listed] if listed else []
