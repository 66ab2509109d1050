"""metrics.jsonl, TensorBoard events, previews and the progress line, read back."""

import json
import re
import struct
import types

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from pixelflow_jax.training import log as run_log
from pixelflow_jax.training import throughput
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging, RunLog
from pixelflow_jax.training.loop import train
from pixelflow_jax.training.throughput import Workload
from tests.training import tiny

# What a CPU tells of: it has neither a published peak nor statistics of its memory.
SPEEDS = {"images_per_second", "images_wanted", "mfu_measured"}
SPEEDS |= {"data_wait", "device_wait"}
SPEEDS |= {"host_memory"}
WORKLOAD = Workload(batch_size=8, forward_flops=1e6, dtype="float32")


def open_log(workdir, start=0, main=True, **fields):
    given = {"steps": 100, "workload": WORKLOAD, "config": {"a": 1}}
    return RunLog(workdir, start=start, main=main, **given | fields)


def events(workdir) -> list[Event]:
    """All events of a run, from the TFRecord format: length, its check, data, check."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def values(workdir) -> dict:
    """What TensorBoard shows: {tag: [(step, value)]}."""
    found = {}
    for event in events(workdir):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value))
    return found


# What capitals stand for in the names of metrics on the page.
PLACES = {"AVERAGE": r"[\w.:-]+", "LAYER": r"\d\d", "STACK": r"[\w/]+", "PART": r"\w+"}


def documented() -> list[str]:
    """A pattern for the name of each metric that docs/observe.md has."""
    page = (tiny.ROOT / "docs" / "observe.md").read_text("utf-8")
    table = page.partition("## Metrics")[2].partition("\n- **")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    patterns = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    for place, pattern in PLACES.items():
        patterns = [p.replace(place, pattern) for p in patterns]
    return patterns


def test_a_report_keeps_every_step_and_shows_the_mean(tmp_path):
    history = [(k, {"loss": float(k), "lr": 1e-4}) for k in (1, 2, 3)]
    with open_log(tmp_path) as log:
        log.metrics(3, history)
    lines = tiny.history(tmp_path)
    assert lines == [{"step": k, "loss": float(k), "lr": 1e-4} for k in (1, 2, 3)]
    curves = values(tmp_path)
    assert set(curves) == {"loss", "lr"} | SPEEDS
    ((step, loss),) = curves["loss"]
    assert (step, loss.simple_value) == (3, 2.0)


def test_floats_survive_to_the_last_bit(tmp_path):
    loss = float(np.float32(0.1) / np.float32(3))
    with open_log(tmp_path) as log:
        log.metrics(1, [(1, {"loss": loss})])
    assert tiny.history(tmp_path)[0]["loss"] == loss


def rates(monkeypatch, peak: float | None = None) -> None:
    """One device of 1e9 operations a second, measured, and of a peak."""
    monkeypatch.setattr(throughput, "whole_rate", lambda dtype: 1e9)
    monkeypatch.setattr(throughput, "peak_rate", lambda dtype: peak)


def test_speed_leaves_out_what_it_was_told_to(tmp_path, monkeypatch):
    """Time and steps: a step whose time is left out is no step of the rate."""
    clock = iter([100.0, 110.0, 110.5, 111.0, 112.0, 112.0])
    fake = types.SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(run_log, "time", fake)
    rates(monkeypatch)
    with open_log(tmp_path) as log:
        log.pause(1)  # the first step was compiled until 110.0
        with log.waiting("data_wait"):  # from 110.5 to 111.0
            pass
        log.metrics(5, [(5, {"loss": 1.0})])  # at 112.0
    found = {
        name: points[0][1].simple_value for name, points in values(tmp_path).items()
    }
    assert found["images_per_second"] == 16  # 8 * 4 images in 2 s
    assert found["mfu_measured"] == pytest.approx(3 * 16 * 1e6 / 1e9)
    assert found["images_wanted"] == pytest.approx(16 / 0.75)
    assert found["data_wait"] == 0.25 and found["device_wait"] == 0


def test_no_speed_is_told_where_no_step_was_timed(tmp_path, capsys):
    """As after the first step of a run that reports every step."""
    with open_log(tmp_path) as log:
        log.pause(1)
        log.metrics(1, [(1, {"loss": 1.0})])
        assert "images/s" not in capsys.readouterr().err
        log.metrics(2, [(2, {"loss": 1.0})])
    assert [step for step, _ in values(tmp_path)["images_per_second"]] == [2]


def test_utilisation_is_of_the_peak_where_one_is_published(monkeypatch):
    assert throughput.peak_rate("bfloat16", "NVIDIA H200") == 989e12
    assert throughput.peak_rate("bfloat16", "NVIDIA L40S") == 362e12
    assert throughput.peak_rate("bfloat16", "TPU v5 lite") == 197e12
    assert throughput.peak_rate("bfloat16", "TPU v5") == 459e12
    assert throughput.peak_rate("float32", "NVIDIA H200") is None
    assert throughput.peak_rate("bfloat16", "cpu") is None
    rates(monkeypatch, peak=2e9)
    devices = jax.device_count()
    shares = throughput.utilisation(10.0, 1e7, "bfloat16")
    assert shares == {"mfu": 0.3 / 2 / devices, "mfu_measured": pytest.approx(0.3)}


def test_a_metric_of_some_steps_is_averaged_over_those(tmp_path):
    history = [(1, {"loss": 1.0}), (2, {"loss": 3.0, "param_norm": 5.0})]
    with open_log(tmp_path) as log:
        log.metrics(2, history)
    curves = values(tmp_path)
    assert curves["loss"][0][1].simple_value == 2
    assert curves["param_norm"][0][1].simple_value == 5


def test_the_page_names_the_events_that_a_run_writes():
    sources = (tiny.ROOT / "pixelflow_jax" / "training").glob("*.py")
    text = "\n".join(path.read_text("utf-8") for path in sources)
    written = re.findall(r'log\.event\([^"]*?"(\w+)"', text)
    page = (tiny.ROOT / "docs" / "observe.md").read_text("utf-8")
    table = page.partition("## Events")[2].partition("## Traces")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(written) > {"resume"}


def test_events_are_kept_over_all_sittings(tmp_path):
    for start in (0, 4):
        with open_log(tmp_path, start=start) as log:
            log.event(start, "resume", devices=8)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [(e["step"], e["event"], e["devices"]) for e in found] == [
        (0, "resume", 8),
        (4, "resume", 8),
    ]
    assert all(e["time"].endswith("+00:00") for e in found)
    assert 4 in [step for step, _ in values(tmp_path)["events/text_summary"]]


def test_the_progress_line(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.metrics(50, [(50, {"loss": 0.25})])
    line = capsys.readouterr().err.split("\r")[-1]
    assert "50/100" in line and "loss 0.2500" in line and "images/s" in line
    assert "of the matmul rate" in line and "%" in line
    assert "<" in line.split("[")[1]  # elapsed < time left


def test_resuming_drops_the_steps_that_will_run_again(tmp_path):
    """Also the line that a kill cut short; the rest stays byte for byte."""
    kept = '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'
    cut = '{"step": 3, "loss": 1}\n{"step": 4, "lo'
    (tmp_path / "metrics.jsonl").write_text(kept + cut)
    with open_log(tmp_path, start=2) as log:
        log.metrics(3, [(3, {"loss": 2.0})])
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == kept + '{"step": 3, "loss": 2.0}\n'
    # TensorBoard forgets what earlier files say of step 3 and later.
    assert [e.step for e in events(tmp_path) if e.HasField("session_log")] == [3]


@pytest.mark.parametrize(
    "odd",
    [b"\xff\xfe", b"[1]", b'{"loss": 1}', b'{"step": "2"}', b"[" * 99_999, b"\0" * 64],
    ids=["bytes", "list", "no step", "words", "deep", "zeros"],
)
def test_an_odd_line_is_kept_aside_and_does_not_stop_the_run(tmp_path, capsys, odd):
    lines = [b'{"step": 1, "loss": 0.5}', b'{"step": 2, "loss": 0.25}']
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([lines[0], odd, lines[1], b'{"step": 3']))
    for _ in range(2):
        with open_log(tmp_path, start=2):
            pass
        assert path.read_bytes() == b"\n".join([*lines, b""])
        assert (tmp_path / "metrics.odd").read_bytes() == odd + b"\n"
    said = [x for x in capsys.readouterr().out.splitlines() if "no metrics" in x]
    assert len(said) == 1 and "had 1 lines" in said[0]


def test_a_fresh_start_drops_everything(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    with open_log(tmp_path):
        pass
    assert tiny.history(tmp_path) == []


def test_two_sittings_write_two_event_files(tmp_path):
    for start in (0, 0):
        with open_log(tmp_path, start=start) as log:
            log.metrics(1, [(1, {"loss": 1.0})])
        log_files = list((tmp_path / "tensorboard").iterdir())
        log_files[0].rename(log_files[0].with_name(f"{len(log_files)}.tfevents"))
    assert len(values(tmp_path)["loss"]) == 2


def test_other_processes_write_nothing(tmp_path, capsys):
    with open_log(tmp_path / "run", main=False) as log:
        log.metrics(1, [(1, {"loss": 1.0})])
        log.picture(1, np.zeros((4, 4, 3), np.uint8))
        log.text("a", "b")
        log.say("hello")
        log.pause(1)
        log.event(1, "resume")
        with log.waiting("data_wait"):
            pass
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_a_run_leaves_previews_parameters_config_and_curves(tmp_path, capsys):
    images = tiny.write_images(tmp_path / "images")
    logging = Logging(every=2, preview_every=2, preview_count=10)
    policy = Checkpointing(every=100)
    run = tiny.run(images, devices=8, steps=4, log=logging, checkpoint=policy)
    train(run, tmp_path / "run")
    workdir = tmp_path / "run"
    assert json.loads((workdir / "config.json").read_text()) == run.config
    names = [path.name for path in sorted((workdir / "previews").iterdir())]
    assert names == ["00000002.png", "00000004.png"]
    with Image.open(workdir / "previews" / names[0]) as picture:
        assert picture.size == (8 * (tiny.SIZE + 2) + 2, 2 * (tiny.SIZE + 2) + 2)
        first = np.asarray(picture)
    second = np.asarray(Image.open(workdir / "previews" / names[1]))
    assert first.shape == second.shape and (first != second).any()
    curves = values(workdir)
    wanted = {"loss", "FlowMatching", "grad_norm", "lr"} | SPEEDS
    wanted |= {"samples", "parameters/text_summary", "param_norm", "update_ratio"}
    wanted |= {"ema_distance/0.9", "ema_distance/0.5"}
    layers = {name for name in curves if name.startswith("update_ratio/")}
    assert wanted | layers == set(curves)
    assert {"update_ratio/early/blocks/00", "update_ratio/decoder"} <= layers
    metrics = [n for n in curves if n != "samples" and "text_summary" not in n]
    for name in metrics:
        assert any(re.fullmatch(p, name) for p in documented()), f"{name}: which unit?"
    # Those of other runs: perceptual terms, a GPU, metrics while training.
    absent = {"REPA", "adaptive_weight", "mfu", "device_memory", "online"}
    for pattern in documented():
        there = any(re.fullmatch(pattern, name) for name in metrics)
        assert there != (pattern in absent), pattern
    assert [step for step, _ in curves["loss"]] == [2, 4]
    assert [step for step, _ in curves["samples"]] == [2, 4]
    assert curves["samples"][0][1].image.encoded_image_string[1:4] == b"PNG"
    table = curves["parameters/text_summary"][0][1].tensor.string_val[0].decode()
    assert "late/blocks/mlp/up/kernel" in table and "62,027" in table
    assert table.splitlines()[0].startswith("    ")  # Markdown keeps its columns
    assert "late/blocks/mlp/up/kernel" in capsys.readouterr().out


def test_an_error_on_a_closed_disk_does_not_hide_the_first_one(tmp_path):
    with pytest.raises(KeyError, match="first"), open_log(tmp_path) as log:
        log._file.close()
        log._file = open("/dev/full", "w")
        log._file.write("x")
        raise KeyError("first")
    with pytest.raises(OSError, match="No space left"), open_log(tmp_path) as log:
        log._file.close()
        log._file = open("/dev/full", "w")
        log._file.write("x")


@pytest.mark.parametrize(
    "fields", [{"every": 0}, {"preview_every": -1}, {"preview_count": 0}], ids=str
)
def test_fields_that_make_no_sense_are_named(fields):
    (problem,) = Logging(**fields).problems()
    assert next(iter(fields)) in problem
    assert Logging().problems() == []
