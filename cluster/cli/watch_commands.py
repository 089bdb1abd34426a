"""`userrl status` and `userrl play`: arguments and entry points. Heavy imports happen when a command runs."""

import argparse
from pathlib import Path

from cluster.cli.overrides import AddCommand
from cluster.config.run_config import RunConfig
from cluster.preflight.policy import SCRIPTED_POLICIES
from simulators.task import SPLITS


def add_watch_commands(add: AddCommand) -> None:
    """Adds the two to a command line."""
    status = add("status", _status, text="Says how far a run is, and what it waits for, from its folder.")
    status.epilog = None  # a recipe's keys say nothing to it
    status.add_argument("run_folder", type=Path, metavar="RUN", help="its folder, or its name in runs/")
    status.add_argument("--json", action="store_true", help="machine-readable results on stdout")
    play = add(
        "play", _play, text="One dialogue with a person in this terminal; rewards are shown at the end."
    )
    play.add_argument("gyms", type=str.lower, metavar="GYM", help="its name")
    play.add_argument(
        "--as",
        dest="side",
        choices=("agent", "user"),
        default="agent",
        help="your side of the dialogue; default: agent",
    )
    play.add_argument(
        "--policy",
        metavar="POLICY",
        help=f"the policy that you meet as the user: {'|'.join(SCRIPTED_POLICIES)} (default: expert), "
        "a run folder, one of its checkpoints, a model folder or hub name, or an OpenAI-compatible base URL",
    )
    play.add_argument(
        "--model", metavar="NAME", help="with a base URL: which of its models; default: the only one"
    )
    play.add_argument(
        "--api-key-env",
        metavar="VARIABLE",
        help="with a base URL: the environment variable that holds its key; default: OPENAI_API_KEY, if set",
    )
    play.add_argument("--preset", metavar="NAME", help="gyms.preset")
    play.add_argument("--data", metavar="FILE", help="published tasks: gyms.data.GYM")
    play.add_argument("--difficulty", metavar="D", help="gyms.difficulty")
    play.add_argument("--seed", metavar="S", help="run.seed")
    play.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    play.add_argument("--index", type=int, default=0, metavar="I", help="which of the tasks; default: 0")


def _status(arguments: argparse.Namespace, config: RunConfig) -> None:
    from cluster.status.status import print_status, read_status

    print_status(read_status(arguments.run_folder), as_json=arguments.json)


def _play(arguments: argparse.Namespace, config: RunConfig) -> None:
    from cluster.play.play import play
    from cluster.play.policy import PolicyRequest

    play(
        config,
        gym=arguments.gyms,
        side=arguments.side,
        split=arguments.split,
        index=arguments.index,
        policy=PolicyRequest(
            policy=arguments.policy, model=arguments.model, api_key_env=arguments.api_key_env
        ),
        overrides=arguments.overrides,
    )
