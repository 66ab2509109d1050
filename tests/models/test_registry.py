"""Denoisers of this package and of others, which entry points bring."""

import pathlib

import pytest
from flax import nnx

from pixelflow_jax.errors import ConfigError
from pixelflow_jax.models.interface import network
from pixelflow_jax.models.pixnerd import PixNerd
from pixelflow_jax.models.registry import GROUP, denoiser_classes
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.registry import implementations

MODEL = """
import dataclasses
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.models.interface import network
from pixelflow_jax.models.pixnerd import PixNerd

@dataclasses.dataclass(kw_only=True)
class {name}(DenoiserConfig):
    patch: int = 4
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a package of one module with one entry point."""
    monkeypatch.syspath_prepend(tmp_path)
    implementations.cache_clear()

    def write(module: str, text: str, value: str) -> None:
        (tmp_path / f"{module}.py").write_text(text)
        info: pathlib.Path = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: the-{module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\nmine = {value}\n")

    yield write
    implementations.cache_clear()


def test_every_denoiser_of_this_package_is_found():
    names = {"PixelFlow", "PixelGen", "PixelGenText", "PixNerd", "PixNerdText"}
    assert names <= set(denoiser_classes())
    assert denoiser_classes()["PixNerd"] is PixNerd
    assert denoiser_classes() is denoiser_classes()


@pytest.mark.parametrize("value", ["brought_{}", "brought_{}:Brought"])
def test_another_package_brings_its_own(install, value):
    module = f"{'class' if ':' in value else 'module'}"
    install(f"brought_{module}", MODEL.format(name="Brought"), value.format(module))
    classes = denoiser_classes()
    # What its module merely imports is ours and not counted twice.
    assert classes["Brought"]().patch == 4 and classes["PixNerd"] is PixNerd


@pytest.mark.parametrize(
    ("module", "text", "value", "words"),
    [
        ("absent", "", "absent_too", "of the-absent cannot be loaded, ModuleNotFound"),
        ("lacking", "", "lacking:Model", "of the-lacking cannot be loaded, Attribute"),
        (
            "raising",
            "1 / 0",
            "raising",
            "of the-raising cannot be loaded, ZeroDiv",
        ),
        ("empty", "", "empty", "of the-empty brings no DenoiserConfig"),
        (
            "other",
            "Model = int",
            "other:Model",
            "of the-other brings no DenoiserConfig",
        ),
        (
            *("twin", MODEL.format(name="PixNerd"), "twin:PixNerd"),
            "called PixNerd, one of pixelflow_jax.models.pixnerd and one of twin",
        ),
    ],
    ids=lambda value: value if value.isalpha() else "",
)
def test_entry_points_that_bring_none_are_named(install, module, text, value, words):
    install(module, text, value)
    with pytest.raises(ConfigError, match=words):
        denoiser_classes()


class Listed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])


def test_parameters_without_names_are_refused():
    class Config(PixNerd):
        def build(self, rngs, precision):
            return Listed(rngs)

    with pytest.raises(ConfigError, match=r"Config lie in a list \(layers/0/.*Stack"):
        network(Config(), Precision())
