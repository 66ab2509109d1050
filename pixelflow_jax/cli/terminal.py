"""What the commands say, on terminals of every encoding."""

import contextlib
import errno
import io
import sys
from collections.abc import Iterator
from typing import NoReturn

from pixelflow_jax.errors import INTERRUPTED, UserError
from pixelflow_jax.paths import printable

DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
)
LINES = 3  # of a message
ITEMS = 8  # of a list in one
KEPT = "\n\t\u00a0"  # besides what is printable


def accept_every_text() -> None:
    """Let standard output and error write what their encoding lacks as escapes.

    And each line at once: whoever reads the log of a run waits for no full buffer.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def folded(paragraph: str) -> str:
    """A message in three lines at most: what is a longer list goes on in one."""
    first, *rest = paragraph.split("\n")
    if len(rest) < LINES:
        return paragraph
    items = [line.strip().removeprefix("- ") for line in rest]
    head = [item for item in items if item][: ITEMS - 1]
    more = len(items) - len(head) - 1
    middle = f" and {more} more;" if more > 0 else ""
    last = items[-1] if len(items) > len(head) else ""
    return f"{first}\n  {'; '.join(head)};{middle}\n  {last}".rstrip("; \n")


def complain(paragraph: str) -> None:
    """Say on standard error what went wrong, for commands that return their code."""
    print(f"error: {printable(folded(paragraph), KEPT)}", file=sys.stderr)


def give_up(paragraph: str, code: int = 1) -> NoReturn:
    """Say why a command ends, on standard error, and end it."""
    print(f"\n{printable(folded(paragraph), KEPT)}", file=sys.stderr)
    sys.exit(code)


def told(error: BaseException) -> str:
    """What an error says, with the path where the system says no more than a word."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return (
            f"{error.filename} cannot be used ({error.strerror}): check the path, its "
            "permissions and the room on its disk."
        )
    return str(error)


@contextlib.contextmanager
def refusing(folder: object) -> Iterator[None]:
    """Ends a command with one paragraph on errors that a user can mend.

    `folder` is where it writes.
    """
    try:
        yield
    except UserError as error:
        give_up(f"{type(error).__name__}: {error}", error.code)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        give_up(
            f"Writing {error.filename or f'to {folder}'} failed: {error.strerror}. "
            "Mend that and give the same command again: it goes on from the last "
            "checkpoint, or with what is not drawn yet."
        )
    except KeyboardInterrupt:
        give_up("Interrupted.", INTERRUPTED)
