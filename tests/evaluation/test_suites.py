"""Images of text suites, read as the official scorers read them."""

import collections
import json
import os
import pathlib
import types

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.errors import EvaluationError, PipelineError
from pixelflow_jax.evaluation import suites
from pixelflow_jax.evaluation.suite_prompts import SUITES, read_suite
from pixelflow_jax.evaluation.suites import draw_suite
from pixelflow_jax.sampling.spool import only_writer

SIZE = 8


class Drawn:
    """A stream whose image number i is of the shade i."""

    def __init__(self, count, digest="d" * 64, stop=None):
        request = types.SimpleNamespace(first=0, seed=5, seeds=None)
        self.draw = types.SimpleNamespace(
            count=count, digest=digest, request=request, facts=lambda: {"seed": 5}
        )
        self.stop, self.starts = stop, []

    def __call__(self, start=0):
        self.starts.append(start)
        for place in range(start, self.draw.count, 3):
            shades = np.arange(place, min(place + 3, self.draw.count), dtype=np.uint8)
            if self.stop is not None and place >= self.stop:
                raise KeyboardInterrupt
            yield place, np.tile(shades[:, None, None, None], (1, SIZE, SIZE, 3))


def geneval(folder):
    lines = [
        {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": p}
        for p in ("a photo of a dog", "a photo of a caf\u00e9")
    ]
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def dpg(folder):
    prompts = folder / "prompts"
    prompts.mkdir(exist_ok=True)
    (prompts / "whoops12.txt").write_text("A long prompt.\n")
    (prompts / "COCO_7.txt").write_text("Another, of 100 words")
    return prompts


def t2icompbench(folder):
    (folder / "color_val.txt").write_bytes(b"a red apple\na green bench")
    (folder / "non_spatial_val.txt").write_bytes(b"a man sits.\r\nb\r\n")
    return folder


WRITE = {"geneval": geneval, "dpg": dpg, "t2icompbench": t2icompbench}


def drawn(name, tmp_path, out="out", **options):
    prompts = tmp_path / f"prompts of {name}"
    prompts.mkdir(exist_ok=True)
    items = read_suite(name, WRITE[name](prompts))
    stream = Drawn(sum(item.images for item in items), **options)
    return stream, draw_suite(name, items, stream, tmp_path / out, {"by": "a test"})


def shade(path):
    image = np.asarray(Image.open(path))
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
    return int(image[0, 0, 0])


def test_geneval_reads_it(tmp_path):
    """evaluate_images.py: each folder but for files, each name of digits alone."""
    _, paths = drawn("geneval", tmp_path)
    folder, shades = str(paths["images"]), []
    for sub in sorted(os.listdir(folder)):
        place = os.path.join(folder, sub)
        assert os.path.isdir(place) and sub.isdigit() and len(sub) == 5
        with open(os.path.join(place, "metadata.jsonl")) as file:
            text = file.read()
        assert "\n" not in text
        metadata = json.loads(text)
        assert {"tag", "include", "prompt"} <= set(metadata)
        samples = sorted(os.listdir(os.path.join(place, "samples")))
        for image in samples:
            assert image.removesuffix(".png").isdigit()
            shades.append(shade(os.path.join(place, "samples", image)))
        assert len(samples) == 4 and sorted(os.listdir(place))[0] == "metadata.jsonl"
    assert shades == list(range(8))


def test_dpg_reads_it(tmp_path):
    """compute_dpg_bench.py: every file is an image, its name up to a dot the id."""
    _, paths = drawn("dpg", tmp_path)
    names = sorted(os.listdir(paths["images"]))
    assert [name.split(".")[0] for name in names] == ["COCO_7", "whoops12"]
    for number, name in enumerate(names):
        image = np.asarray(Image.open(paths["images"] / name))
        height, width = (side // 2 for side in image.shape[:2])
        assert (height, width) == (SIZE, SIZE)
        tiles = [
            image[y : y + height, x : x + width] for y in (0, SIZE) for x in (0, SIZE)
        ]
        assert [set(tile.ravel().tolist()) for tile in tiles] == [
            {4 * number + k} for k in range(4)
        ]


def test_t2i_compbench_reads_it(tmp_path):
    """Its scorers cut names at _: the prompt before, the image's number behind."""
    _, paths = drawn("t2icompbench", tmp_path)
    assert sorted(os.listdir(paths["images"])) == ["color", "non_spatial"]
    for category, prompts in (
        ("color", ["a red apple", "a green bench"]),
        ("non_spatial", ["a man sits.", "b"]),
    ):
        files = os.listdir(paths["images"] / category / "samples")
        files.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))
        numbers = [int(name.split("_")[-1].split(".")[0]) for name in files]
        assert numbers == list(range(20))
        assert [name.split("_")[0] for name in files] == [
            prompt for prompt in prompts for _ in range(10)
        ]


@pytest.mark.parametrize("name", SUITES)
def test_what_was_cut_short_goes_on_with_the_first_prompt_that_lacks_images(
    tmp_path, name
):
    whole, paths = drawn(name, tmp_path)
    each = whole.draw.count // len(read_suite(name, WRITE[name](tmp_path)))
    with pytest.raises(KeyboardInterrupt):
        drawn(name, tmp_path, "cut", stop=each + 1)
    images = tmp_path / "cut" / name
    assert not (tmp_path / "cut" / f"{name}.json").exists()
    (images / ".half.png.partial").write_bytes(b"half")
    stream, _ = drawn(name, tmp_path, "cut")
    assert stream.starts[0] % each == 0 and stream.starts[0] > 0
    content = [
        {
            str(p.relative_to(root)): p.read_bytes()
            for p in root.rglob("*")
            if p.is_file()
        }
        for root in (tmp_path / "out", tmp_path / "cut")
    ]
    assert content[0] == content[1]
    again, _ = drawn(name, tmp_path, "cut")
    assert not again.starts
    manifest = json.loads(paths["manifest"].read_text())
    assert manifest["draw"]["seed"] == 5 and manifest["by"] == "a test"
    counts = collections.Counter(len(one["numbers"]) for one in manifest["images"])
    assert sum(size * many for size, many in counts.items()) == whole.draw.count


def test_two_commands_do_not_draw_one_suite(tmp_path):
    with only_writer(tmp_path / "out" / "dpg"):
        with pytest.raises(PipelineError, match="Another command is writing to"):
            drawn("dpg", tmp_path)
    drawn("dpg", tmp_path)


def test_images_of_another_draw_are_not_mixed(tmp_path):
    drawn("dpg", tmp_path)
    with pytest.raises(EvaluationError, match="holds images of the draw ddd.*--out"):
        drawn("dpg", tmp_path, digest="e" * 64)
    (tmp_path / "mine" / "dpg").mkdir(parents=True)
    (tmp_path / "mine" / "dpg" / "cat.png").write_bytes(b"mine")
    with pytest.raises(EvaluationError, match="not of this command"):
        drawn("dpg", tmp_path, "mine")


def prompts_of(path: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, text in files.items():
        (path / name).write_text(text)
    return path if len(files) != 1 or ".txt" in min(files) else path / min(files)


LINE = '{"tag": "a", "include": [], "prompt": "x"}\n'


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("geneval", {}, "holds no prompts of geneval.*github.com/djghosh13/geneval"),
        ("dpg", {}, "github.com/TencentQQGYLab/ELLA"),
        ("t2icompbench", {}, "github.com/Karine-Huang/T2I-CompBench"),
        ("geneval", {"evaluation_metadata.jsonl": LINE * 2}, "lines 1 and 2 are the"),
        ("geneval", {"evaluation_metadata.jsonl": LINE + "{"}, "line 2 is no JSON"),
        ("geneval", {"evaluation_metadata.jsonl": '{"prompt": "x"}'}, "line 1 lacks"),
        ("geneval", {"evaluation_metadata.jsonl": "\n"}, "are empty"),
        ("dpg", {"a.b.txt": "x"}, "id 'a.b' .* without dots"),
        ("dpg", {"a.txt": "x", "A.txt": "y"}, "have the file a.png"),
        ("dpg", {"dpg_bench.csv": "item_id,text\n1,x\n1,y\n"}, "'1' appears .* two"),
        ("dpg", {"dpg_bench.csv": "item_id,text\n../1,x\n"}, "without dots and"),
        ("dpg", {"dpg_bench.csv": "id,prompt\n1,x\n"}, "no columns item_id and text"),
        ("dpg", {"a.txt": " "}, "empty prompt"),
        ("t2icompbench", {"color_val.txt": "a_b\n"}, "holds _, at which"),
        ("t2icompbench", {"color_val.txt": "a/b\n"}, "holds /, at which"),
        ("t2icompbench", {"color_val.txt": "a\na\n"}, "appears twice"),
        ("t2icompbench", {"color_val.txt": "a" * 250}, "of at most 255 bytes"),
    ],
)
def test_prompts_that_a_scorer_could_not_read_are_refused(tmp_path, name, files, words):
    with pytest.raises(EvaluationError, match=words):
        read_suite(name, prompts_of(tmp_path, files))


def test_absent_prompts_say_where_they_come_from(tmp_path):
    for name, suite in SUITES.items():
        with pytest.raises(EvaluationError) as error:
            read_suite(name, tmp_path / "nope")
        assert suite.origin in str(error.value) and "--prompts" in str(error.value)
    with pytest.raises(EvaluationError, match="4 images of a prompt"):
        read_suite("dpg", dpg(tmp_path), 2)


def test_the_table_of_dpg_repeats_prompts(tmp_path):
    path = tmp_path / "dpg_bench.csv"
    path.write_text("item_id,text,question\np1,x,q\np1,x,r\np2,y,q\n")
    items = read_suite("dpg", path)
    assert [(item.prompt, item.files) for item in items] == [
        ("x", ("p1.png",)),
        ("y", ("p2.png",)),
    ]


def test_a_count_that_does_not_fit_the_stream_is_a_bug(tmp_path):
    items = read_suite("dpg", dpg(tmp_path))
    with pytest.raises(ValueError, match="8 images are wanted, 7 drawn"):
        suites.draw_suite("dpg", items, Drawn(7), tmp_path, {})
