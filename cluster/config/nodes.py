"""Config section `ray.nodes`: which cluster nodes each kind of process may use."""

import re

from pydantic import BaseModel, ConfigDict, field_validator

RAY_RESOURCES = ("CPU", "GPU", "TPU", "memory", "object_store_memory")
"""Resources that Ray itself defines."""


class NodesConfig(BaseModel):
    """Which nodes each kind of process may use: those with the custom Ray resource of this name. Unset: any
    node. Two kinds with one name share those nodes; a local Ray offers every name."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    engine: str | None = None
    """Nodes of the policy engines. The `tensor_parallel_size` GPUs of an engine are on one node."""
    learner: str | None = None
    """Nodes of the learners. With another name than the engines', the two never share a GPU."""
    simulator: str | None = None
    """Nodes of the simulated users: replicas of rule-based users and of hosted models."""
    rollout: str | None = None
    """Nodes of the rollout actors; they may come and go."""

    @field_validator("*")
    @classmethod
    def _is_a_custom_resource(cls, name: str | None) -> str | None:
        if name is not None and (not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or name in RAY_RESOURCES):
            raise ValueError(
                "nodes are named by a custom Ray resource: use letters, digits, '_' and '-', and none of "
                f"{', '.join(RAY_RESOURCES)}"
            )
        return name

    @property
    def offered(self) -> dict[str, float]:
        """Custom resources of a node that runs every kind of process."""
        return {name: 1.0 for name in (self.engine, self.learner, self.simulator, self.rollout) if name}
