"""RLlib's config and checkpoint methods without pickles: RLlib's own checkpoints are pickled classes and
settings, which run any code that they contain."""

from pathlib import Path
from typing import Any, Self

from ray.rllib.algorithms.algorithm import Algorithm

from cluster.config.run_config import load
from cluster.driver.algorithm_config import RunAlgorithmConfig
from cluster.driver.checkpoints import RECIPE


class PickleFreeAlgorithm(Algorithm):
    """An algorithm whose `save_to_path` and `restore_from_path` write and read everything themselves: RLlib
    finds no state and no components to pickle."""

    @classmethod
    def get_default_config(cls) -> RunAlgorithmConfig:
        return RunAlgorithmConfig(cls)

    @classmethod
    def from_checkpoint(cls, path: Any, *args: Any, **kwargs: Any) -> Self:
        """A new algorithm that resumes from what `save_to_path` wrote."""
        folder = Path(path).resolve()
        algorithm: Any = RunAlgorithmConfig(cls, run=load(folder / RECIPE)).build_algo()
        algorithm.restore_from_path(folder)
        return algorithm

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to set: see `get_state`."""

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        return []
