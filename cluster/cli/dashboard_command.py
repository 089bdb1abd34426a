"""`userrl dashboard` command: saves the default W&B workspace for a project. Imports W&B only when it
runs."""

import argparse
from pathlib import Path

from cluster.cli.overrides import AddCommand
from cluster.config.run_config import RunConfig
from cluster.console.output import put


def add_dashboard_command(add: AddCommand) -> None:
    """Adds it to a command line."""
    dashboard = add("dashboard", _dashboard, text="Lays out the W&B project of a recipe, as a view there.")
    dashboard.add_argument("recipe", type=Path, metavar="RECIPE|RUN_FOLDER")
    dashboard.add_argument(
        "--entity", metavar="NAME", help="the W&B user or team that has the project; default: the key's own"
    )


def _dashboard(arguments: argparse.Namespace, config: RunConfig) -> None:
    from cluster.tracking.wandb.workspace import save_workspace

    put(save_workspace(config, entity=arguments.entity))
