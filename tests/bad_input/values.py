"""Values out of their ranges: fields of configs, arguments of the Python calls."""

from tests.bad_input.row import Row

ROWS: list[Row] = []
