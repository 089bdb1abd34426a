"""`userrl train`, `check`, `chaos`, `scale` and `report`: arguments and entry points. Heavy imports happen
when a command runs."""

import argparse
from pathlib import Path

from cluster.cli.overrides import AddCommand
from cluster.config.run_config import RunConfig
from cluster.console.output import add_output_options, put
from cluster.preflight.checks import check, check_same_run
from cluster.preflight.policy import check_hub
from cluster.run_folder.paths import RunFolder, find_run


def add_run_commands(add: AddCommand) -> None:
    """Adds the five to a command line."""
    train = add("train", _train, text="SFT, then GRPO, with an evaluation before, between and after.")
    train.add_argument(
        "recipe",
        type=Path,
        metavar="RECIPE|RUN_FOLDER",
        help="a .toml file, or the folder of a stopped run to resume",
    )
    add_output_options(train)
    check = add("check", _check, text="Checks a recipe and prints the plan; starts and writes nothing.")
    check.add_argument("recipe", type=Path, metavar="RECIPE|RUN_FOLDER")
    chaos = add(
        "chaos",
        _chaos,
        text="Trains while killing processes of the run at random; tells what that cost, and what was lost.",
    )
    chaos.add_argument("recipe", type=Path, metavar="RECIPE")
    chaos.add_argument("--kills", type=int, default=20, metavar="N", help="faults; default: 20")
    chaos.add_argument(
        "--seed", dest="chaos_seed", type=int, default=0, metavar="S", help="of the faults; default: 0"
    )
    for command in (train, check, chaos):
        command.add_argument("--run", metavar="NAME", help="the run's name, instead of the recipe's")
        command.add_argument("--json", action="store_true", help="machine-readable results on stdout")
    scale = add("scale", _scale, text="Changes the number of processes of a running run.")
    scale.add_argument("run_folder", type=Path, metavar="RUN", help="its folder, or its name in runs/")
    scale.add_argument("--rollouts", type=int, metavar="N", help="rollout actors")
    scale.add_argument("--engines", type=int, metavar="N", help="policy engines")
    scale.add_argument("--simulators", type=int, metavar="N", help="replicas of the rule-based users")
    report = add("report", _report, text="Writes one run, or several in comparison, as one HTML page.")
    report.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="as for scale; several are compared",
    )
    report.add_argument(
        "--output", type=Path, metavar="FILE.html", help="default: report.html in the run folder"
    )
    report.add_argument(
        "--serve", action="store_true", help="follow the run on http://127.0.0.1:PORT/ until Ctrl-C"
    )
    report.add_argument("--port", type=int, default=8268, metavar="PORT", help="default: 8268; 0: any")


def _train(arguments: argparse.Namespace, config: RunConfig) -> None:
    check(config)
    check_same_run(config)
    check_hub(config.policy.path, key="policy.path")
    check_hub(config.learner.reference or None, key="learner.kl.reference")
    from cluster.console.log import info
    from cluster.run_folder.heartbeat import recorded

    folder = RunFolder.of(config)
    if folder.state(num_steps=config.grpo.num_steps) == "finished":
        from cluster.evaluation.results import print_rows, read_rows

        print_rows(read_rows(folder.evaluation), as_json=arguments.json)
        info(f"{folder.path} is finished; --run NAME starts another")
        return
    from cluster.driver.train import train

    with folder.locked(), recorded(folder, num_steps=config.grpo.num_steps):
        folder.create(config)
        train(config, as_json=arguments.json)


def _check(arguments: argparse.Namespace, config: RunConfig) -> None:
    check(config)
    check_same_run(config)
    from cluster.preflight.dry_run import make_plan, print_plan

    print_plan(make_plan(config), as_json=arguments.json)


def _chaos(arguments: argparse.Namespace, config: RunConfig) -> None:
    check(config)
    check_same_run(config)
    from cluster.chaos.run import chaos

    chaos(config, num_kills=arguments.kills, seed=arguments.chaos_seed, as_json=arguments.json)


def _scale(arguments: argparse.Namespace, config: RunConfig) -> None:
    from cluster.workers.autoscaler import request_counts

    asked = {name: getattr(arguments, name) for name in ("rollouts", "engines", "simulators")}
    wanted = {name: number for name, number in asked.items() if number is not None}
    put(request_counts(find_run(arguments.run_folder), wanted=wanted))


def _report(arguments: argparse.Namespace, config: RunConfig) -> None:
    from cluster.report.command import report

    report(arguments.runs, output=arguments.output, serve=arguments.serve, port=arguments.port)
