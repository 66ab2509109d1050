"""The trace of some steps: it is there, and holds those steps."""

import gzip
import json

import jax
import pytest

from pixelflow_jax.errors import ConfigError
from pixelflow_jax.training.profile import NAME, Profiler, Window


def run(folder, window, steps: int) -> list[int]:
    """So many steps under a profiler; those after which a trace was written."""
    program = jax.jit(lambda a: a @ a)
    a, written = jax.numpy.ones((8, 8)), []
    with Profiler(folder, window) as profiler:
        for number in range(1, steps + 1):
            with profiler.step(number):
                result = program(a)
            if profiler.ended(number, result):
                written.append(number)
    return written


def steps_of(folder) -> list[int]:
    """The numbers of the steps that the one trace in a folder holds."""
    (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    assert list(path.parent.glob("*.xplane.pb"))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    mine = [event["args"] for event in events if event.get("name") == NAME]
    return sorted(int(args["step_num"]) for args in mine)


def test_the_trace_holds_the_steps_of_its_window(tmp_path):
    assert run(tmp_path, Window(3, 5), 7) == [5]
    assert steps_of(tmp_path) == [3, 4, 5]


def test_a_run_that_ends_within_the_window_leaves_what_there_is(tmp_path):
    assert run(tmp_path, Window(2, 9), 3) == []
    assert steps_of(tmp_path) == [2, 3]


@pytest.mark.parametrize("window", [None, Window(5, 6)])
def test_nothing_is_written_outside_a_window(tmp_path, window):
    assert run(tmp_path / "profile", window, 2) == []
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    "text", ["", "5", "5:3", "0:3", "a:b", "1:2:3", "-1:2", "1.0:2"]
)
def test_what_is_no_window_is_refused(text):
    with pytest.raises(ConfigError, match="--profile"):
        Window.parse(text)
    assert Window.parse("20:25") == Window(20, 25)
