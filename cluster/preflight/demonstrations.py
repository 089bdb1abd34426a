"""Check of demonstration sources: archives of earlier runs need a matching policy, ShareGPT files are checked
row by row."""

from pathlib import Path

from cluster.config.recipe import BadInput, read_toml
from cluster.config.run_config import RunConfig
from cluster.run_folder.paths import RunFolder
from learners.sft.sharegpt import count_rows


def check_demonstrations(config: RunConfig) -> None:
    """Raises `BadInput`. That a run's tokens fit the policy is verified when they are read."""
    if RunFolder.of(config).cold_started:
        return  # SFT is done; its demonstrations may have been deleted
    for run in config.sft.runs:
        if not any(RunFolder(run).trajectories.glob("step-*.parquet")):
            raise BadInput(
                f"sft.runs: {run}: no trajectories/step-*.parquet there: give the folder of a trained run"
            )
        theirs, ours = _tiny_vocabulary(run), config.policy.tiny.vocab_size
        if config.policy.path is None and theirs not in (None, ours):
            raise BadInput(
                f"sft.runs: {run}: its policy has another tokenizer (policy.tiny.vocab_size={theirs}, not "
                f"{ours}): give the same size, or omit the run"
            )
    for file in config.sft.files:
        try:
            count_rows(file)
        except ValueError as error:
            raise BadInput(f"sft.files: {error}") from None


def _tiny_vocabulary(run: Path) -> int | None:
    """Vocabulary size of the tiny policy that the run created; None if unknown.

    Not validated as a recipe, since that of an older run may have keys that no longer exist.
    """
    recipe = RunFolder(run).config
    policy = read_toml(recipe).get("policy", {}) if recipe.exists() else {}
    return None if "path" in policy else policy.get("tiny", {}).get("vocab_size")
