"""The commands: `pixelflow VERB`, or `python -m pixelflow_jax VERB`."""

import difflib
import json
import os
import sys

from pixelflow_jax.cli import terminal, verbs
from pixelflow_jax.paths import printable

NOBODY_READS = 141  # as a shell calls it: 128 and the number of SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Carry out one command; returns its exit code.

    Where nobody reads on, as behind `| head`, it ends and says nothing.
    """
    try:
        try:
            return _carry_out(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS


def _carry_out(argv: list[str] | None) -> int:
    terminal.accept_every_text()
    verb, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if verb in ("--version", "-V", "version"):
        from pixelflow_jax import __version__

        print(__version__)
        return 0
    if verb == "help" and rest:
        verb, rest = rest[0], ["--help"]
    if verb in ("--help", "-h", "help"):
        print(verbs.overview())
        return 0
    if verb == "evaluate" and rest[:1] == ["reference"]:
        return _reference(rest[1:])
    if verb in verbs.VERBS and not (verb == "config" and _is_listing(rest)):
        return _run(verb, rest)
    commands = {
        "config": _config,
        "prepare": _prepare,
        "convert": _convert,
        "quickstart": _quickstart,
        "reproduce": _reproduce,
        "verify": _verify,
        "demo": _demo,
    }
    if verb in commands:
        return commands[verb](rest)
    known = [*verbs.VERBS, *commands]
    print(_unknown(verb, known) if verb else verbs.overview(), file=sys.stderr)
    return 2


def _unknown(verb: str, known: list[str]) -> str:
    verb = printable(verb)
    if verb.startswith("-"):
        return f"A verb comes first: `pixelflow VERB {verb}`, of {', '.join(known)}."
    near = difflib.get_close_matches(verb, known, 1)
    meant = f" Did you mean `pixelflow {near[0]}`?" if near else ""
    return (
        f"There is no command {verb!r}.{meant} There are {', '.join(known)}: see "
        "`pixelflow --help`."
    )


def _run(verb: str, arguments: list[str]) -> int:
    from absl import app

    from pixelflow_jax import main as command

    argv = [f"pixelflow {verb}", f"--mode={verb}", *arguments]
    app.run(command.main, argv=argv, flags_parser=command.parse_flags)
    return 0


def _is_listing(arguments: list[str]) -> bool:
    """Whether configs are to be listed or shown, and not planned."""
    return not (arguments and arguments[0].startswith("-"))


def _config(arguments: list[str]) -> int:
    from pixelflow_jax import config_files
    from pixelflow_jax.errors import UserError

    try:
        if arguments == ["list"]:
            for name in config_files.names():
                print(*config_files.described(name), sep="\n")
            return 0
        if len(arguments) >= 2 and arguments[0] == "show":
            config = config_files.load_config(arguments[1], arguments[2:])
            print(json.dumps(config.to_dict(), indent=1))
            return 0
    except UserError as error:
        terminal.give_up(str(error))
    given = " ".join(arguments) or "nothing"
    terminal.give_up(
        "Give `pixelflow config list` or `pixelflow config show NAME:VARIANT`, not "
        f"{given}. See `pixelflow config --help`.",
        2,
    )


def _prepare(arguments: list[str]) -> int:
    from pixelflow_jax.cli.prepare import main

    return main(arguments)


def _convert(arguments: list[str]) -> int:
    from pixelflow_jax.convert.__main__ import main

    return main(arguments)


def _reference(arguments: list[str]) -> int:
    from pixelflow_jax.cli.reference import main

    return main(arguments)


def _reproduce(arguments: list[str]) -> int:
    from pixelflow_jax.cli.reproduce import main

    return main(arguments)


def _verify(arguments: list[str]) -> int:
    from pixelflow_jax.cli.verify import main

    return main(arguments)


def _demo(arguments: list[str]) -> int:
    from pixelflow_jax.demo.__main__ import main

    return main(arguments)


def _quickstart(arguments: list[str]) -> int:
    from pixelflow_jax.cli.quickstart import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(main())
