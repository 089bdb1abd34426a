"""What RLlib asks of every algorithm for its own checkpoints. Ours has an answer of its own:
cluster/checkpoints.py."""

from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


class StatelessAlgorithm(Algorithm):
    """RLlib's part of a checkpoint is how to build the algorithm; state is JSON and tensors, not pickles."""

    built_from: AlgorithmConfig | None = None
    """The config as it was given, before anything was started."""

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to set: see `get_state`."""

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        return []

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.built_from,), {}
