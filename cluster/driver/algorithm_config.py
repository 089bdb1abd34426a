"""A run's config as RLlib knows configs: `GRPOConfig().environment(...).training(...).build_algo()`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import gymnasium
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from actors.rollout_actor import RolloutActor
from actors.rollout_setup import RolloutSetup
from cluster.config.run_config import RunConfig
from cluster.ray_cluster.placement import node_resources
from cluster.workers.engine_pool import EnginePool
from cluster.workers.rollout_pool import PROBE_TIMEOUT_S, RolloutPool
from cluster.workers.services import resources
from learners.config import LearnerSettings
from learners.learner import GRPOLearner

TEXT = gymnasium.spaces.Text(max_length=2**20)
RLLIB_NAMES = {
    ("learner", "lr"): "lr",
    ("learner", "num_learners"): "num_learners",
    ("rollout", "num_actors"): "num_env_runners",
    ("run", "seed"): "seed",
}
"""Settings that RLlib has a name for: either name sets them, the later call wins."""


def merged(table: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The nested table with the changes. A new section, or one of another `type`, replaces what was there."""

    def is_section(key: str, value: Any) -> bool:
        before = table.get(key)
        if not isinstance(value, Mapping) or not isinstance(before, dict) or key == "weights":
            return False
        return "type" not in value or value["type"] == before.get("type")

    return table | {
        key: merged(table[key], value) if is_section(key, value) else value for key, value in changes.items()
    }


def run_of_trial(run: RunConfig, trial_id: str) -> RunConfig:
    """Trials of Ray Tune run beside each other: each has a run folder and users of its own."""
    changes = {"run": {"name": f"{run.run.name}-{trial_id}"}}
    return RunConfig.model_validate(merged(run.model_dump(), changes))


class GRPOConfig(AlgorithmConfig):
    """A `RunConfig` behind RLlib's own methods. Its sections are set by name, with a mapping of what differs.

    Example: `GRPOConfig().environment(gyms={"weights": {"travel": 1.0}}).training(lr=1e-3, grpo={"num_steps":
    10})`.
    """

    def __init__(self, algo_class: type | None = None, *, run: RunConfig | None = None):
        from cluster.driver.algorithm import GRPO  # each of RLlib's pair names the other

        super().__init__(algo_class=algo_class or GRPO)
        self.run = run or RunConfig()
        for (section, key), attribute in RLLIB_NAMES.items():
            setattr(self, attribute, getattr(getattr(self.run, section), key))
        self.env_runner_cls = RolloutActor
        self.rollout_setup: RolloutSetup | None = None
        self.learner_settings: LearnerSettings | None = None
        super().environment(env=None, observation_space=TEXT, action_space=TEXT)
        super().env_runners(create_local_env_runner=False)
        # Small shares, as `config_for_actors` gives them: Tune reserves these before a trial starts.
        self._reserve()
        super().learners(num_cpus_per_learner=0.25)
        self.num_cpus_for_main_process = 0.25
        super().fault_tolerance(restart_failed_env_runners=True)
        self._dont_auto_sync_env_runner_states = True

    def environment(self, *args: Any, **sections: Any) -> "GRPOConfig":
        """Sections `run`, `gyms`, `simulator`, `reward`; anything else goes to RLlib."""
        return self._set(super().environment, args, sections)

    def env_runners(self, *args: Any, **sections: Any) -> "GRPOConfig":
        """Sections `rollout`, `engine`, `buffer`; anything else goes to RLlib (`num_env_runners`)."""
        return self._set(super().env_runners, args, sections)

    def learners(self, *args: Any, **sections: Any) -> "GRPOConfig":
        """Sections `learner`, `policy`, `ray`; anything else goes to RLlib (`num_learners`)."""
        return self._set(super().learners, args, sections)

    def training(self, *args: Any, **sections: Any) -> "GRPOConfig":
        """Sections `sft`, `grpo`, `buffer`, `learner`, `evaluation`, `checkpoint`; anything else goes to
        RLlib (`lr`)."""
        return self._set(super().training, args, sections)

    def resolved(self) -> RunConfig:
        """The run's config, with what RLlib's own settings say. Raises pydantic's ValidationError."""
        data = self.run.model_dump()
        for (section, key), attribute in RLLIB_NAMES.items():
            data[section][key] = getattr(self, attribute)
        return RunConfig.model_validate(data)

    def get_default_learner_class(self) -> type:
        return GRPOLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Asked for by RLlib and never built: the learner loads a Hugging Face model instead."""
        return RLModuleSpec(module_class=RLModule)

    def _reserve(self) -> None:
        """What Tune reserves and RLlib's actors take: the rollout actors' CPUs, which RLlib's annotations
        take for whole ones, and what the nodes of `ray.nodes` ask for."""
        nodes = self.run.ray.nodes
        shares: dict[str, Any] = {"num_cpus_per_env_runner": self.run.rollout.cpus_per_actor}
        super().env_runners(**shares)
        if nodes.rollout:
            super().env_runners(custom_resources_per_env_runner=node_resources(nodes.rollout))
        if nodes.learner:
            super().learners(custom_resources_per_learner=node_resources(nodes.learner))

    def _set(
        self, to_rllib: Callable[..., Any], args: tuple[Any, ...], sections: dict[str, Any]
    ) -> "GRPOConfig":
        ours = {name: sections.pop(name) for name in list(sections) if name in RunConfig.model_fields}
        if ours:
            self.run = RunConfig.model_validate(merged(self.run.model_dump(), ours))
            for (section, key), attribute in RLLIB_NAMES.items():
                if key in ours.get(section, {}):
                    setattr(self, attribute, ours[section][key])
            self._reserve()
        if args or sections:
            to_rllib(*args, **sections)
        return self


def config_for_actors(
    config: GRPOConfig, *, run: RunConfig, rollout_setup: RolloutSetup, reference_folder: str
) -> GRPOConfig:
    """The config that rollout actors and learners read, with what only a running cluster can say."""
    config = cast(GRPOConfig, config.copy(copy_frozen=False))
    process = resources(run)
    # RLlib hands the number on to Ray, which takes fractions.
    config.env_runners(num_cpus_per_env_runner=process["rollout actor"].num_cpus)  # type: ignore[arg-type]
    config.learners(
        num_cpus_per_learner=process["learner"].num_cpus,
        num_gpus_per_learner=process["learner"].num_gpus,
    )
    config.rollout_setup = rollout_setup
    config.learner_settings = LearnerSettings(
        policy_folder=rollout_setup.policy_folder,
        learner=run.learner,
        sft=run.sft,
        temperature=run.rollout.temperature,
        seed=run.run.seed,
        reference_folder=reference_folder,
        gym_shares=run.gyms.shares,
    )
    config.freeze()
    return config


def create_rollouts(config: RunConfig, setup: RolloutSetup, *, engines: EnginePool) -> RolloutPool:
    """Rollout actors without a learner, for evaluation."""
    grpo = GRPOConfig(run=config)
    grpo.rollout_setup = setup
    env_runners = EnvRunnerGroup(config=grpo, local_env_runner=False)
    return RolloutPool(
        env_runners,
        engines=engines,
        restore=partial(env_runners.probe_unhealthy_env_runners, timeout_seconds=PROBE_TIMEOUT_S),
        group_timeout_s=config.rollout.group_timeout_s,
    )
