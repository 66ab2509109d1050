"""Bad inputs, one a row: each is refused in a few lines that name the remedy.

The rows lie in tests/bad_input/, a file an area.
"""

import pytest

from tests.bad_input import cli, data, evaluation, values
from tests.bad_input.row import Row, check

ROWS = [*cli.ROWS, *values.ROWS, *data.ROWS, *evaluation.ROWS]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_a_bad_input_is_refused_in_a_few_lines(row: Row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What is accepted by mistake would train to its end.
    monkeypatch.setattr("pixelflow_jax.cli.train.train", began)
    check(row, tmp_path)


def began(*_: object) -> None:
    pytest.fail("accepted: it began to train")


def test_every_row_has_its_own_name():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
