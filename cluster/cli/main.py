"""The `userrl` command line: parses the arguments, checks them, and calls one function.

Heavy imports stand inside the commands, so `--help` and refusals are instant.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from cluster.cli.dashboard_command import add_dashboard_command
from cluster.cli.dialogue_commands import add_dialogue_commands
from cluster.cli.job_commands import add_job_commands
from cluster.cli.overrides import config_of
from cluster.cli.run_commands import add_run_commands
from cluster.cli.watch_commands import add_watch_commands
from cluster.config.recipe import BadInput, known_keys, nearest
from cluster.config.run_config import RunConfig
from cluster.console.output import EXIT_FAILED, fail, put, refuse, with_output
from cluster.ray_cluster.encrypted_env import decrypt_environment
from cluster.run_folder.paths import RunFolder

EXIT_OK, EXIT_INTERRUPTED = 0, 130
_OVERRIDE = re.compile(r"--([\w-]+(?:\.[\w-]+)+)(?:=(.*))?|([\w-]+(?:\.[\w-]+)+)=(.*)", re.DOTALL)


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: object = None) -> None:
        """A reader of stdout that has gone ends this as any command, whichever Python's argparse it is."""
        put(self.format_help(), end="")

    def error(self, message: str) -> NoReturn:
        message = message.replace("\n", " ") + f": see {self.prog} --help"
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if unknown:
            word = unknown[1].lstrip("-").partition("=")[0]
            likely = nearest(word, list(known_keys(RunConfig)))
            message = f"{unknown[1]}: unknown option: did you mean --{likely}?"
        raise BadInput(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code; a refusal is one line on stderr and 2."""
    given = sys.argv[1:] if argv is None else argv
    return with_output(given, partial(_run, given))


def _run(given: Sequence[str]) -> int:
    log = Path("runs") / "error.log"
    try:
        decrypt_environment()
        words, overrides = split_overrides(given)
        arguments = _parser().parse_args(words)
        config = config_of(arguments, overrides)
        arguments.overrides = overrides
        log = RunFolder.of(config).error_log
        succeeded = arguments.command(arguments, config)
    except BadInput as error:
        return refuse(str(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # The outermost border: a person gets one line, the file the rest.
        return fail(error, log=log)
    return EXIT_FAILED if succeeded is False else EXIT_OK


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--a.b value`, `--a.b=value` and `a.b=value` out of the command line.

    Example: `["train", "r.toml", "--learner.lr", "1e-3"]` gives
    `(["train", "r.toml"], {"learner.lr": "1e-3"})`.
    """
    words: list[str] = []
    overrides: dict[str, str] = {}
    rest = iter(argv)
    for word in rest:
        match = _OVERRIDE.fullmatch(word)
        if match is None:
            words.append(word)
            continue
        key = (match[1] or match[3]).replace("-", "_")
        value = match[2] if match[1] else match[4]
        if value is None:
            value = next(rest, None)
        if value is None:
            raise BadInput(f"--{key}: a value is missing: write --{key} VALUE")
        overrides[key] = value
    return words, overrides


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="userrl", description="Trains agents that talk with users, with GRPO on Ray.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: object, *, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, epilog=_keys_help(), allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(command=run, defaults={})
        return command

    add_run_commands(add)
    add_dialogue_commands(add)
    add_watch_commands(add)
    add_job_commands(add)
    add_dashboard_command(add)
    return parser


def _keys_help() -> str:
    lines = ["keys of a recipe, each also --KEY VALUE or KEY=VALUE here:"]
    for key, info in known_keys(RunConfig).items():
        lines.append(f"  --{key} (default {info.default})\n      {info.description}")
    return "\n".join(lines)
