"""The command: what it writes, what it says, and what it refuses."""

import dataclasses
import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from pixelflow_jax.convert import families
from pixelflow_jax.convert.__main__ import main
from pixelflow_jax.errors import ConvertError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.models.pixnerd_text import PixNerdText, text_field
from pixelflow_jax.nn.embed import sincos_table
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.tensors import mapping as tables
from pixelflow_jax.validate import size_problems
from tests.convert import checkpoints
from tests.convert.checkpoints import refused, run

SMALL = {"width": 24, "heads": 2, "depth": 3, "feature_layer": 1, "patch": 4}
TEXT = {"text_depth": 1, "text_width": 10, "text_length": 5}
PIXNERD = PixNerd(num_classes=5, decoder=NeuralField(width=6, depth=1), **SMALL)
SINCOS = dataclasses.replace(PIXNERD, decoder=NeuralField(encoding="sincos"))
CONTEXT = {"context_length": 3, "context_start": 1}
PIXELGEN = PixelGen(num_classes=5, image_size=16, dropout=0.0, **CONTEXT, **SMALL)
PIXELFLOW = PixelFlow(num_classes=5, **SMALL)
PIXELGEN_TEXT = PixelGenText(image_size=16, bottleneck=7, **SMALL, **TEXT)
PIXNERD_TEXT = PixNerdText(decoder=text_field(), **SMALL, **TEXT)


def official(model, dtype=np.float32) -> dict[str, np.ndarray]:
    """Random official tensors of a model."""
    shapes = families.shapes_of(model)
    empty = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes)
    draw = np.random.default_rng(0).standard_normal
    names = tables.export(families.table_of(model), empty).items()
    return {key: draw(value.shape).astype(dtype) for key, value in names}


@pytest.fixture
def pixnerd(tmp_path):
    return checkpoints.save(official(PIXNERD), tmp_path / "pixnerd.safetensors")


def listed(message: str) -> list[str]:
    lines = "; ".join(line.strip() for line in message.splitlines()[1:])
    return lines.replace(";;", ";").split("; ")


def nothing_written(folder) -> bool:
    return not any(path.name.startswith(("out", ".")) for path in folder.iterdir())


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64], ids=str)
def test_every_type_is_kept(dtype, tmp_path):
    theirs = official(PIXELGEN, dtype)
    source = checkpoints.save(theirs, tmp_path / "half.safetensors")
    run("from-torch", source, tmp_path / "out", "--set", "context_start=1")
    flat = load_file(tmp_path / "out" / "model.safetensors")
    assert {a.dtype for a in flat.values()} == {np.dtype(dtype)}
    run("to-torch", tmp_path / "out", tmp_path / "back.safetensors")
    checkpoints.identical(load_file(tmp_path / "back.safetensors"), theirs)


def test_types_may_differ_between_parameters_and_not_within_one(tmp_path, capsys):
    theirs = official(PIXNERD)
    half = ml_dtypes.bfloat16
    mixed = {k: v.astype(half) if ".attn." in k else v for k, v in theirs.items()}
    source = checkpoints.save(mixed, tmp_path / "mixed.safetensors")
    run("from-torch", source, tmp_path / "mixed")
    run("to-torch", tmp_path / "mixed", tmp_path / "back.safetensors")
    checkpoints.identical(load_file(tmp_path / "back.safetensors"), mixed)
    key = "blocks.1.attn.qkv.weight"
    checkpoints.save(theirs | {key: theirs[key].astype(half)}, source)
    message = refused(capsys, "from-torch", source, tmp_path / "out")
    (line,) = listed(message)
    assert line.startswith("mistyped: ") and key in line and "bfloat16, float32" in line
    assert nothing_written(tmp_path)


def test_all_that_is_wrong_is_listed_and_nothing_written(tmp_path, capsys):
    theirs = official(PIXNERD)
    theirs["blocks.1.mlp.gate.weight"] = theirs.pop("blocks.1.mlp.w1.weight")
    theirs["blocks.0.mlp.w2.weight"] = theirs["blocks.0.mlp.w2.weight"].T
    del theirs["final_layer.linear.bias"]
    source = checkpoints.save(theirs, tmp_path / "wrong.safetensors")
    for command in ("from-torch", "to-safetensors"):
        message = refused(capsys, command, source, tmp_path / "out.safetensors")
        assert listed(message) == [
            "missing: blocks.1.mlp.w1.weight",
            "missing: final_layer.linear.bias",
            "unexpected: blocks.1.mlp.gate.weight",
            "misshapen: blocks.0.mlp.w2.weight: (64, 24), not (24, 64)",
        ]
        assert "PixNerd of width 24, heads 2, depth 3" in message
        assert nothing_written(tmp_path)


def test_tensors_beside_the_model_are_strays(tmp_path, capsys):
    theirs = checkpoints.prefixed("denoiser.", official(PIXNERD))
    theirs["adapter.weight"] = np.zeros(2, np.float32)
    source = checkpoints.save(theirs, tmp_path / "more.safetensors")
    message = refused(capsys, "from-torch", source, tmp_path / "out")
    assert listed(message) == ["unexpected: adapter.weight"]


def test_another_family_is_refused(pixnerd, tmp_path, capsys):
    message = refused(
        capsys, "from-torch", pixnerd, tmp_path / "out", "--family=pixelgen"
    )
    assert "PixNerd's" in message and "s_embedder.proj.weight" in message
    assert "--family=pixnerd" in message and nothing_written(tmp_path)
    strange = {"encoder.layer.0.weight": np.zeros(3, np.float32)}
    source = checkpoints.save(
        {"a": np.zeros(2, np.float32)}, tmp_path / "x.safetensors"
    )
    message = refused(capsys, "from-torch", source, tmp_path / "out")
    assert "none of the families" in message and "inspect" in message
    checkpoints.save(strange, source)
    assert "no state dict" in refused(capsys, "from-torch", source, tmp_path / "out")


@pytest.mark.parametrize("family", ["pixelgen", "jit"])
def test_pixelgen_and_jit_share_a_network_and_not_a_sampler(family, tmp_path):
    theirs = checkpoints.prefixed("net." if family == "jit" else "", official(PIXELGEN))
    source = checkpoints.save(theirs, tmp_path / "any.safetensors")
    for flags, name in (([], "guessed"), ([f"--family={family}"], "told")):
        run("from-torch", source, tmp_path / name, *flags)
        config, _ = checkpoints.read(tmp_path / name)
        steps, guidance = config.sampling.grid.steps, config.sampling.guidance
        assert (steps, guidance.interval) == (50, "[]" if family == "jit" else "(]")


@pytest.mark.parametrize(
    "model",
    [PIXNERD, SINCOS, PIXELGEN, PIXELFLOW, PIXELGEN_TEXT, PIXNERD_TEXT],
    ids=["pixnerd", "sincos", "pixelgen", "pixelflow", "jit_t2i", "pixnerd_t2i"],
)
def test_the_config_that_is_written_describes_the_model(model, tmp_path):
    source = checkpoints.save(official(model), tmp_path / "official.safetensors")
    flags = {
        "PixelFlow": ["--set", "heads=2"],
        "PixelGen": ["--set", "context_start=1"],
    }
    name = type(model).__name__
    size = [] if hasattr(model, "image_size") else ["--image-size=16"]
    run("from-torch", source, tmp_path / "out", *flags.get(name, []), *size)
    config, _ = checkpoints.read(tmp_path / "out")
    assert families.fields(config.model) == families.fields(model)
    assert config.data.image_size == 16
    assert size_problems(config, 16, 16) == []
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert len(about["class_names"]) == model.num_classes


def test_positions_of_another_resolution_are_computed(tmp_path, capsys):
    for model in (PIXELGEN, PIXELGEN_TEXT):
        theirs = official(model, ml_dtypes.bfloat16)
        source = checkpoints.save(theirs, tmp_path / "official.safetensors")
        out = tmp_path / type(model).__name__
        run("from-torch", source, out, "--image-size=32")
        assert "pos_embed of 4 x 4 patches replaced by a computed one of 8 x 8" in (
            capsys.readouterr().out
        )
        config, params = checkpoints.read(out)
        assert config.model.image_size == config.data.image_size == 32
        wanted = sincos_table(8, 8, 24).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(params["position"], wanted.astype(np.float32))
        run("to-torch", out, tmp_path / "back.safetensors", "--overwrite")
        back = load_file(tmp_path / "back.safetensors")
        assert back.pop("pos_embed").shape == (1, 64, 24)
        theirs.pop("pos_embed")
        checkpoints.identical(back, theirs)
        run("from-torch", source, out, "--image-size=16", "--overwrite")
        assert "pos_embed" not in capsys.readouterr().out.split("Written")[1]


def test_a_config_the_weights_must_fit(pixnerd, tmp_path, capsys):
    """Its fields are compared, what tensors cannot tell is taken from it."""
    file = tmp_path / "config.py"
    file.write_text(
        "from pixelflow_jax.experiment import Experiment\n"
        "from pixelflow_jax.models.pixnerd import NeuralField, PixNerd\n"
        "from pixelflow_jax.nn.stack import StackConfig\n"
        "def get_config(encoding='cosine', depth=3):\n"
        "    field = NeuralField(width=6, depth=1, encoding=encoding)\n"
        "    model = PixNerd(num_classes=5, width=24, heads=2, depth=depth, patch=4,\n"
        "        feature_layer=2, decoder=field, stack=StackConfig(scan=False))\n"
        "    return Experiment(name='mine', model=model, seed=7)\n"
    )
    run("from-torch", pixnerd, tmp_path / "fits", f"--config={file}")
    config, _ = checkpoints.read(tmp_path / "fits")
    assert (config.name, config.seed) == ("mine", 7)
    assert config.model.decoder.encoding == "cosine"
    assert (config.model.feature_layer, config.model.stack.scan) == (2, False)
    file.write_text(file.read_text().replace("depth=3", "depth=4").replace("24", "48"))
    message = refused(
        capsys, "from-torch", pixnerd, tmp_path / "out", f"--config={file}"
    )
    assert listed(message) == [
        f"width=48 in {file}, but the tensors say 24",
        f"depth=4 in {file}, but the tensors say 3",
    ]
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("width=25", ["width=25 in --set, but the tensors say 24"]),
        ("hats=3", ["hats in --set", "PixNerd's, whose fields are num_classes,"]),
        ("feature_layer=early", ["feature_layer='early' must be of type int"]),
        ("feature_layer", ["must be NAME=VALUE"]),
        ("feature_layer=9", ["model.feature_layer=9"]),
    ],
)
def test_fields_that_cannot_be_are_refused(flag, parts, pixnerd, tmp_path, capsys):
    arguments = ("from-torch", pixnerd, tmp_path / "out", "--set", flag)
    message = refused(capsys, *arguments)
    for part in parts:
        assert part in message
    assert nothing_written(tmp_path)


BARE = dataclasses.replace(PIXELGEN, context_length=0, context_start=0)


@pytest.mark.parametrize("prefix", ["", "net."], ids=["pixelgen", "jit"])
def test_how_many_tokens_of_the_class_there_are_tensors_tell(prefix, tmp_path, capsys):
    """Without their table there are none, and where they enter is not asked for."""
    theirs = official(BARE)
    assert "in_context_posemb" not in theirs
    named = checkpoints.prefixed(prefix, theirs)
    source = checkpoints.save(named, tmp_path / "bare.safetensors")
    run("from-torch", source, tmp_path / "plain")
    said = capsys.readouterr().out
    assert "context_length 0" in said and "context_start" not in said
    config, _ = checkpoints.read(tmp_path / "plain")
    assert config.model == BARE
    run("to-torch", tmp_path / "plain", tmp_path / "back.safetensors")
    checkpoints.identical(load_file(tmp_path / "back.safetensors"), theirs)
    # A start without tokens is not checked, whoever gives it.
    flags = ("--set", "context_length=0", "--set", "context_start=99")
    run("from-torch", source, tmp_path / "set", *flags)
    config, _ = checkpoints.read(tmp_path / "set")
    assert config.model == dataclasses.replace(BARE, context_start=99)
    # All else is.
    arguments = ("from-torch", source, tmp_path / "out", "--set")
    message = refused(capsys, *arguments, "context_length=3")
    assert listed(message) == ["context_length=3 in --set, but the tensors say 0"]
    del named[f"{prefix}pos_embed"]
    checkpoints.save(named, source)
    message = refused(capsys, *arguments[:-1])
    assert "missing: pos_embed" in listed(message) and nothing_written(tmp_path)
    # With tokens, their start is checked as before.
    source = checkpoints.save(official(PIXELGEN), tmp_path / "with.safetensors")
    message = refused(capsys, "from-torch", source, *arguments[2:], "context_start=99")
    assert "context_start=99 must lie in 0..depth - 1 = 2" in message


def test_a_model_of_someone_elses_has_no_official_layout():
    @dataclasses.dataclass(kw_only=True)
    class Other:
        depth: int = 1

    with pytest.raises(ConvertError, match="no official code of a Other .*PixelFlow"):
        families.table_of(Other())


def test_what_tensors_do_not_tell_is_said_and_can_be_set(tmp_path, capsys):
    source = checkpoints.save(official(PIXELGEN_TEXT), tmp_path / "x.safetensors")
    run("from-torch", source, tmp_path / "three")
    said = capsys.readouterr().out.splitlines()
    assert "assumed: patch=4" in said and "assumed: channels=3" in said
    run(
        "from-torch",
        source,
        tmp_path / "out",
        "--set",
        "patch=2",
        "--set",
        "feature_layer=2",
    )
    config, _ = checkpoints.read(tmp_path / "out")
    assert (config.model.patch, config.model.channels, config.model.feature_layer) == (
        2,
        12,
        2,
    )
    assert config.model.image_size == 8
    assert "assumed: patch" not in capsys.readouterr().out
    for flag in ("channels=0", "channels=few", "patch=-4"):
        message = refused(capsys, "from-torch", source, tmp_path / "no", "--set", flag)
        assert flag.split("=")[0] in message
    run("to-torch", tmp_path / "out", tmp_path / "back.safetensors")
    checkpoints.identical(load_file(tmp_path / "back.safetensors"), load_file(source))


def test_weights_are_chosen_by_name(tmp_path, capsys):
    raw = official(PIXNERD)
    both = checkpoints.prefixed("denoiser.", raw)
    both |= checkpoints.prefixed("ema_denoiser.", checkpoints.other(raw))
    source = checkpoints.save(both, tmp_path / "both.safetensors")
    wanted = {"": checkpoints.other(raw), "--ema": checkpoints.other(raw)}
    for flag, theirs in (wanted | {"--weights=raw": raw}).items():
        flags = ["--overwrite", *filter(None, [flag])]
        run("to-safetensors", source, tmp_path / "one.safetensors", *flags)
        checkpoints.identical(load_file(tmp_path / "one.safetensors"), theirs)
    assert "left out: the weights ema" in capsys.readouterr().out
    arguments = ("from-torch", source, tmp_path / "out", "--weights=ema2")
    assert "no weights 'ema2' in this file; it holds ema, raw" in refused(
        capsys, *arguments
    )


def test_wrappers_of_pytorch_leave_no_trace(tmp_path):
    theirs = official(PIXNERD)
    wrapped = {
        f"module.{k.replace('attn.', '_orig_mod.attn.')}": v for k, v in theirs.items()
    }
    source = checkpoints.save(wrapped, tmp_path / "wrapped.safetensors")
    run("to-safetensors", source, tmp_path / "bare.safetensors")
    checkpoints.identical(load_file(tmp_path / "bare.safetensors"), theirs)


def test_a_folder_of_shards_is_one_model(tmp_path):
    theirs = official(PIXNERD)
    folder = tmp_path / "shards"
    folder.mkdir()
    names = sorted(theirs)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        checkpoints.save({key: theirs[key] for key in keys}, folder / file)
    where = {key: file for file, keys in parts.items() for key in keys}
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text('{"_class_name": "Other"}')
    run("from-torch", folder, tmp_path / "out")
    run("to-torch", tmp_path / "out", tmp_path / "back.safetensors")
    checkpoints.identical(load_file(tmp_path / "back.safetensors"), theirs)
    whole = tmp_path / "out" / "model.safetensors"
    ours = load_file(whole)
    whole.unlink()
    where = {k: f"model-{i % 2}.safetensors" for i, k in enumerate(sorted(ours))}
    for file in set(where.values()):
        part = {key: ours[key] for key, place in where.items() if place == file}
        checkpoints.save(part, tmp_path / "out" / file)
    index = tmp_path / "out" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    run("to-torch", tmp_path / "out", tmp_path / "again.safetensors")
    checkpoints.identical(load_file(tmp_path / "again.safetensors"), theirs)


def test_files_of_ours_are_exported_and_not_converted_again(pixnerd, tmp_path, capsys):
    run("from-torch", pixnerd, tmp_path / "ours", "--image-size=16")
    config, params = checkpoints.read(tmp_path / "ours")
    pipeline = Pipeline(config=config, params=params, class_names=("a",) * 5, step=3)
    pipeline.save(tmp_path / "ours.safetensors", dtype="float32")
    run("to-torch", tmp_path / "ours.safetensors", tmp_path / "back.safetensors")
    checkpoints.identical(load_file(tmp_path / "back.safetensors"), load_file(pixnerd))
    for source in ("ours", "ours.safetensors"):
        arguments = ("from-torch", tmp_path / source, tmp_path / "out")
        assert "already in the format" in refused(capsys, *arguments)
    arguments = ("to-torch", pixnerd, tmp_path / "out.safetensors")
    assert "was not written by Pipeline.save" in refused(capsys, *arguments)
    arguments = ("to-torch", tmp_path / "ours", tmp_path / "out.pt", "--ema=0.9")
    assert "no average '0.9' to choose" in refused(capsys, *arguments)
    assert nothing_written(tmp_path)


def test_nothing_is_replaced_unasked(pixnerd, tmp_path, capsys):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    arguments = ("from-torch", pixnerd, kept)
    assert "--overwrite" in refused(capsys, *arguments)
    assert os.listdir(kept) == ["notes.txt"]
    run(*arguments, "--overwrite")
    names = ["README.md", "config.json", "model.safetensors", "notes.txt"]
    assert sorted(os.listdir(kept)) == names
    file = tmp_path / "kept.safetensors"
    file.write_text("mine")
    for command in (("to-torch", kept), ("to-safetensors", pixnerd)):
        assert "--overwrite" in refused(capsys, *command, file)
    assert file.read_text() == "mine"
    run("to-torch", kept, file, "--overwrite")
    assert len(load_file(file)) == len(load_file(pixnerd))


def test_a_run_is_never_replaced(pixnerd, tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    arguments = ("from-torch", pixnerd, tmp_path / "run", "--overwrite")
    assert "is the workdir of a training run" in refused(capsys, *arguments)
    assert os.listdir(tmp_path / "run") == ["checkpoints"]


def test_the_card_says_what_is_known_of_the_weights(pixnerd, tmp_path):
    run("from-torch", pixnerd, tmp_path / "ours", "--image-size=16")
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "A class-conditional PixNerd for images of 16 x 16 pixels." in card
    assert "million, float32 |" in card and "| 5 classes | by number |" in card
    origin = (
        "| weights | pixnerd.safetensors, converted; data and batch of the training"
    )
    assert origin in card and "| trained |" not in card
    mixed = load_file(pixnerd)
    key = "final_layer.linear.bias"
    checkpoints.save(mixed | {key: mixed[key].astype(np.float16)}, pixnerd)
    run("from-torch", pixnerd, tmp_path / "mixed")
    card = (tmp_path / "mixed" / "README.md").read_text()
    assert "million, float16, float32 |" in card


def test_a_canvas_is_assumed_for_the_released_patch_and_can_be_set(tmp_path, capsys):
    model = dataclasses.replace(PIXNERD_TEXT, patch=16)
    source = checkpoints.save(official(model), tmp_path / "x.safetensors")
    flags = {"assumed": [], "none": ["canvas=()"], "wide": ["canvas=(512, 1024)"]}
    for name, given in flags.items():
        given = [f"--set={one}" for one in given]
        run("from-torch", source, tmp_path / name, *given, "--image-size=64")
    found = [checkpoints.read(tmp_path / name)[0].model.canvas for name in flags]
    assert found == [(512, 512), (), (512, 1024)]
    assert "assumed: canvas=(512, 512)" in capsys.readouterr().out
    arguments = ("from-torch", source, tmp_path / "out", "--set", "canvas=(24, 32)")
    assert "patch=16 does not divide" in refused(capsys, *arguments)


def test_a_full_disk_leaves_nothing(pixnerd, tmp_path, capsys, monkeypatch):
    def full(self, *_):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(tables.Row, "join", full)
    arguments = ("from-torch", pixnerd, tmp_path / "out" / "inner")
    assert "No space left" in refused(capsys, *arguments)
    assert nothing_written(tmp_path)
    monkeypatch.undo()
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(tables.np, "ascontiguousarray", full)
    assert "No space left" in refused(capsys, "from-torch", pixnerd, tmp_path / "there")
    assert not any((tmp_path / "there").iterdir())


def test_inspect_prints_tensors_sizes_and_the_model(pixnerd, tmp_path, capsys):
    run("inspect", pixnerd)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("blocks.*.attn.qkv.weight "))
    assert row.split(maxsplit=1)[1] == "float32   [72, 24] x 3"
    size = sum(value.size for value in load_file(pixnerd).values())
    assert f"weights raw (the tensors of the file): {size:,} parameters" in lines
    assert "  family: pixnerd" in lines and "  assumed: feature_layer=1" in lines
    assert (
        "  model: PixNerd of width 24, heads 2, depth 3, patch 4, num_classes 5"
        in lines
    )
    run("inspect", pixnerd, "--all")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("blocks.2.attn.qkv.weight ") for line in lines)
    run("from-torch", pixnerd, tmp_path / "ours", "--image-size=16")
    capsys.readouterr()
    run("inspect", tmp_path / "ours")
    lines = capsys.readouterr().out.splitlines()
    assert f"{len(lines) - 3} tensors, {size:,} numbers" in lines[-3]
    config = json.loads(lines[-1].removeprefix("config: "))
    assert Experiment.from_dict(config).model.width == 24
    assert "There is no file" in refused(capsys, "inspect", tmp_path / "absent.pt")


def test_damaged_safetensors_are_refused(pixnerd, tmp_path, capsys):
    whole = pixnerd.read_bytes()
    damage = {
        "cut": whole[:-5],
        "header": (2**40).to_bytes(8, "little") + whole[8:],
        "json": whole[:8] + b"x" + whole[9:],
        "empty": b"",
        "offsets": whole.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1),
    }
    for name, content in damage.items():
        assert content != whole
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        for command in (["from-torch", path, tmp_path / "out"], ["inspect", path]):
            message = refused(capsys, *command)
            assert str(path) in message and "Download it again" in message
    assert nothing_written(tmp_path)


def test_usage_errors_exit_with_two_and_help_with_zero(capsys):
    for arguments, code in ((["from-torch"], 2), (["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == code
    out = capsys.readouterr()
    assert "examples:" in out.out and "--ema" in out.out
