"""Settings of the simulated users. Light: imports no Ray, so that a recipe is checked in an instant."""

from pydantic import BaseModel, ConfigDict, Field


class SimulatorConfig(BaseModel):
    """How the simulated users are hosted and called."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_replicas: int = Field(default=1, ge=1)
    """Serve replicas that answer for the users."""
    num_cpus_per_replica: float = Field(default=0.1, ge=0)
    """CPUs that Ray reserves for each replica; rules need little."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for one try of one call."""
    max_retries: int = Field(default=4, ge=0)
    """Tries after the first, where a replica died or was too slow."""
    backoff_s: float = Field(default=0.25, gt=0)
    """Mean wait before the first retry; it doubles with every further one."""
