"""Old imports, fields and flags get an error that names the new word."""

import importlib
import pathlib
import subprocess
import sys

import pytest

from pixelflow_jax import renamed
from pixelflow_jax.config_files import load_config
from pixelflow_jax.config_types import field_types, unknown_field
from pixelflow_jax.config_versions import CHANGES
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import node_classes

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = renamed.PACKAGE

# Every module of version 0.1.0.
MODULES = """
backend compat conditioning convert.actions convert.errors convert.infer convert.inspect
convert.official convert.pixelflow convert.pixelgen convert.pixelgen_text
convert.pixnerd convert.pixnerd_text convert.released convert.tables convert.text_trunk
convert.variants data.buckets data.captions data.colourfont data.colours data.emoji
data.errors data.features data.files data.folder data.images data.loader data.parquet
data.plan data.progress data.shard_writer data.shards data.source data.tars data.tfds
data.transforms description draw evaluation.generate evaluation.heldout
evaluation.output evaluation.preview experiment flow.dopri5 flow.guidance flow.path
flow.prediction flow.solver flow.time hub main models.base models.checks
models.pixelflow models.pixelgen models.pixelgen_text models.pixnerd
models.pixnerd_text models.text_trunk nn.attention nn.block nn.decoder nn.dropout
nn.embed nn.field nn.field_kernel nn.heads nn.heads_kernel nn.hidden nn.hidden_kernel
nn.layers nn.mlp nn.packing nn.patch nn.precision nn.residual nn.residual_kernel
nn.stack nn.text_block nn.tiling nodes objective perceptual pipeline prepare presets
prompts published quickstart sampler sharding teachers.bert teachers.dinov2
teachers.dinov2_table teachers.encoders teachers.lpips teachers.qwen3 teachers.resize
teachers.suite teachers.t5 teachers.text teachers.weights training.balance
training.checkpoint training.events training.initial training.log training.loop
training.optimizer training.state training.step training.text_features
training.throughput weightfiles weightfiles.pytorch weightfiles.reader
weightfiles.safe weightfiles.stored
""".split()


def exists(module: str) -> bool:
    """Whether there is a module or a package of that name."""
    path = ROOT / PACKAGE / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


@pytest.mark.parametrize("module", MODULES)
def test_every_old_module_is_there_or_says_where_it_is(module):
    if not exists(module) or module in renamed.MODULES:
        assert exists(renamed.MODULES[module])
    if not exists(module):
        parent = module.split(".")[0]
        asked = module if exists(parent) else parent  # a whole package is gone
        now = f"{PACKAGE}.{renamed.MODULES[asked]}"
        with pytest.raises(ModuleNotFoundError, match=f"is called '{now}' now"):
            importlib.import_module(f"{PACKAGE}.{module}")


def test_names_of_a_package_that_are_modules_say_it_too():
    with pytest.raises(ModuleNotFoundError, match="pixelflow_jax.pretrained.pipeline"):
        from pixelflow_jax import pipeline  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name 'nowhere'"):
        from pixelflow_jax import nowhere  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="No module named 'pixelflow_jax.no'"):
        importlib.import_module(f"{PACKAGE}.no")


def test_the_table_costs_nothing():
    """Importing the package still imports nothing that takes time."""
    code = "import sys, pixelflow_jax\nprint(*sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert {"jax", "flax", "numpy", "absl"}.isdisjoint(done.stdout.split())
    assert "pixelflow_jax.renamed" in done.stdout.split()


FIELDS = {**renamed.FIELDS, **renamed.MOVED}


@pytest.mark.parametrize("old", FIELDS)
def test_every_old_field_is_called_by_its_new_name(old):
    """In the classes that have the new one, by flag, in a file, and as an argument."""
    classes = [
        cls
        for name, cls in node_classes().items()
        if old not in field_types(cls)
        and (FIELDS[old] in field_types(cls) or old in renamed.MOVED)
    ]
    assert classes
    for cls in classes:
        assert FIELDS[old] in unknown_field(cls, old), cls


@pytest.mark.parametrize("old", renamed.CLASSES)
def test_every_old_class_of_a_config_is_read(old):
    assert renamed.CLASSES[old] in node_classes() and old not in node_classes()
    assert set(CHANGES) <= {*node_classes(), *renamed.CLASSES}


START = "from pixelflow_jax.experiment import Experiment\n"
MINE = "def get_config():\n    return Experiment(name='x'{})\n"
CASES = {
    "from pixelflow_jax.nn.stack import Loop\n": [
        "mine.py:1 cannot be used: ImportError: cannot import name 'Loop'",
        "Write: from pixelflow_jax.nn.stack import StackConfig.",
    ],
    "from pixelflow_jax.objective import FlowMatching\n": [
        "No module named 'pixelflow_jax.objective'",
        "Write: from pixelflow_jax.losses.flow_matching import FlowMatching.",
    ],
    "from pixelflow_jax.conditioning import (\n    ClassLabels,\n    Text,\n)\n": [
        "Write: from pixelflow_jax.conditioning.labels import ClassLabels; "
        "from pixelflow_jax.conditioning.text import Text.",
    ],
    "from pixelflow_jax.data.emoji import EASY, Emoji\n": [
        "Write: from pixelflow_jax.data.emoji.source import EASY; "
        "from pixelflow_jax.data.emoji.source import Emoji.",
    ],
    "from pixelflow_jax.training.balance import Balance\n": [
        "Write: from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight.",
    ],
    "from pixelflow_jax.presets import PRESETS\n": [
        "Write: from pixelflow_jax.sampling.presets import PRESETS.",
    ],
    "from pixelflow_jax import nodes\n": ["it is called 'pixelflow_jax.config_io' now"],
    "from pixelflow_jax.models.pixnerd import PixNerd\nPixNerd(tap=3)\n": [
        "mine.py:2 cannot be used: TypeError",
        "PixNerd.tap is called feature_layer now.",
    ],
    "from pixelflow_jax.models.pixnerd import PixNerd\nPixNerd(attention='xla')\n": [
        "PixNerd.attention is kernels.attention of the Experiment now.",
    ],
    START + MINE.format(", balance=None"): ["called adaptive_weight now. The fields"],
    START + "Experiment(name='x').model.loop.remat = 'none'\n": [
        "PixNerd.loop is called stack now.",
    ],
}


@pytest.mark.parametrize("text", CASES)
def test_a_config_file_of_then_is_told_the_words_of_now(text, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    for words in CASES[text]:
        assert words in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("model.tap=3", "PixNerd.tap is called feature_layer now"),
        ("model.loop.remat=none", "PixNerd.loop is called stack now"),
        ("balance.every=3", "Experiment.balance is called adaptive_weight now"),
        ("sampling.grid.told=1", "Grid.told is called timestep_scale now"),
        (
            "sampling.guidance.closed=low",
            "Free.closed is called interval now",
        ),
        ("model.decoder.kernel=xla", "kernel is kernels.field of the Experiment now"),
    ],
)
def test_a_flag_of_then_is_told_the_word_of_now(flag, words):
    with pytest.raises(ConfigError, match=rf"^--config\..* cannot be set: .*{words}"):
        load_config("emoji", [f"--config.{flag}"])
