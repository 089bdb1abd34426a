"""`userrl evaluate` and `userrl serve`: arguments and entry points. Heavy imports happen when a command
runs."""

import argparse
from pathlib import Path

from cluster.cli.overrides import AddCommand
from cluster.config.run_config import RunConfig
from cluster.console.output import add_output_options
from cluster.preflight.checks import check, check_serve
from cluster.preflight.policy import SCRIPTED_POLICIES
from simulators.task import SPLITS


def add_dialogue_commands(add: AddCommand) -> None:
    """Adds the two to a command line."""
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
        help="writes the report there, with .md and .parquet files next to it; the same command resumes",
    )
    evaluate.add_argument("--json", action="store_true", help="machine-readable results on stdout")
    add_output_options(evaluate)
    evaluate.set_defaults(defaults={"gyms.constants": "evaluation"})
    serve = add("serve", _serve, text="Hosts the simulated users on Ray Serve until Ctrl-C.")
    serve.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE")


def _evaluate(arguments: argparse.Namespace, config: RunConfig) -> None:
    from cluster.evaluation.request import make_request

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
    from cluster.driver.evaluate import evaluate_command

    evaluate_command(config, request)


def _serve(arguments: argparse.Namespace, config: RunConfig) -> None:
    check_serve(config)
    check(config)
    from cluster.ray_cluster.simulator_service import serve_forever

    serve_forever(config)
