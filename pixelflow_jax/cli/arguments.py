"""A command line, read: what a verb does not take is refused by name, all at once."""

import difflib
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import flags

from pixelflow_jax import config_overrides
from pixelflow_jax.cli import verbs
from pixelflow_jax.cli.foreign_flags import ours
from pixelflow_jax.cli.terminal import KEPT, give_up
from pixelflow_jax.config_io import is_under
from pixelflow_jax.paths import printable

HELP = ("-h", "--h", "-help", "--help", "--helpshort", "--helpfull", "-?")
# Flags that may be given without anything behind the equals sign.
EMPTY = ("negative_prompt", "prompt")
# How Python and absl say that a text is no value of a flag, and what one would be.
MEANT = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    r"\('Non-boolean argument": "true or false",
}
# Flags whose second value may be a word of its own: --compare A.json B.json.
PAIRED = ("compare",)
LISTED = 3  # lines of a message


class CommandLine(NamedTuple):
    """What was asked for: a verb, changes of config fields, and words besides flags."""

    verb: str
    changes: list[str]
    words: list[str]


def read(argv: list[str], verb: str) -> CommandLine:
    """Parse the arguments of a verb, without the program's name, into absl's flags.

    Shows its help and exits with 0 where that is asked for; exits with 1 and a
    paragraph on errors.
    """
    changes, others = config_overrides.split(argv)
    if asks_for_help(others):
        print(verbs.help_of(verb))
        sys.exit(0)
    problems = [*_flag_problems(others, verb), *_field_problems(changes, verb)]
    if problems:
        refuse(problems, verb)
    try:
        _, *words = flags.FLAGS([verb, f"--mode={verb}", *others])
    except (flags.Error, ValueError) as error:  # absl's own of "--noyes=3"
        refuse([_of_value(error)], verb)
    words = _unpaired(words, verb)
    if words and not verbs.VERBS[verb].words:
        listed = " ".join(words)
        refuse([f"Unknown arguments: {listed}. Flags begin with --."], verb)
    if problems := list(_empty(verb)):
        refuse(problems, verb)
    return CommandLine(verb, changes, words)


def _unpaired(words: list[str], verb: str) -> list[str]:
    """The words that are no flag's second value; that goes to its flag."""
    for name in set(PAIRED).intersection(verbs.VERBS[verb].flags()):
        flag = flags.FLAGS[name]
        given = list(flag.value or ())
        if flag.present and len(given) == len(words) == 1:
            flag.value, words = [*given, *words], []
    return words


def refuse(problems: list[str], verb: str) -> None:
    """End the command with what is wrong, and where to read on."""
    shown = problems if len(problems) <= LISTED else [" ".join(problems)]
    shown[-1] += f" See `pixelflow {verb} --help`."
    give_up("\n  ".join(shown))


def asks_for_help(arguments: list[str]) -> bool:
    """Whether --help is among arguments, in one of its forms."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return not set(HELP).isdisjoint(arguments[:end])


def _names(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Each flag among arguments as it was written, and its name."""
    waiting = False
    for argument in arguments:
        if argument == "--":
            return
        is_flag = argument.startswith("-") and len(argument.lstrip("-")) > 0
        if waiting or not is_flag:  # the value of the flag before, or a word
            waiting = False
            continue
        written, equals, _ = argument.partition("=")
        name = written.lstrip("-")
        known = _flag(name)
        waiting = known is not None and not known.boolean and not equals
        yield written, name


def _flag(name: str) -> flags.Flag | None:
    """The flag called `name`, or switched off by it."""
    if name in flags.FLAGS:
        return flags.FLAGS[name]
    off = name.removeprefix("no")
    switch = flags.FLAGS[off] if off != name and off in flags.FLAGS else None
    return switch if switch is not None and switch.boolean else None


def _flag_problems(arguments: list[str], verb: str) -> Iterator[str]:
    """What a verb does not take."""
    mine = verbs.VERBS[verb].flags()
    for written, name in _names(arguments):
        flag = _flag(name)
        if flag is None:
            yield _unknown(written, name, verb)
        elif flag.name not in mine and (owners := verbs.owners(flag.name)):
            listed = " and ".join(f"`pixelflow {owner}`" for owner in owners)
            instead = ours(name, verb)
            meant = f" Here it is {instead}." if instead else ""
            yield f"{written} belongs to {listed}, not to `pixelflow {verb}`.{meant}"


def _unknown(written: str, name: str, verb: str) -> str:
    """That there is no such flag, and which one is meant."""
    instead = ours(name, verb)
    if instead:
        return f"There is no flag {written}: it is called {instead} here."
    plain = name.replace("-", "_")
    near = difflib.get_close_matches(plain, verbs.VERBS[verb].flags(), 1, 0.6)
    if near:
        return f"There is no flag {written}. Did you mean --{near[0]}?"
    elsewhere = [n for v in verbs.VERBS.values() for n in v.flags()]
    if near := difflib.get_close_matches(plain, elsewhere, 1, 0.8):
        owner = verbs.owners(near[0])[0]
        return f"There is no flag {written}; `pixelflow {owner}` has --{near[0]}."
    return f"There is no flag {written} of `pixelflow {verb}`."


def _field_problems(changes: list[str], verb: str) -> Iterator[str]:
    """Fields of the config that a verb cannot set."""
    fields = verbs.VERBS[verb].fields
    if fields == verbs.ALL:
        return
    for change in changes:
        match = config_overrides.FLAG.fullmatch(change)
        path = match[1] if match else change
        if not is_under(path, fields):
            yield (
                f"{change.split('=')[0]} is settled by the config that the weights "
                f"were trained with. `pixelflow {verb}` may set {', '.join(fields)}."
            )


def _of_value(error: Exception) -> str:
    """absl's complaint about a value, as a sentence."""
    text = printable(str(error), KEPT).removeprefix("flag ").rstrip(".")
    choices = re.search(r"value should be one of <(.*)>", text)
    if choices:
        listed = choices[1].replace("|", ", ")
        text = f"{text[: choices.start()]}choose one of {listed}"
    for theirs, meant in MEANT.items():
        text = re.sub(f": {theirs}.*", f": must be {meant}", text)
    return f"{text}."


def _empty(verb: str) -> Iterator[str]:
    """Flags of a verb that were given without a value."""
    for name in verbs.VERBS[verb].flags():
        flag = flags.FLAGS[name]
        if flag.present and flag.value in ("", []) and name not in EMPTY:
            yield f"--{name}= is empty: give it a value, or leave the flag away."
