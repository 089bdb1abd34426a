"""`userrl submit`, `jobs`, `logs` and `stop`: arguments and entry points. Ray is imported when a command
runs."""

import argparse
from pathlib import Path

from cluster.cli.overrides import AddCommand
from cluster.config.run_config import RunConfig
from cluster.console.output import add_output_options


def add_job_commands(add: AddCommand) -> None:
    """Adds the four to a command line."""
    submit = add("submit", _submit, text="Trains a recipe as a job on a Ray cluster, and follows it.")
    submit.add_argument("recipe", type=Path, metavar="RECIPE")
    submit.add_argument("--run", metavar="NAME", help="the run's name, instead of the recipe's")
    submit.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="sends the environment variable of this name along, sealed; once for each",
    )
    submit.add_argument("--no-wait", action="store_true", help="ends when the job is sent")
    add_output_options(submit)
    jobs = add("jobs", _jobs, text="Lists the jobs of a Ray cluster.")
    jobs.add_argument("--json", action="store_true", help="machine-readable results on stdout")
    logs = add("logs", _logs, text="Prints what a job prints until it is over; Ctrl-C leaves it running.")
    stop = add("stop", _stop, text="Stops a job: its run ends the step and saves.")
    for command in (jobs, logs, stop):
        command.epilog = None  # a recipe's keys say nothing to them
    for command in (logs, stop):
        command.add_argument("job", metavar="JOB", help="its id, as `userrl jobs` shows it")
    for command in (submit, jobs, logs, stop):
        command.add_argument(
            "--address",
            metavar="URL",
            help="the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265",
        )


def _submit(arguments: argparse.Namespace, config: RunConfig) -> bool:
    from cluster.jobs.submit import submit

    return submit(
        config,
        recipe=arguments.recipe,
        overrides=arguments.overrides,
        address=arguments.address,
        env=arguments.env,
        wait=not arguments.no_wait,
        is_quiet=arguments.quiet,
        is_jsonl=arguments.log_format == "jsonl",
    )


def _jobs(arguments: argparse.Namespace, config: RunConfig) -> None:
    from cluster.jobs.client import Jobs
    from cluster.jobs.submit import print_jobs

    print_jobs(Jobs(arguments.address).list(), as_json=arguments.json)


def _logs(arguments: argparse.Namespace, config: RunConfig) -> bool:
    from cluster.jobs.client import Jobs
    from cluster.jobs.submit import follow

    return follow(Jobs(arguments.address), arguments.job)


def _stop(arguments: argparse.Namespace, config: RunConfig) -> None:
    from cluster.jobs.client import Jobs
    from cluster.jobs.submit import stop

    stop(Jobs(arguments.address), arguments.job)
