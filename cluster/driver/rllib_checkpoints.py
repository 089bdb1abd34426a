"""What RLlib asks of every algorithm for its own checkpoints: a folder to build the algorithm from, without a
pickle in it. The state is cluster/driver/checkpoints.py's."""

import tempfile
from pathlib import Path
from typing import Any, Self

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from cluster.config.run_config import load
from cluster.run_folder.paths import write_whole

RECIPE = "config.toml"
"""The resolved recipe, in every checkpoint."""


class StatelessAlgorithm(Algorithm):
    """Its checkpoints hold a recipe, and what its subclass adds. RLlib's own would be pickled classes and
    settings, and run whatever somebody has put into them."""

    built_from: AlgorithmConfig | None = None
    """The config as it was given, before anything was started."""

    def save_to_path(self, path: str | Path | None = None, **kwargs: Any) -> str:
        """Writes the recipe into the folder, a new one where none is named, which is returned."""
        folder = Path(path) if path else Path(tempfile.mkdtemp(prefix="userrl-"))
        folder.mkdir(parents=True, exist_ok=True)
        config: Any = self.built_from
        write_whole(folder / RECIPE, config.resolved().to_toml())
        return str(folder)

    @classmethod
    def from_checkpoint(cls, path: Any, *args: Any, **kwargs: Any) -> Self:
        """A new algorithm that goes on from what `save_to_path` wrote."""
        from cluster.driver.algorithm_config import GRPOConfig  # which names the algorithm itself

        folder = Path(path).resolve()
        algorithm: Any = GRPOConfig(cls, run=load(folder / RECIPE)).build_algo()
        algorithm.restore_from_path(folder)
        return algorithm

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to set: see `get_state`."""

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        return []
