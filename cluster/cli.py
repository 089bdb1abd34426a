"""`userrl`: train, evaluate, serve, play, check. Reads the command line, checks it, calls one function.

Heavy imports stand inside the commands, so that `--help` and a refusal take an instant.
"""

import argparse
import json
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cluster.checks import check, check_same_run
from cluster.config import RunConfig, load
from cluster.policy_check import SCRIPTED_POLICIES, check_hub
from cluster.recipe import BadInput, apply_overrides, known_keys, nearest, read_toml
from cluster.run_folder import RunFolder
from simulators.task import SPLITS

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
_OVERRIDE = re.compile(r"--([\w-]+(?:\.[\w-]+)+)(?:=(.*))?|([\w-]+(?:\.[\w-]+)+)=(.*)", re.DOTALL)


class _Parser(argparse.ArgumentParser):
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
    log = Path("runs") / "error.log"
    try:
        words, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        arguments = _parser().parse_args(words)
        config = _config(arguments, overrides)
        log = RunFolder.of(config).error_log
        arguments.command(arguments, config)
    except BadInput as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # The outermost border: a person gets one line, the file the rest.
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc())
        reason = str(error).strip().splitlines() or [""]
        print(f"failed: {type(error).__name__}: {reason[0]} (traceback: {log})", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


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


def _config(arguments: argparse.Namespace, overrides: dict[str, str]) -> RunConfig:
    """The recipe or run folder, then dotted keys; short options are names for dotted keys."""
    short = {
        "run.name": "run",
        "run.seed": "seed",
        "gyms.difficulty": "difficulty",
        "evaluation.tasks_per_gym": "tasks",
        "gyms.preset": "preset",
        f"gyms.data.{getattr(arguments, 'gyms', '')}": "data",
    }
    for key, option in short.items():
        value = getattr(arguments, option, None)
        if value is not None:
            overrides[key] = value
    recipe = getattr(arguments, "recipe", None)
    if recipe is not None and recipe.is_dir():
        if not RunFolder(recipe).config.exists():
            raise BadInput(
                f"{recipe}: no config.toml there: give a recipe, or a run folder such as runs/NAME"
            )
        overrides = {"run.name": recipe.resolve().name, "run.folder": str(recipe.parent)} | overrides
        recipe = RunFolder(recipe).config
    if getattr(arguments, "gyms", "all") != "all":
        overrides = overrides | _only_gyms(arguments.gyms, recipe, overrides)
    if arguments.command is _evaluate:
        overrides = {"gyms.constants": "evaluation"} | overrides
    return load(recipe, overrides)


def _only_gyms(names: str, recipe: Path | None, overrides: dict[str, str]) -> dict[str, str]:
    """The keys that leave these gyms; those of them that the recipe holds out stay held out, unless all
    are."""
    gyms = [name.strip() for name in names.split(",")]
    data = read_toml(recipe) if recipe else {}
    apply_overrides(data, overrides, model=RunConfig)
    table = data.get("gyms", {})
    held_out = [gym for gym in gyms if gym in table.get("held_out", ())]
    kept = [] if len(held_out) == len(gyms) else held_out
    files = {gym: path for gym, path in table.get("data", {}).items() if gym in gyms}
    return {
        "gyms.weights": "{" + ", ".join(f'"{gym}" = 1.0' for gym in gyms) + "}",
        "gyms.held_out": json.dumps(kept),
        "gyms.data": "{"
        + ", ".join(f"{json.dumps(g)} = {json.dumps(str(p))}" for g, p in files.items())
        + "}",
    }


def _train(arguments: argparse.Namespace, config: RunConfig) -> None:
    check(config)
    check_same_run(config)
    check_hub(config.policy.path, key="policy.path")
    check_hub(config.learner.reference or None, key="learner.reference")
    folder = RunFolder.of(config)
    if folder.state(num_steps=config.grpo.num_steps) == "finished":
        from cluster.results import print_rows, read_rows

        print_rows(read_rows(folder.evaluation), as_json=arguments.json)
        print(f"{folder.path} is finished; --run NAME starts another", file=sys.stderr)
        return
    from cluster.train import train

    with folder.locked():
        folder.create(config)
        train(config, as_json=arguments.json)


def _evaluate(arguments: argparse.Namespace, config: RunConfig) -> None:
    from cluster.evaluation_request import make_request

    request = make_request(
        config,
        policy=arguments.policy,
        model=arguments.model,
        api_key_env=arguments.api_key_env,
        simulators=arguments.simulators,
        split=arguments.split,
        num_trials=arguments.trials,
        success_score=arguments.success,
        output=arguments.output,
        as_json=arguments.json,
    )
    from cluster.evaluate_command import evaluate_command

    evaluate_command(config, request)


def _serve(arguments: argparse.Namespace, config: RunConfig) -> None:
    check(config)
    from cluster.launch import serve_forever

    serve_forever(config)


def _play(arguments: argparse.Namespace, config: RunConfig) -> None:
    from cluster.play import play

    play(config, gym=arguments.gyms, side=arguments.side, split=arguments.split, index=arguments.index)


def _check(arguments: argparse.Namespace, config: RunConfig) -> None:
    check(config)
    check_same_run(config)
    from cluster.plan import make_plan, print_plan

    print_plan(make_plan(config), as_json=arguments.json)


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
        command.set_defaults(command=run)
        return command

    train = add("train", _train, text="SFT, then GRPO, with an evaluation before, between and after.")
    train.add_argument(
        "recipe", type=Path, metavar="RECIPE|RUN_FOLDER", help="a .toml, or a stopped run to go on with"
    )
    evaluate = add("evaluate", _evaluate, text="Scores a policy on held-out tasks.")
    evaluate.add_argument(
        "recipe", type=Path, nargs="?", metavar="RECIPE|RUN_FOLDER", help="default: the defaults"
    )
    evaluate.add_argument(
        "--policy",
        required=True,
        help=f"{'|'.join(SCRIPTED_POLICIES)}, a model folder or hub name, or an OpenAI-compatible base URL",
    )
    evaluate.add_argument(
        "--model", metavar="NAME", help="with a base URL: which of its models; default: the only one"
    )
    evaluate.add_argument(
        "--api-key-env",
        metavar="VARIABLE",
        help="with a base URL: the environment variable that holds its key; default: OPENAI_API_KEY, if set",
    )
    evaluate.add_argument("--gyms", default="all", help="all (default), or names with commas between")
    evaluate.add_argument(
        "--simulators",
        default="all",
        help="all of the recipe's users (default), or names with commas between",
    )
    evaluate.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    evaluate.add_argument("--tasks", metavar="N", help="tasks of each gym: evaluation.tasks_per_gym")
    evaluate.add_argument("--seed", metavar="S", help="run.seed")
    evaluate.add_argument("--difficulty", metavar="D", help="gyms.difficulty")
    evaluate.add_argument(
        "--trials", type=int, default=1, metavar="K", help="dialogues of each task, for pass^k; default: 1"
    )
    evaluate.add_argument(
        "--success",
        type=float,
        default=0.99,
        metavar="SCORE",
        help="the score from which a dialogue succeeds, for pass^k; default: 0.99",
    )
    evaluate.add_argument(
        "--output",
        type=Path,
        metavar="FILE.json",
        help="writes the report there, .md and .parquet beside it; the same command again goes on",
    )
    serve = add("serve", _serve, text="Hosts the simulated users on Ray Serve until Ctrl-C.")
    serve.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE")
    play = add(
        "play", _play, text="One dialogue with a person in this terminal; rewards are told at the end."
    )
    play.add_argument("gyms", type=str.lower, metavar="GYM", help="its name")
    play.add_argument(
        "--as", dest="side", choices=("agent", "user"), default="agent", help="who you are; default: agent"
    )
    play.add_argument("--preset", metavar="NAME", help="gyms.preset")
    play.add_argument("--data", metavar="FILE", help="published tasks: gyms.data.GYM")
    play.add_argument("--difficulty", metavar="D", help="gyms.difficulty")
    play.add_argument("--seed", metavar="S", help="run.seed")
    play.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    play.add_argument("--index", type=int, default=0, metavar="I", help="which of the tasks; default: 0")
    check = add("check", _check, text="Checks a recipe and prints the plan; starts and writes nothing.")
    check.add_argument("recipe", type=Path, metavar="RECIPE|RUN_FOLDER")
    for command in (train, check):
        command.add_argument("--run", metavar="NAME", help="the run's name, instead of the recipe's")
    for command in (train, evaluate, check):
        command.add_argument("--json", action="store_true", help="machine-readable results on stdout")
    return parser


def _keys_help() -> str:
    lines = ["keys of a recipe, each also --KEY VALUE or KEY=VALUE here:"]
    for key, info in known_keys(RunConfig).items():
        lines.append(f"  --{key} (default {info.default})\n      {info.description}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
