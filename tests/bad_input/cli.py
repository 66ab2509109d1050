"""Command lines that cannot be meant."""

import pathlib
from collections.abc import Iterator

from tests.bad_input.row import Row, command


def row(line: str, *says: str) -> Row:
    """A command line whose words `{folder}` stand for an empty folder."""

    def run(folder: pathlib.Path) -> None:
        command(*(word.replace("{folder}", str(folder)) for word in line.split()))

    return Row(f"pixelflow {line}", run, says)


def file_row(name: str, file: str, text: str, line: str, *says: str) -> Row:
    """A command line about a file of a text."""

    def run(folder: pathlib.Path) -> None:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        row(line, *says).run(folder)

    return Row(name, run, says)


SAMPLE = "sample --weights=emoji --out={folder}/out"
TRAIN = "train --config=emoji:demo --workdir={folder}/run"

# Words of other tools, by verb, and what they are called here.
FOREIGN = {
    "sample": {
        "--guidance_scale=3": "--guidance ",
        "--cfg_scale=3": "--guidance ",
        "--cfg-scale=3": "--guidance ",
        "--num_inference_steps=50": "--sample_steps",
        "--num_steps=50": "--sample_steps",
        "--steps=50": "--sample_steps",
        "--seed=1": "--sample_seed",
        "--num_images=4": "--count",
        "--num_samples=4": "--count",
        "--num_images_per_prompt=4": "--count",
        "--output=x": "--out ",
        "--output_dir=x": "--out ",
        "--outdir=x": "--out ",
        "--ckpt=x": "--weights",
        "--model_path=x": "--weights",
        "--checkpoint=x": "--weights",
        "--sampler=euler": "--solver",
        "--scheduler=euler": "--solver",
        "--resolution=64": "--height and --width",
        "--negative=x": "--negative_prompt",
        "--class_labels=3": "--classes",
        "--batch_size=3": "--config.sampling.batch_size",
        "--precision=fp16": "--config.precision.compute",
        "--dtype=float16": "`pixelflow export`",
    },
    "train": {
        "--lr=1e-4": "--config.optimizer.lr",
        "--learning_rate=1e-4": "--config.optimizer.lr",
        "--batch_size=4": "--config.batch_size",
        "--max_train_steps=4": "--config.steps",
        "--steps=4": "--config.steps",
        "--epochs=4": "--config.steps",
        "--seed=4": "--config.seed",
        "--resume=x": "--workdir",
        "--output_dir=x": "--workdir",
        "--data_path=x": "--config.data.source.path",
        "--num_workers=2": "--config.data.workers",
        "--mixed_precision=bf16": "--config.precision.compute",
        "--gradient_accumulation_steps=2": "--config.accumulate",
        "--resolution=64": "--config.data.image_size",
        "--ema_decay=0.9": "--config.ema",
        "--gpus=2": "--config.mesh.fsdp",
    },
    "export": {"--output=x": "--out ", "--half=1": "--dtype"},
    "evaluate": {"--batch_size=3": "--config.sampling.batch_size"},
}

# Flags of one verb that are given to another, and whose they are.
STRANGERS = {
    "train": (
        *("classes=1", "prompt=x", "count=3", "solver=euler", "sample_steps=3"),
        *("guidance=2", "height=8", "trajectory", "stages", "preset=adams25_cfg4"),
        *("weights=x", "samples", "ema=0.9", "shift=2"),
    ),
    "sample": ("config=emoji", "extend=constant", "samples", "nosamples"),
    "export": ("extend=restart", "trajectory", "solver=euler"),
    "evaluate": ("extend=restart", "trajectory", "dtype=float32"),
}

# Misspelt flags, and the ones that are meant.
MISSPELT = {
    "sample": {
        "--clases=1": "--classes",
        "--promt=x": "--prompt",
        "--wieghts=x": "--weights",
        "--hieght=8": "--height",
        "--guidence=2": "--guidance",
        "--sample-steps=3": "--sample_steps",
        "--negative-prompt=x": "--negative_prompt",
    },
    "train": {"--wordir=x": "--workdir", "--confg=x": "--config", "--extnd=x": "--ext"},
    "export": {"--sample": "--samples", "--dtpe=x": "--dtype"},
}

# Values that a flag of `sample` cannot have, and what is said of them.
VALUES = {
    "--count=0": "--count",
    "--count=-3": "--count",
    "--count=many": "--count=many",
    "--count=1.5": "--count=1.5",
    "--sample_seed=-1": "--sample_seed",
    "--sample_seed=4294967296": "--sample_seed",
    "--sample_seed=x": "--sample_seed=x",
    "--height=0": "--height",
    "--height=-8": "--height",
    "--height=24.0": "--height=24.0",
    "--height=60000": "16,384",
    "--width=0": "--width",
    "--width=60000": "16,384",
    "--guidance=nan": "--guidance",
    "--guidance=inf": "--guidance",
    "--guidance=-1": "--guidance",
    "--guidance=two": "--guidance=two",
    "--shift=0": "--shift",
    "--shift=nan": "--shift",
    "--shift=-2": "--shift",
    "--solver=rk4": "heun",
    "--solver=EULER5": "heun",
    "--preset=pixnerd": "pixnerd_euler50",
    "--count=1e9": "must be a whole number",
    "--height=": "must be a whole number",
    "--shift=two": "must be a number",
    "--stages=perhaps": "must be true or false",
    "--noyes=3": "--noyes=3 does not take",
    "--ema=": "--ema= is empty",
    "--tokenizer=": "--tokenizer= is empty",
    "--classes=": "--classes= is empty",
    "--guide=": "--guide= is empty",
    "--prompts_file=": "--prompts_file= is empty",
    "--trajectory=perhaps": "--trajectory",
    "--yes=perhaps": "--yes",
}

# What the shipped model, of nine classes at a patch of 4, cannot serve.
REQUESTS = {
    "--classes=dogs": "There is no class 'dogs'",
    "--classes=flag": "Did you mean",
    "--classes=9": "classes 0 to 8",
    "--prompt=apple": "--classes",
    "--prompts_file=nope.txt": "--classes",
    "--classes=flags --negative_prompt=blue": "no negative prompts",
    "--classes=flags --height=21": "model.patch=4",
    "--classes=flags --sample_steps=3,4": "--sample_steps=3,4",
    "--classes=flags --sample_steps=0": "--sample_steps=0",
    "--classes=flags --sample_steps=many": "--sample_steps=many",
    "--classes=flags --preset=dopri5_stagewise2.4": "--preset=dopri5_stagewise2.4",
    "--classes=flags --guidance_interval=0.3": "--guidance_interval=0.3",
    "--classes=flags --guidance_interval=0.9,0.1": "the earlier one first",
    "--classes=flags --guidance_interval=-5,7": "from 0 to 1",
    "--classes=flags --guidance_interval=a,b": "such as 0.1,1",
    "--classes=flags --guide={folder}/nope": "No weights at",
    "--classes=flags --ema=0.9": "'0.9'",
    "--classes=flags --tokenizer=/nope": "has no text encoder",
    "--classes=flags --count=1000000000": "lower --count",
    "--classes=flags --config.sampling.grid.steps=3,4": "of type int",
    "--classes=flags --config.sampling.grid.steps=0": "grid.steps=0",
    "--classes=flags --config.sampling.gird.steps=2": "gird",
    "--classes=flags --config.sampling.guidance.scale=nan": "guidance.scale=nan",
}

# Fields of the config that training cannot have.
FIELDS = {
    "--config.stepz=3": "Experiment",
    "--config.model.widht=3": "Did you mean width",
    "--config.modle.width=3": "modle",
    "--config.steps=abc": "int",
    "--config.steps=1.5": "int",
    "--config.steps=0": "steps=0",
    "--config.steps": "--config.steps",
    "--config.ema=('a',)": "tuple[float",
    "--config.model=PixNerd": "in a config file",
    "--config.model.decoder=linear": "in a config file",
    "--config.terms[3].weight=1": "[3] is out of range",
    "--config.terms[3]=1": "[3] is out of range",
    "--config.terms.weight=1": "terms",
    "--config.batch_size=-4": "batch_size=-4",
    "--config.batch_size=0": "batch_size=0",
    "--config.batch_size=100000000": "batch_size=100000000",
    "--config.optimizer.lr=nan": "optimizer.lr=nan",
    "--config.optimizer.lr=-1": "optimizer.lr=-1",
    "--config.optimizer.schedule=step": "'constant', 'cosine', 'linear'",
    "--config.model.patch=5": "model.patch=5",
    "--config.data.image_size=60000": "data.image_size=60000",
    "--config.mesh.fsdp=3": "fsdp=3",
    "--config.steps=2000000000 --config.batch_size=65536": "--yes",
    "--config.init_ema=raw": "init_from",
    "--config.model.num_classes=10": "num_classes",
    "--extend=constant": "leave it away",
    "--extend=cosine": "constant, restart",
}

SETTLED = ("steps=3", "model.width=8", "optimizer.lr=1", "data.source.path=x")

PREPARE = {
    "prepare": "{shards,imagenet,",
    "prepare shards": "SOURCE",
    "prepare shards x": "SOURCE",
    "prepare shards {folder}/nope out": "does not exist",
    "prepare shards a b c": "not a b c",
    "prepare shards a b --workers 0": "--workers",
    "prepare shards a b --workers two": "'two'",
    "prepare shards a b --shards -2": "--shards",
    "prepare shards a b --size 0": "--size",
    "prepare shards a b --size -4": "--size",
    "prepare shards a b --holdout 2": "from 0 to 1",
    "prepare shards a b --holdout nan": "from 0 to 1",
    "prepare shards a b --max-corrupt -1": "from 0 to 1",
    "prepare shards a b --quality 0": "--quality",
    "prepare shards a b --format gif": "--format",
    "prepare shards a b --max_corrupt 0.1": "--max-corrupt",
    "prepare shards a b --sise 3": "--size",
    "prepare shards a b --config=emoji": "no flag or word",
    "prepare shards --emoji out": "--size",
    "prepare preview x.txt y.txt": ".png",
    "prepare preview --emoji look.jpg": ".png",
    "prepare preview --emoji look.png --rows 0": "--rows",
    "prepare preview --emoji look.png --columns -1": "--columns",
    "prepare preview --emoji look.png --size 0": "--size",
    "prepare preview --emoji look.png --seed -1": "--seed",
    "prepare text-features x": "--config",
    "prepare text-features --config=emoji_t2i:cpu": "one folder of shards",
    "prepare text-features x --config=": "empty",
    "prepare text-features x --config=nope": "There is no config file 'nope'",
    "prepare text-features x --config=emoji_t2i:cpu --batch-size 0": "--batch-size",
    "prepare text-features x --config=emoji_t2i:cpu --config.stepz=1": "stepz",
    "prepare frames x": "shards",
}
CONVERT = {
    "convert": "from-torch,to-torch",
    "convert inspect": "FILE_OR_FOLDER",
    "convert inspect {folder}/nope.ckpt": "nope.ckpt",
    "convert inspect {folder}": "holds",
    "convert from-torch {folder}/nope.ckpt out": "nope.ckpt",
    "convert from-torch x": "OUT_FOLDER",
    "convert from-torch x y --family=sdxl": "--family",
    "convert from-torch x y --image-size=-4": "--image-size",
    "convert from-torch x y --image_size=4": "--image-size",
    "convert from-torch x y --set heads": "NAME=VALUE",
    "convert from-torch x y --config=nope": "There is no config file 'nope'",
    "convert to-torch {folder}/nope out.ckpt": "nope",
    "convert to-torch x out.ckpt --layout=keras": "--layout",
    "convert to-safetensors {folder}/nope.ckpt out.safetensors": "nope.ckpt",
    "convert from-jax x y": "from-torch",
}
QUICKSTART = {
    "quickstart --steps=0": "at least 1",
    "quickstart --steps=-5": "at least 1",
    "quickstart --steps=x": "at least 1",
    "quickstart --workdir=": "empty",
    "quickstart --wordir=x": "--workdir",
    "quickstart here": "no flag or word",
}
OTHERS = {
    "smaple": "Did you mean `pixelflow sample`?",
    "trane": "train",
    "--workdir=x": "A verb comes first",
    "config": "show NAME",
    "config shw emoji": "show NAME",
    "config show nope": "There is no config file 'nope'",
    "config show pixnert": "Did you mean --config=pixnerd?",
    "config show emoji:": "no variant behind the colon",
    "sample --weights=https://x.y/z --out=x": "is an address: give organisation/name",
    "prepare preview --emoji /proc/nope.png --rows 1 --size 64": "Cannot write",
    "config show emoji:nope": "demo, shipped",
    "config show emoji:demo --config.stepz=3": "stepz",
    "train": "--workdir",
    "train --config=emoji": "--workdir is missing",
    "train --workdir=x": "Training needs --config",
    "train --config= --workdir=x": "--config= is empty",
    "train --config=emoji --workdir=": "--workdir= is empty",
    "train --config=emoji --workdir=x steps=3": "Unknown arguments: steps=3",
    "train --config=pixnert --workdir=x": "Did you mean --config=pixnerd?",
    "train --config={folder} --workdir=x": "There is no config file",
    "train --config=emoji:nope --workdir=x": "demo, shipped",
    "train --config=emoji:demo --workdir=/proc/nope/x": "Cannot write to the --workdir",
    "train --config=emoji:demo --workdir=gs://b/x": "--workdir is 'gs://b/x'",
    "sample --weights=emoji --out=s3://b/x": "--out is 's3://b/x'",
    "export --weights=emoji --out=gs://b/x": "--out is 'gs://b/x'",
    "quickstart --workdir=gs://b/x": "--workdir is 'gs://b/x'",
    "train --config=emoji:demo --workdir=r/checkpoints/200": "--workdir=r.",
    "train --config=emoji:demo --workdir=model.safetensors": "--weights=",
    "sample": "--workdir is missing",
    "sample --workdir=": "--workdir= is empty",
    "sample --weights=emoji --out=": "--out= is empty",
    "sample --weights= --out=x": "--weights= is empty",
    "sample --weights=emoji": "--workdir is missing",
    "sample --workdir={folder}": "checkpoints/",
    "sample --workdir={folder}/nope": "No weights at",
    "sample --workdir=model.safetensors": "--weights=model.safetensors",
    "sample --workdir=r/checkpoints/200": "--workdir=r.",
    "sample --weights=r/checkpoints/200 --out=x": "--weights=r.",
    "sample --weights=nope.safetensors --out=x": "There is no file nope.safetensors",
    "sample --weights=emoji --out=x --count": "Missing value for flag --count",
    "sample --weights=emoji --out=/proc/nope/x": "--out",
    "evaluate": "--workdir is missing",
    "evaluate --workdir={folder}/nope": "No weights at",
    "evaluate --workdir=r/checkpoints/200": "--workdir=r.",
    "export": "--out",
    "export --workdir=x": "--out",
    "export --out=x": "--workdir is missing",
    "export --workdir={folder}/nope --out=x": "No weights at",
    "export --weights=emoji --out=/proc/nope/x": "--out",
    "export --weights=emoji --out=x --dtype=int8": "float32, bfloat16",
}
EXPERIMENT = (
    "from pixelflow_jax.experiment import Experiment\n"
    "def get_config():\n    config = Experiment(name='x')\n"
)
CONFIG_FILES = {
    "a config file without get_config": ("a.py", "", "has no get_config()"),
    "a config that is a dict": (
        "a.py",
        "def get_config():\n    return {'steps': 3}\n",
        "must return an Experiment, not {'steps': 3}",
    ),
    "a config that is a number": (
        "a.py",
        "def get_config():\n    return 3\n",
        "must return an Experiment, not 3",
    ),
    "a config file with an unknown field": (
        "a.py",
        EXPERIMENT + "    config.stepz = 3\n    return config\n",
        "Did you mean steps?",
    ),
    "a config file that is not Python": ("a.py", "def get_config(:\n", "SyntaxError"),
    "a config file that ends the program": (
        "a.py",
        "def get_config():\n    exit(0)\n",
        "SystemExit",
    ),
    "a config file with an error of its own": (
        "a.py",
        "class Odd(BaseException): ...\ndef get_config():\n    raise Odd\n",
        "Odd",
    ),
    "a config file that divides by zero": (
        "a.py",
        "def get_config():\n    return 1 / 0\n",
        "ZeroDivisionError",
    ),
    "a config file in a folder with a colon": (
        "a:b/cfg.py",
        "def get_config():\n    return 3\n",
        "a:b/cfg.py cannot be used: get_config() must return an Experiment",
    ),
    "a broken JSON config": ("a.json", "{", "cannot be read"),
    "a JSON config of something else": ("a.json", "[1, 2]", "holds no config"),
    "a config of a later version": (
        "a.json",
        '{"class": "Experiment", "version": 99, "name": "x"}',
        "update pixelflow_jax",
    ),
    "a config file of another kind": ("a.txt", "steps: 3", "must end in .py or .json"),
    "a config with names that terminals obey": (
        "a.py",
        "def get_config():\n    return '\\x1b[31m\\x1b]0;x'\n",
        "\\x1b",
    ),
}


def rows() -> Iterator[Row]:
    """All of these tables as rows."""
    for verb, words in FOREIGN.items():
        for word, meant in words.items():
            yield row(f"{verb} {word}", meant, "pixelflow")
    for verb, words in STRANGERS.items():
        for word in words:
            yield row(f"{verb} --{word}", f"--{word.split('=')[0]} belongs to")
    for verb, words in MISSPELT.items():
        for word, meant in words.items():
            yield row(f"{verb} {word}", f"There is no flag {word.split('=')[0]}", meant)
    for field in SETTLED:
        for verb in ("sample", "export"):
            name = field.split("=")[0]
            yield row(f"{verb} --config.{field}", f"--config.{name} is settled")
    for base, table in ((SAMPLE, VALUES), (SAMPLE, REQUESTS), (TRAIN, FIELDS)):
        for words, says in table.items():
            yield row(f"{base} {words}", says)
    for table in (PREPARE, CONVERT, QUICKSTART, OTHERS):
        for line, says in table.items():
            yield row(line, says)
    for name, (file, text, says) in CONFIG_FILES.items():
        line = f"train --config={{folder}}/{file} --workdir={{folder}}/run"
        yield file_row(name, file, text, line, says)


ROWS: list[Row] = list(rows())
