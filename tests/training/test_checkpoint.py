"""Checkpoints: what is kept, whose they are, and what happens when they are damaged."""

import contextlib
import dataclasses
import json
import logging
import shutil

import jax
import numpy as np
import pytest

from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.errors import CheckpointError
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.models.pixnerd import LinearDecoder
from pixelflow_jax.nn.kernels.choice import Kernels
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.training import integrity
from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.loop import train
from pixelflow_jax.training.optimizer import AdamW
from tests.marks import long
from tests.training import tiny


@pytest.fixture(scope="module")
def images(tiny_run):
    return tiny_run.images


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    """A run of six steps, saved after three and six, with its last state."""
    workdir = tiny_run.copy(tmp_path_factory.mktemp("run"))
    return workdir, tiny.run(tiny_run.images), tiny_run.state


def resume(workdir, images, allow=(), **changes):
    """Open the newest checkpoint with a changed config, as a restart would."""
    run = tiny.run(images, checkpoint=Checkpointing(every=3, allow=allow), **changes)
    return read(workdir, run, run.abstract_state())


def read(workdir, run, abstract):
    """State and place in the data of the newest checkpoint."""
    checkpointer = Checkpointer(workdir / "checkpoints", run.checkpointing)
    with contextlib.closing(checkpointer):
        return checkpointer.restore(checkpointer.latest(), abstract, run.config)


def test_it_holds_the_state_the_place_in_the_data_and_the_config(finished, images):
    workdir, run, last = finished
    state, position = resume(workdir, images)
    tiny.assert_identical(state, last)
    assert position["next_batch"] == 6 and position["fingerprint"]["seed"] == 3
    with contextlib.closing(Checkpointer(workdir / "checkpoints", None)) as reader:
        assert reader.config(6) == run.config


def test_no_frozen_weights_and_nothing_random_are_in_it(finished):
    _, _, state = finished
    leaves = jax.tree.leaves(state)
    assert all(leaf.dtype in (np.float32, np.int32) for leaf in leaves)
    assert state.carry == {} and set(state.params) == {"denoiser"}


def test_the_weights_alone_can_be_read(finished):
    workdir, run, last = finished
    shapes = run.abstract_state().params["denoiser"]
    with contextlib.closing(Checkpointer(workdir / "checkpoints", None)) as reader:
        raw, slow = (reader.restore_weights(6, shapes, ema) for ema in ("raw", "0.9"))
    tiny.assert_identical(raw, last.params["denoiser"])
    tiny.assert_identical(slow, last.ema["0.9"])


def test_it_is_restored_onto_another_mesh(finished, images):
    """Saved on one device, restored split over eight: the same bits."""
    workdir, _, last = finished
    run = tiny.run(images, devices=8, mesh=MeshShape(data=2, fsdp=4))
    with contextlib.closing(Checkpointer(workdir / "checkpoints", None)) as reader:
        state, _ = reader.restore(6, run.abstract_state(), run.config)
    tiny.assert_identical(state, last)
    kernel = state.opt_state[1][0].mu["denoiser"]["late"]["blocks"]["mlp"]["up"]
    assert {s.data.shape for s in kernel["kernel"].addressable_shards} == {(1, 8, 85)}


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (Checkpointing(every=2, keep=1), [7]),
        (Checkpointing(every=2, keep=2), [6, 7]),
        (Checkpointing(every=2, keep=1, keep_period=4), [4, 7]),
        (Checkpointing(every=100), [7]),
    ],
    ids=str,
)
def test_what_is_kept(finished, tmp_path, policy, kept):
    """Every `every` steps and at the end; the last few stay, and some for good."""
    _, run, state = finished
    checkpointer = Checkpointer(tmp_path, policy)
    for step in range(1, 8):
        if step % policy.every == 0 or step == 7:
            checkpointer.save(step, state, {"next_batch": step}, run.config)
    checkpointer.save(7, state, {}, run.config)  # a second time changes nothing
    checkpointer.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == kept


def test_a_state_larger_than_the_room_on_the_disk_is_not_begun(
    finished, tmp_path, monkeypatch
):
    _, run, state = finished
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    room = shutil.disk_usage(tmp_path)._replace(free=size - 1)
    checkpointer = Checkpointer(tmp_path, Checkpointing())
    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
        patch.setattr(shutil, "disk_usage", lambda path: room)
        checkpointer.save(1, state, {}, run.config)
    assert "the disk is full. Earlier checkpoints" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    checkpointer.save(2, state, {}, run.config)
    checkpointer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"optimizer": AdamW(lr=0.5)}, ["optimizer.lr: 0.01 -> 0.5"]),
        ({"prediction": PredictClean()}, ["prediction: 'PredictVelocity' ->"]),
        ({"seed": 4, "batch_size": 16}, ["seed: 3 -> 4", "batch_size: 8 -> 16"]),
    ],
    ids=lambda value: next(iter(value), None),
)
def test_another_config_is_refused_and_every_field_named(
    finished, images, changes, lines
):
    with pytest.raises(CheckpointError) as caught:
        resume(finished[0], images, **changes)
    message = str(caught.value)
    for line in lines:
        assert line in message
    assert len(message.splitlines()) <= 3
    name = lines[0].split(":")[0]
    assert f"--config.checkpoint.allow=\"('{name}'," in message and "6 was" in message


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": tiny.model(width=48)}, "model.width: 32 -> 48"),
        (
            {"model": tiny.model(decoder=LinearDecoder())},
            "model.decoder: 'NeuralField' -> 'LinearDecoder'",
        ),
        ({"ema": (0.9,)}, "ema: [0.9, 0.5] -> [0.9]"),
    ],
    ids=["width", "decoder", "ema"],
)
def test_a_change_that_no_checkpoint_allows_is_told_another_way(
    finished, images, changes, line
):
    with pytest.raises(CheckpointError) as caught:
        resume(finished[0], images, **changes)
    message = str(caught.value)
    assert line in message and f"--config.init_from={finished[0]}" in message
    assert "checkpoint.allow" not in message and len(message.splitlines()) <= 3


def test_the_data_may_lie_elsewhere(finished, images):
    """Whether they are the same is for the loader to say (tests/data)."""
    copy = finished[0] / "copy"
    shutil.copytree(images, copy)
    state, _ = resume(finished[0], copy)
    assert int(state.step) == 6


def test_what_alters_no_step_may_change(finished, images):
    base = tiny.experiment(images)
    source = ImageFolder(path=str(images), holdout=0.25)
    state, _ = resume(
        finished[0],
        images,
        name="other",
        steps=12,
        log=Logging(every=7),
        data=dataclasses.replace(base.data, source=source, workers=1, prefetch=4),
        model=tiny.model(stack=StackConfig(remat="full", unroll=2)),
        kernels=Kernels(blocks="xla", attention="xla"),
    )
    assert int(state.step) == 6
    run = finished[1]
    mesh = run.config["mesh"] | {"fsdp": 8}
    config = run.config | {"accumulate": 2, "mesh": mesh}
    changed = dataclasses.replace(run, config=config)
    assert int(read(finished[0], changed, run.abstract_state())[0].step) == 6


def test_a_decaying_schedule_depends_on_the_last_step(images, tmp_path):
    fields = {"steps": 2, "optimizer": AdamW(lr=1e-3, schedule="cosine")}
    train(tiny.run(images, **fields), tmp_path)
    with pytest.raises(CheckpointError, match="steps: 2 -> 4"):
        resume(tmp_path, images, **fields | {"steps": 4})


def test_an_allowed_change_takes_effect(finished, images, tmp_path):
    workdir, _, last = finished
    shutil.copytree(workdir, tmp_path / "run")
    fields = {
        "steps": 7,
        "optimizer": AdamW(lr=1e-30, warmup=2, clip=0.1, weight_decay=0.01),
        "checkpoint": Checkpointing(allow=("optimizer.lr",)),
    }
    state = train(tiny.run(images, **fields), tmp_path / "run")
    assert int(state.step) == 7
    tiny.assert_identical(state.params, last.params)  # the step was too small to see


def test_a_field_that_one_of_the_two_lacks_is_named(finished, images):
    workdir, run, _ = finished
    reader = Checkpointer(workdir / "checkpoints", None)
    with contextlib.closing(reader):
        newer = run.config | {"model": run.config["model"] | {"dropout": 0.1}}
        with pytest.raises(CheckpointError, match=r"model\.dropout: absent -> 0\.1"):
            reader.restore(6, run.abstract_state(), newer)
        older = {k: v for k, v in run.config["model"].items() if k != "width"}
        with pytest.raises(CheckpointError, match=r"model\.width: 32 -> absent"):
            reader.restore(6, run.abstract_state(), run.config | {"model": older})


def test_an_allowed_change_that_does_not_fit_the_arrays_says_so(finished, images):
    with pytest.raises(CheckpointError) as caught:
        resume(finished[0], images, allow=("model.width",), model=tiny.model(width=48))
    assert "a field in checkpoint.allow changes the model's arrays" in str(caught.value)


def kinds(step) -> dict[str, str]:
    """One file of each kind: those that hold the arrays have long random names."""
    names = sorted(str(p.relative_to(step)) for p in step.rglob("*") if p.is_file())
    return {"/".join(p for p in n.split("/") if len(p) < 32): n for n in names}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("harm", ["cut", long("deleted")])
def test_without_digests_a_damaged_one_is_read_right_or_not_at_all(
    finished, tmp_path, harm
):
    """Never garbage: a refusal names the folder, and what deleting it leads to."""
    workdir, run, last = finished
    abstract, refused = run.abstract_state(), []
    found = kinds(workdir / "checkpoints" / "6")
    found.pop(integrity.NAME)
    for kind, name in found.items():
        copy = tmp_path / kind.replace("/", "_")
        shutil.copytree(workdir, copy)
        without_digests(copy / "checkpoints" / "6")
        file = copy / "checkpoints" / "6" / name
        content = file.read_bytes()
        file.unlink()
        if harm == "cut":
            file.write_bytes(content[: len(content) // 2])
        try:
            state, _ = read(copy, run, abstract)
        except CheckpointError as error:
            refused.append(kind)
            assert f"{copy}/checkpoints/6 cannot be read" in str(error)
            assert "delete that folder to go on from step 3" in str(error)
            assert "\n" not in str(error)
        else:
            assert int(state.step) in (3, 6), kind
            if int(state.step) == 6:
                tiny.assert_identical(state, last)
    assert {"state/d", "state/manifest.ocdbt", "config/metadata"} <= set(refused)


def without_digests(step) -> None:
    """As an earlier version has written it."""
    (step / integrity.NAME).unlink()
    metadata = step / integrity.METADATA
    facts = json.loads(metadata.read_text()) | {"custom_metadata": {}}
    metadata.write_text(json.dumps(facts))


def test_after_deleting_the_damaged_one_the_run_goes_on(finished, images, tmp_path):
    workdir, run, last = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    state = train(tiny.run(images), tmp_path / "run")
    tiny.assert_identical(state, last)
    assert tiny.history(tmp_path / "run") == tiny.history(workdir)


def test_the_only_checkpoint_damaged_means_beginning_anew(finished, images, tmp_path):
    workdir, _, _ = finished
    step = tmp_path / "checkpoints" / "6"
    shutil.copytree(workdir / "checkpoints" / "6", step)
    shutil.rmtree(step / "state")
    with pytest.raises(CheckpointError, match="delete that folder to begin anew"):
        resume(tmp_path, images)


def test_half_written_folders_are_passed_over(finished, images, tmp_path):
    workdir, _, last = finished
    shutil.copytree(workdir, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(folder / "6", folder / "9.orbax-checkpoint-tmp-0")
    shutil.rmtree(folder / "9.orbax-checkpoint-tmp-0" / "config")
    state, _ = resume(tmp_path / "run", images)
    tiny.assert_identical(state, last)


def test_a_reader_hears_nothing_of_the_library(tmp_path, caplog):
    """As from a script or a notebook, in which no command has hushed it."""
    (tmp_path / "checkpoints").mkdir()
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.WARNING, "absl"):
        Checkpointer(tmp_path / "checkpoints", None)
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
        logging.getLogger("absl").warning("others are heard as before")
    assert caplog.messages[-1:] == ["others are heard as before"]


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Cannot write checkpoints to .*file"):
        Checkpointer(tmp_path / "file" / "checkpoints", Checkpointing())


@pytest.mark.parametrize(
    "fields", [{"every": 0}, {"keep": 1}, {"keep_period": -1}], ids=str
)
def test_fields_that_make_no_sense_are_named(fields):
    (problem,) = Checkpointing(**fields).problems()
    assert next(iter(fields)) in problem
    assert Checkpointing().problems() == []
