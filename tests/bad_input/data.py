"""Data that cannot be used: images, captions, folders, tars, shards."""

from tests.bad_input.row import Row

ROWS: list[Row] = []
