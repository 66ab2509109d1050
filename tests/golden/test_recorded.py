"""Our recorded outputs, which need no files from outside."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden import record


@pytest.mark.parametrize("name", record.RECORDERS)
def test_recorded_outputs_are_reproduced(name):
    file = load_file(record.FILE)
    recorded = {k: v for k, v in file.items() if k.startswith(f"{name}/")}
    lines = record.differences(record.outputs(name), recorded)
    assert not lines, "\n".join(lines)


def test_every_record_has_a_recorder_and_the_file_is_small():
    names = tuple(f"{name}/" for name in record.RECORDERS)
    assert all(key.startswith(names) for key in load_file(record.FILE))
    assert record.FILE.stat().st_size < 300_000


def test_a_difference_is_reported():
    one, two = np.ones(3, np.float32), np.full(3, 1.001, np.float32)
    assert not record.differences({"a": one}, {"a": one})
    assert record.differences({"a": one}, {"a": two}) == ["a: off by 1.00e-03"]
    assert record.differences({"a": one}, {"a": one * np.nan})
    assert record.differences({"a": one}, {"a": one[:2]})
    assert record.differences({"a": one}, {}) == ["not recorded: a"]
    assert record.differences({}, {"a": one}) == ["gone: a"]
