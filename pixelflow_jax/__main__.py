"""The commands: `pixelflow VERB`, or `python -m pixelflow_jax VERB`.

  train       a run, from its newest checkpoint if it has one
  sample      images from a run's newest checkpoint, or from other weights
  evaluate    the loss of a run's newest checkpoint on held-out images
  export      a folder to publish, from a run's newest checkpoint
  config      `config list`: the configs that come with the package, and their variants;
              `config show NAME:VARIANT`: one as JSON, which --config reads as well
  prepare     shards of a data set, a look at it, features of its captions
  convert     official weights to ours and back
  quickstart  the first ten minutes

`pixelflow VERB --help` says more.
"""

import difflib
import json
import sys

MODES = ("train", "sample", "evaluate", "export")


def main(argv: list[str] | None = None) -> int:
    """Carry out one command; returns its exit code."""
    verb, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if verb in ("--version", "-V"):
        from pixelflow_jax import __version__

        print(__version__)
        return 0
    if verb in ("--help", "-h", "help"):
        print(__doc__)
        return 0
    if verb in MODES:
        return _run(verb, rest)
    commands = {
        "config": _config,
        "prepare": _prepare,
        "convert": _convert,
        "quickstart": _quickstart,
    }
    if verb in commands:
        return commands[verb](rest)
    print(_unknown(verb, [*MODES, *commands]) if verb else __doc__, file=sys.stderr)
    return 2


def _unknown(verb: str, known: list[str]) -> str:
    near = difflib.get_close_matches(verb, known, 1)
    meant = f" Did you mean `pixelflow {near[0]}`?" if near else ""
    return (
        f"There is no command {verb!r}.{meant} There are {', '.join(known)}: see "
        "`pixelflow --help`."
    )


def _run(mode: str, arguments: list[str]) -> int:
    from absl import app, flags

    from pixelflow_jax import main as command
    from pixelflow_jax.cli import sample

    if {"--help", "-h", "-help"} & set(arguments):
        print(command.__doc__)
        for module in (command, sample):
            print(flags.FLAGS.module_help(module))
        return 0
    argv = [f"pixelflow {mode}", f"--mode={mode}", *arguments]
    app.run(command.main, argv=argv, flags_parser=command.parse_flags)
    return 0


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
        print(error, file=sys.stderr)
        return 1
    asked = {"--help", "-h"} & set(arguments)
    print(
        "pixelflow config list\n"
        "pixelflow config show NAME:VARIANT [--config.FIELD=VALUE ...]",
        file=sys.stdout if asked else sys.stderr,
    )
    return 0 if asked else 2


def _prepare(arguments: list[str]) -> int:
    from pixelflow_jax.cli.prepare import main

    return main(arguments)


def _convert(arguments: list[str]) -> int:
    from pixelflow_jax.convert.__main__ import main

    return main(arguments)


def _quickstart(arguments: list[str]) -> int:
    from pixelflow_jax.cli.quickstart import main

    main(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
