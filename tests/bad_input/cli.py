"""Command lines that cannot be meant."""

from tests.bad_input.row import Row, command

ROWS: list[Row] = [
    Row("no such verb", lambda _: command("smaple"), ("There is no command 'smaple'",)),
]
