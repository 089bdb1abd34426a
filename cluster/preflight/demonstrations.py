"""Check of demonstration sources: archives of earlier runs with a matching policy, ShareGPT files row by row.
Reads text only, so mistakes are refused before anything starts."""

from pathlib import Path

from cluster.config.recipe import BadInput, read_toml
from cluster.config.run_config import RunConfig
from cluster.run_folder.paths import RunFolder
from learners.sft.sharegpt import count_rows


def check_demonstrations(config: RunConfig) -> None:
    """Raises `BadInput`. Whether a run's tokens are this policy's is seen for certain when they are read."""
    if RunFolder.of(config).cold_started:
        return  # this run's cold start is behind it, and its demonstrations may be gone
    for run in config.sft.runs:
        if not any(RunFolder(run).trajectories.glob("step-*.parquet")):
            raise BadInput(
                f"sft.runs: {run}: no trajectories/step-*.parquet there: give the folder of a run that has "
                "trained"
            )
        theirs, ours = _tiny_vocabulary(run), config.policy.tiny.vocab_size
        if config.policy.path is None and theirs not in (None, ours):
            raise BadInput(
                f"sft.runs: {run}: its policy has another tokenizer (policy.tiny.vocab_size={theirs}, not "
                f"{ours}): give the same size, or leave the run out"
            )
    for file in config.sft.files:
        try:
            count_rows(file)
        except ValueError as error:
            raise BadInput(f"sft.files: {error}") from None


def _tiny_vocabulary(run: Path) -> int | None:
    """The vocabulary's size where the run made its own tiny policy; None where nothing is known.

    Read by hand: the recipe of an older run may hold keys that are no more.
    """
    recipe = RunFolder(run).config
    policy = read_toml(recipe).get("policy", {}) if recipe.exists() else {}
    return None if "path" in policy else policy.get("tiny", {}).get("vocab_size")
