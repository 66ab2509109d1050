"""Values out of their ranges: fields of configs, arguments of the Python calls."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pixelflow_jax.config_io import walk
from pixelflow_jax.convert import actions
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import AutoGuidance, ClassifierFree
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.training.optimizer import AdamW
from pixelflow_jax.validate import validate
from pixelflow_jax.values import annotations
from tests.bad_input.row import Row, command
from tests.tensors.pt_files import Call, Global, dumped, save

SHIPPED = pathlib.Path(__file__).resolve().parents[2] / "assets" / "emoji.safetensors"
# Configs whose parts are walked: together they have most kinds of parts.
CONFIGS: list[Callable[[], Experiment]] = [
    functools.partial(Experiment, name="x"),
    lambda: Experiment(name="x", model=PixelGen(), path=Pyramid()),
    lambda: dataclasses.replace(
        Experiment(name="x"), sampling=_sampling(AutoGuidance(weights="w"))
    ),
]


def _sampling(guidance) -> Any:
    return dataclasses.replace(Experiment(name="x").sampling, guidance=guidance)


def numbers(config: Experiment) -> Iterator[tuple[str, str, str]]:
    """Each field of a config that holds a number: of which part, its name, its path."""
    for path, node in walk(config):
        for name in annotations(type(node)):
            value = getattr(node, name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield path, name, f"{path}.{name}".lstrip(".")


def field_rows() -> list[Row]:
    """A row for each field of each config, with a number that it can never hold."""
    rows = {}
    for make in CONFIGS:
        for path, name, where in numbers(make()):
            kind = type(dict(walk(make()))[path]).__name__
            value = -(2**40) if isinstance(_get(make(), path, name), int) else math.nan

            def run(_, make=make, path=path, name=name, value=value):
                config = make()
                setattr(dict(walk(config))[path], name, value)
                validate(config)

            row = Row(f"{where} of {kind}", run, (f"{where}={value} must be a",))
            rows.setdefault(row.name, row)
    return list(rows.values())


def _get(config: Experiment, path: str, name: str) -> Any:
    return getattr(dict(walk(config))[path], name)


def together(title: str, says: str, **fields: object) -> Row:
    """Fields that are well alone, and not together."""
    fields = {"name": "x"} | fields
    return Row(title, lambda _: validate(Experiment(**fields)), (says,))  # pyright: ignore


TOGETHER = [
    together(
        "warm-up after the end",
        "warmup=9 must lie in 0..steps=6",
        steps=6,
        optimizer=AdamW(warmup=9),
    ),
    together("a name without end", "at most 200 characters", name="x" * 201),
    together("a decay of weights", "to 100", optimizer=AdamW(weight_decay=1e9)),
    together("a rate that vanishes", "float32", optimizer=AdamW(lr=1e-45)),
    together("a norm beyond float32", "float32", optimizer=AdamW(clip=1e39)),
    together("a decay twice", "names a decay twice", ema=(0.9, 0.9)),
    together("a batch that no devices split", "must be a multiple", batch_size=251),
    together("parts of a batch", "must be a multiple", accumulate=100),
    together("nothing to learn", "terms is empty", terms=[]),
    together("an average to begin at", "init_from is empty", init_ema="0.9"),
    together("a patch that does not fit", "does not divide", model=PixelGen(patch=7)),
    together("heads that do not fit", "must divide", model=PixelGen(heads=7)),
]


@functools.cache
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained(SHIPPED)


def call(name: str, wanted: object, *says: str, **options: Any) -> Row:
    """A call of a pipeline."""
    return Row(f"a call with {name}", lambda _: pipeline()(wanted, **options), says)


def load(name: str, path: object, *says: str, **options: Any) -> Row:
    """Loading of a pipeline."""
    run = lambda _: Pipeline.from_pretrained(path, **options)
    return Row(f"loading {name}", run, says)


NAN = ClassifierFree(scale=math.nan)
CALLS = [
    call("a text as guidance", 0, "guidance='2'", "ClassifierFree", guidance="2"),
    call("a scale of -1", 0, "guidance=-1.0 must be", guidance=-1.0),
    call("no name of a solver", 0, "'hein' is none", "'heun'", solver="hein"),
    call("no name of a preset", 0, "'heun50' is none", "heun50", preset="heun50"),
    call("steps twice", 0, "say the same", steps=3, num_inference_steps=3),
    call("scales twice", 0, "say the same", guidance=3.0, guidance_scale=3),
    call("a grid and steps", 0, "say the same", steps=3, grid=Grid(steps=3)),
    call("a scheduler", 0, "here it is solver", scheduler="ddim"),
    call("a generator", 0, "here it is seed=", generator=1),
    call("a word of none", 0, "did you mean height=?", heigth=64),
    call("a reversed interval", 0, "the earlier", guidance_interval=(0.9, 0.1)),
    call("half an interval", 0, "guidance_interval", guidance_interval=(0.9,)),
    call("two seeds for one image", 0, "2 seeds for 1 images", seed=[1, 2]),
    call("a seed below 0 among some", 0, "seed[1]=-1", seed=[1, -1]),
    call("a callback that is none", 0, "callback=3", callback=3),
    call("steps as grid", 0, "grid=5", "Grid(steps=50)", grid=5),
    call("a dict as sampling", 0, "sampling={}", "Sampling(", sampling={}),
    call("a class as solver", 0, "solver=<class", "Heun()", solver=Grid),
    call("a seed below 0", 0, "seed=-1 must be a whole number", seed=-1),
    call("a seed above all", 0, "seed=4294967296 must be", seed=2**32),
    call("a fraction as seed", 0, "seed=1.5 must be of type int", seed=1.5),
    call("no seed", 0, "seed=None must be of type int", seed=None),
    call("a truth value as seed", 0, "seed=True must be of type", seed=True),
    call("True as class", True, "True cannot be drawn"),
    call("True among classes", [0, True], "True cannot be drawn"),
    call("a fraction as class", [1.7], "1.7 cannot be drawn"),
    call("fractions as classes", np.array([1.7]), "1.7 cannot be drawn"),
    call("NaN as class", math.nan, "nan cannot be drawn"),
    call("nothing", None, "None cannot be drawn"),
    call("bytes", b"flags", "cannot be drawn"),
    call("a dict", {"flags": 1}, "cannot be drawn"),
    call("a set", {"flags"}, "cannot be drawn"),
    call("a matrix of classes", np.zeros((2, 2), int), "cannot be drawn"),
    call("an empty list", [], "nothing to draw"),
    call("an unknown class", "dogs", "There is no class 'dogs'"),
    call("a class out of range", 10**30, "out of range"),
    call("a first below 0", 0, "first=-1 must be a whole number", first=-1),
    call("a fraction as height", 0, "height=24.0 must be of type int", height=24.0),
    call("a height below 1", 0, "height=-8 must be", height=-8),
    call("60,000 pixels", 0, "height=60000 must be", "16,384", height=60_000),
    call("a text as width", 0, "width='64' must be of type int", width="64"),
    call("a size between patches", 0, "does not divide", width=65),
    call("no image", 0, "images_per_prompt=0 must be", images_per_prompt=0),
    call("images by halves", 0, "images_per_prompt=1.5", images_per_prompt=1.5),
    call("a number as progress", 0, "progress=1 must be of type", progress=1),
    call("a negative prompt", 0, "no negative prompts", negative_prompt="x"),
    call("negative prompts by number", 0, "negative_prompt=3", negative_prompt=3),
    call("an endless range", range(10**12), "More than 4,194,304 images"),
    call("an array of one fraction", np.float32(1.5), "1.5 cannot be drawn"),
    call("an array that is none", np.array(1.5), "1.5 cannot be drawn"),
    call("a billion steps", 0, "grid.steps=1000000000", grid=Grid(steps=10**9)),
    call("a last step of all", 0, "grid.last_step=1.0", grid=Grid(last_step=1.0)),
    call("a scale beyond sense", 0, "to 1,000", guidance=ClassifierFree(scale=1e9)),
    call("no guide's weights", 0, "No weights", guidance=AutoGuidance(weights="no")),
    call("NaN as scale", 0, "guidance.scale=nan", guidance=NAN),
    call(
        "a reversed window",
        0,
        "must be below guidance.high",
        guidance=ClassifierFree(scale=2.0, low=0.9, high=0.1),
    ),
    call("no steps", 0, "grid.steps=0 must be", grid=Grid(steps=0)),
    call("steps as a text", 0, "grid.steps='3' must be", grid=Grid(steps="3")),
    call("an infinite shift", 0, "grid.shift=inf", grid=Grid(shift=math.inf)),
    Row("compiling for no image", lambda _: pipeline().compile(0), ("batch_size=0",)),
    Row("labels of True", lambda _: pipeline().labels([True]), ("True cannot be",)),
    Row(
        "a record by number",
        lambda _: pipeline().generate(0, record=2),
        ("record=2 must be of type bool",),
    ),
    Row(
        "saving as .pt", lambda p: pipeline().save(p / "x.pt"), ("'.safetensors'",)
    )._replace(says=("must end in .safetensors",)),
    Row("saving nowhere", lambda _: pipeline().save(""), ("path=''", "not empty")),
    Row("saving to None", lambda _: pipeline().save(None), ("path=None",)),
    Row(
        "saving as halves",
        lambda p: pipeline().save(p / "x.safetensors", "float16"),
        ("dtype='float16'", "bfloat16"),
    ),
    Row("a folder by number", lambda _: pipeline().save_pretrained(3), ("folder=3",)),
    Row(
        "samples by halves",
        lambda p: pipeline().save_pretrained(p / "x", samples=[0.5]),
        ("0.5 cannot be drawn",),
    ),
    load("None", None, "path=None must be a path"),
    load("a number", 3, "path=3 must be a path"),
    load("an empty path", "", "path=''"),
    load("a path with a NUL", "a\0b", "path="),
    load("a revision of the shipped model", "emoji", "no revision", revision="x"),
    load("a pipe", "/dev/zero", "No weights at /dev/zero"),
    load("an unknown path", "nope", "No weights at nope"),
    load("an average by list", SHIPPED, "ema=['0.9']", ema=["0.9"]),
    load("an absent average", SHIPPED, "holds one set of weights", ema="0.9"),
    load("a revision by number", SHIPPED, "revision=1", revision=1),
    load("a tokenizer by number", SHIPPED, "tokenizer=1", tokenizer=1),
    load("leave by word", SHIPPED, "allow_nonfinite='yes'", allow_nonfinite="yes"),
]


def flag(argument: str, *says: str) -> Row:
    """A flag of `sample`."""
    run = lambda _: command("sample", "--workdir=x", f"--weights={SHIPPED}", argument)
    return Row(f"sample {argument}", run, says)


FLAGS = [
    flag("--guidance=nan", "--guidance=nan", "must be a finite number"),
    flag("--guidance=inf", "--guidance=inf", "must be a finite number"),
    flag("--guidance=-1", "--guidance=-1", "must be a finite number"),
    flag("--shift=0", "--shift=0", "from 0.001"),
    flag("--guidance=1e308", "--guidance=1e+308", "from 0 to 1,000"),
    flag("--shift=1e-320", "--shift=", "from 0.001 to 1,000"),
    flag("--shift=1e30", "--shift=1e+30", "from 0.001 to 1,000"),
    flag("--sample_steps=100000", "--sample_steps=100000", "10,000"),
    flag("--sample_steps=nan", "--sample_steps=nan", "10,000"),
    flag("--config.precision.compute=float8", "precision.compute", "'bfloat16'"),
    flag("--config.mesh.fsdp=-1000", "mesh.fsdp=-1000", "whole number"),
    flag("--config.mesh.tensor=7", "tensor=7", "the product of the sizes"),
    flag("--config.sampling.batch_size=99999999999", "sampling.batch_size=99999999999"),
    flag("--shift=nan", "--shift=nan", "must be a finite number"),
    flag("--height=0", "--height=0"),
    flag("--height=60000", "--height=60000", "16,384"),
    flag("--count=0", "--count=0"),
    flag("--guidance_interval=0.9,0.1", "0.9,0.1", "the earlier one first"),
    flag("--guidance_interval=-5,7", "-5,7", "two times from 0 to 1"),
    flag("--guidance_interval=0,nan", "0,nan", "two times from 0 to 1"),
    flag("--sample_steps=0", "--sample_steps=0", "from 1 to 10,000"),
    flag("--sample_steps=2.5", "--sample_steps=2.5", "from 1 to 10,000"),
]


def metadata(name: str, change: Callable[[dict], object], *says: str) -> Row:
    """The shipped weights with another description."""

    def run(folder: pathlib.Path) -> object:
        with safe_open(SHIPPED, "np") as file:
            about = json.loads(file.metadata()["pixelflow_jax"])
        text = change(about)
        written = text if isinstance(text, str) else json.dumps(about)
        tensors = {"x": np.zeros(1, np.float32)}
        save_file(tensors, folder / "x.safetensors", {"pixelflow_jax": written})
        return Pipeline.from_pretrained(folder / "x.safetensors")

    return Row(f"weights with {name}", run, says)


def folder_of(name: str, write: Callable[[pathlib.Path], object], *says: str) -> Row:
    """A folder that is loaded, or else converted."""

    def run(folder: pathlib.Path) -> object:
        write(folder)
        return Pipeline.from_pretrained(folder)

    return Row(f"a folder with {name}", run, says)


def sparse(folder: pathlib.Path) -> None:
    with open(folder / "config.json", "wb") as file:
        file.truncate(3 << 30)


DEEP = "[" * 100_000 + "]" * 100_000
METADATA = [
    metadata(
        "no heads", lambda d: d["config"]["model"].update(heads=0), "heads=0 must"
    ),
    metadata("depth -1", lambda d: d["config"]["model"].update(depth=-1), "depth=-1"),
    metadata("no steps", lambda d: d["config"].update(steps="x"), "steps='x'"),
    metadata("NaN", lambda d: d["config"]["optimizer"].update(lr="nan"), "lr=nan"),
    metadata("5 as names", lambda d: d.update(class_names=5), "class_names must be"),
    metadata("numbers as names", lambda d: d.update(class_names=[1]), "class_names"),
    metadata("step -1", lambda d: d.update(step=-1), "step a whole number"),
    metadata("step by word", lambda d: d.update(step="one"), "step a whole number"),
    metadata("an origin by list", lambda d: d.update(origin=[]), "origin a text"),
    metadata("version 99", lambda d: d.update(version=99), "version 99"),
    metadata("a version by list", lambda d: d.update(version=[1]), "version [1]"),
    metadata("no config", lambda d: d.pop("config"), "lacks config"),
    metadata("a list as config", lambda d: d.update(config=[]), "no config"),
    metadata("deep JSON", lambda d: DEEP, "nested too deeply"),
    metadata("no JSON", lambda d: "{", "cannot be read"),
    metadata("a list", lambda d: "[]", "was not written by Pipeline.save"),
    folder_of("a config.json of 3 GB", sparse, "3,221 MB large"),
    folder_of(
        "a deep config.json",
        lambda p: (p / "config.json").write_text(DEEP),
        "nested too deeply",
    ),
    folder_of(
        "a config.json of lists",
        lambda p: (p / "config.json").write_text("[]"),
        "is not of the format",
    ),
    folder_of("nothing", lambda p: None, "holds no config.json"),
]


def convert(name: str, write: Callable[[pathlib.Path], Any], *says: str) -> Row:
    """Weights of others that are converted."""

    def run(folder: pathlib.Path) -> object:
        return actions.understood(pathlib.Path(write(folder) or folder))

    return Row(f"converting {name}", run, says)


def asks_for(name: str, *arguments: object) -> Callable[[pathlib.Path], pathlib.Path]:
    """A file whose pickle calls a function."""
    return lambda p: save(p / "x.pt", {"state": Call(Global(name), arguments)})


def files(*names: str) -> Callable[[pathlib.Path], None]:
    """A folder of empty files."""

    def write(folder: pathlib.Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()

    return write


def distributed(folder: pathlib.Path) -> None:
    (folder / "__0_0.distcp").touch()
    table = {"model.blocks.0.attn.qkv.weight": 1, "model.norm.weight": 2}
    (folder / ".metadata").write_bytes(dumped(table))


def nested_key(folder: pathlib.Path) -> pathlib.Path:
    """A dictionary with a key of 2**60 tuples: each of 60 holds the last one twice."""
    twice = b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(60))
    return archive(folder, b"\x80\x02}U\x01x" + twice + b"U\x01vs.")


def byte_order(folder: pathlib.Path) -> pathlib.Path:
    return archive(folder, b"\x80\x02N.", b"0" * 100_000_000)


def archive(folder: pathlib.Path, pickled: bytes, order: bytes = b"little"):
    """A file of PyTorch's with a pickle that is written by hand."""
    path = folder / "x.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", order, zipfile.ZIP_DEFLATED)
    return path


def pipe(name: str) -> Callable[[pathlib.Path], pathlib.Path]:
    """A named pipe, of which reading waits for ever."""
    return lambda folder: os.mkfifo(folder / name) or folder / name


def long_name(folder: pathlib.Path) -> pathlib.Path:
    return save(folder / "x.pt", {"k" * 1_000_000: np.zeros(2, np.float32)})


def write_nan(folder: pathlib.Path) -> Pipeline:
    path = folder / "x.safetensors"
    shutil.copy(SHIPPED, path)
    tensors = load_file(path)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    first = sorted(tensors)[0]
    tensors[first] = np.full_like(tensors[first], np.nan)
    save_file(tensors, path, header["__metadata__"])
    return Pipeline.from_pretrained(path)


REFUSED = "is refused, and nothing of it was executed"
GIGABYTES = 1 << 34
CONVERTED = [
    convert("a bytearray", asks_for("builtins bytearray", GIGABYTES), REFUSED),
    convert("a shell", asks_for("posix system", "touch x"), REFUSED, "posix.system"),
    convert("eval", asks_for("builtins eval", "1"), REFUSED, "builtins.eval"),
    convert("an import", asks_for("importlib import_module", "os"), REFUSED),
    convert("a nested file", asks_for("torch.storage _load_from_bytes"), REFUSED),
    convert("a storage", asks_for("torch FloatStorage", GIGABYTES), "cannot be read"),
    convert("a shard", asks_for("torch.distributed.tensor DTensor"), "merge the parts"),
    convert("a module", asks_for("torch.nn.modules.linear Linear"), "state dict"),
    convert(
        "an optimizer",
        lambda p: save(p / "x.pt", {"optimizer_state_dict": {"state": {}}}),
        "There is no state dict",
        "optimizer_state_dict: state of the optimizer",
    ),
    convert(
        "dictionaries without usual names",
        lambda p: save(
            p / "x.pt", {k: {"w": np.zeros(2, np.float32)} for k in ("one", "two")}
        ),
        "choose one by --weights, of one, two",
    ),
    convert(
        "unnamed averages alone",
        lambda p: save(p / "x.pt", {"shadow_params": [np.zeros(2, np.float32)]}),
        "an average of 1 tensors without names",
    ),
    convert("a dictionary that hashes for ever", nested_key, "nested too deeply"),
    convert("a byte order that unpacks to 100 MB", byte_order, "in the order"),
    convert("a named pipe", pipe("x.pt"), "is a pipe"),
    convert("a named pipe of safetensors", pipe("x.safetensors"), "is a pipe"),
    convert("a name of a million letters", long_name, "they are called kkk"),
    convert("an empty file", lambda p: _touched(p / "x.pt"), "cannot be read"),
    convert("a text", lambda p: _touched(p / "x.pt", b"hello\n"), "cannot be read"),
    convert("another suffix", lambda p: _touched(p / "x.h5"), "no known kind"),
    convert("nothing there", lambda p: p / "x.pt", "There is no file"),
    convert(
        "DeepSpeed's folder",
        files("zero_to_fp32.py", "latest", "global_step9/mp_rank_00_model_states.pt"),
        "is a checkpoint of DeepSpeed",
        "python zero_to_fp32.py",
    ),
    convert(
        "a distributed checkpoint",
        distributed,
        "is a distributed checkpoint of PyTorch",
        "model.blocks.0.attn.qkv.weight",
        "dcp_to_torch",
    ),
    convert(
        "files of processes",
        files("model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"),
        "holds one file of each process",
        "model_world_size_2_rank_0.pt",
    ),
    convert("an empty folder", lambda p: None, "no weight file"),
    Row("weights of NaN", write_nan, ("are NaN or infinite", "allow_nonfinite=True")),
]


def _touched(path: pathlib.Path, content: bytes = b"") -> pathlib.Path:
    path.write_bytes(content)
    return path


ROWS: list[Row] = [*field_rows(), *TOGETHER, *CALLS, *FLAGS, *METADATA, *CONVERTED]
