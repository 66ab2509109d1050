"""The flags that several verbs take, and what they name."""

import pathlib

from absl import flags

from pixelflow_jax import remote, remote_runs
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.paths import check_writable, local_path

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The path of a config file, or the name of one that comes with the package, with "
    "':variant' behind it for a variant; or a run's config.json. --config.FIELD=VALUE "
    "sets a field of it.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "A published folder, a .safetensors file, another run's folder, organisation/name "
    "of the Hugging Face Hub, or a name that comes with the package, such as emoji. "
    "Default: the newest checkpoint of --workdir.",
)
EMA = flags.DEFINE_string(
    "ema", "", "Average to take, by its decay; 'raw' for none. Default: the first."
)
TEXT_ENCODER = flags.DEFINE_string(
    "text_encoder", "", "Weights of the text encoder. Default: the config's."
)
TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "Folder of its tokenizer. Default: that of the config's weights."
)
OUT = flags.DEFINE_string("out", None, "Folder to write to.")
CACHE_DIR = flags.DEFINE_string(
    "cache_dir",
    None,
    "Where weights and shards of gs:// and s3:// are kept on this machine. Default: "
    f"that of {remote.CACHE}, or {remote.DEFAULT_CACHE}.",
)
YES = flags.DEFINE_bool(
    "yes", False, "Go on with what will take very long, or very much room."
)

SAVED = "checkpoints"  # the folder of a run that holds its steps


def folder_of_run(name: str | None, verb: str) -> pathlib.Path:
    """The folder that --workdir names; ConfigError for what cannot be one."""
    if name is None:
        raise ConfigError(
            "--workdir is missing: name the folder of the run, as in `pixelflow "
            f"{verb} --workdir=runs/mine`."
        )
    in_store = remote_runs.folder(name, "--workdir", ConfigError)
    if in_store is not None:
        return in_store
    path = local_path(name, "--workdir", ConfigError)
    run = _run_above(path)
    if run is not None:
        raise ConfigError(
            f"--workdir={name} is a checkpoint within a run: give the run's folder, "
            f"--workdir={run}."
        )
    if path.suffix == ".safetensors" or path.is_file():
        raise ConfigError(
            f"--workdir={name} is a file, not the folder of a run: name weights by "
            f"--weights={name}, and a folder to write to by --workdir or --out."
        )
    return path


def chosen_weights(name: str, flag: str = "weights") -> str:
    """What --weights names, in the words that `published.find` reads."""
    path = pathlib.Path(name).expanduser()
    run = _run_above(path)
    if run is not None:
        raise ConfigError(
            f"--{flag}={name} is one checkpoint of a run, of which the newest is taken:"
            f" give the run's folder, --{flag}={run}."
        )
    if "://" in name and not name.startswith("hf://") and not remote.located(name):
        raise ConfigError(
            f"--{flag}={name} is an address: give organisation/name for weights of the "
            "Hugging Face Hub, or the path of files that you downloaded."
        )
    return name.removeprefix("hf://")


def writable(folder: pathlib.Path, flag: str = "workdir") -> None:
    """Make a folder that a flag names; ConfigError where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise ConfigError(
            f"Cannot write to the --{flag} {folder} ({error.strerror}): name a folder "
            "that this user may write to."
        ) from error


def could_write(folder: pathlib.Path, given: str) -> None:
    """Raises what `writable` raises, but makes no folder."""
    there = next(
        p for p in (folder.absolute(), *folder.absolute().parents) if p.exists()
    )
    try:
        check_writable(there)
    except OSError as error:
        reason = error.strerror if there.is_dir() else f"{there} is a file"
        raise ConfigError(
            f"Cannot write to {given} {folder} ({reason}): name a folder that this "
            "user may write to."
        ) from error


def _run_above(path: pathlib.Path) -> pathlib.Path | None:
    """The run that a path is a checkpoint of, or holds the checkpoints of."""
    if path.parent.name == SAVED and path.name.isdigit():
        return path.parent.parent
    steps = path.iterdir() if path.name == SAVED and path.is_dir() else ()
    return path.parent if any(step.name.isdigit() for step in steps) else None
