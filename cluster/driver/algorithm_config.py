"""A run's recipe as an RLlib config: sections are set by RLlib's own methods, by name."""

from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import gymnasium
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from actors.rollout_actor import RolloutActor
from actors.rollout_setup import RolloutSetup
from cluster.config.run_config import RunConfig
from cluster.ray_cluster.placement import node_resources
from cluster.workers.engine_pool import EnginePool
from cluster.workers.rollout_pool import RolloutPool
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
"""Settings that RLlib has a name for: either name sets them, and the later call wins."""


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
    """Ray Tune's trials run in parallel: each has its own run folder and simulated users."""
    changes = {"run": {"name": f"{run.run.name}-{trial_id}"}}
    return RunConfig.model_validate(merged(run.model_dump(), changes))


class RunAlgorithmConfig(AlgorithmConfig):
    """A `RunConfig` with the methods of RLlib's configs. Each takes sections of the recipe by name, with a
    mapping of what differs from the default."""

    def __init__(self, algo_class: type | None = None, *, run: RunConfig | None = None):
        super().__init__(algo_class=algo_class)
        self.run = run or RunConfig()
        for (section, key), attribute in RLLIB_NAMES.items():
            setattr(self, attribute, getattr(getattr(self.run, section), key))
        self.env_runner_cls = RolloutActor
        self.rollout_setup: RolloutSetup | None = None
        self.learner_settings: LearnerSettings | None = None
        super().environment(env=None, observation_space=TEXT, action_space=TEXT)
        super().env_runners(create_local_env_runner=False)
        # Small shares, as `config_for_actors` sets them: Tune reserves these before a trial starts.
        self._reserve()
        super().learners(num_cpus_per_learner=0.25)
        self.num_cpus_for_main_process = 0.25
        super().fault_tolerance(restart_failed_env_runners=True)
        self._dont_auto_sync_env_runner_states = True

    def environment(self, *args: Any, **sections: Any) -> Self:
        """Sections `run`, `gyms`, `simulator`, `reward`; all else goes to RLlib."""
        return self._set(super().environment, args, sections)

    def env_runners(self, *args: Any, **sections: Any) -> Self:
        """Sections `rollout`, `engine`, `buffer`; all else goes to RLlib (`num_env_runners`)."""
        return self._set(super().env_runners, args, sections)

    def learners(self, *args: Any, **sections: Any) -> Self:
        """Sections `learner`, `policy`, `ray`; all else goes to RLlib (`num_learners`)."""
        return self._set(super().learners, args, sections)

    def training(self, *args: Any, **sections: Any) -> Self:
        """Sections `sft`, `grpo`, `buffer`, `learner`, `evaluation`, `checkpoint`; all else goes to RLlib
        (`lr`)."""
        return self._set(super().training, args, sections)

    def resolved(self) -> RunConfig:
        """The recipe, with RLlib's own settings in it. Raises pydantic's ValidationError."""
        data = self.run.model_dump()
        for (section, key), attribute in RLLIB_NAMES.items():
            data[section][key] = getattr(self, attribute)
        return RunConfig.model_validate(data)

    def get_default_learner_class(self) -> type:
        return GRPOLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """RLlib asks for it and never builds it: the learner loads a Hugging Face model instead."""
        return RLModuleSpec(module_class=RLModule)

    def _reserve(self) -> None:
        """The resources that Tune reserves and RLlib's actors take: the rollout actors' CPUs, which RLlib's
        annotations take for whole ones, and the custom resources of `ray.nodes`."""
        nodes = self.run.ray.nodes
        shares: dict[str, Any] = {"num_cpus_per_env_runner": self.run.rollout.cpus_per_actor}
        super().env_runners(**shares)
        if nodes.rollout:
            super().env_runners(custom_resources_per_env_runner=node_resources(nodes.rollout))
        if nodes.learner:
            super().learners(custom_resources_per_learner=node_resources(nodes.learner))

    def _set(self, to_rllib: Callable[..., Any], args: tuple[Any, ...], sections: dict[str, Any]) -> Self:
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
    config: RunAlgorithmConfig, *, run: RunConfig, rollout_setup: RolloutSetup, reference_folder: str
) -> RunAlgorithmConfig:
    """The config that rollout actors and learners read, completed by what is known once the services run."""
    config = cast(RunAlgorithmConfig, config.copy(copy_frozen=False))
    process = resources(run)
    # RLlib passes the number on to Ray, which takes fractions.
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


def create_rollouts(run: RunConfig, setup: RolloutSetup, *, engines: EnginePool) -> RolloutPool:
    """Rollout actors without a learner, for evaluation."""
    config = RunAlgorithmConfig(run=run)
    config.rollout_setup = setup
    env_runners = EnvRunnerGroup(config=config, local_env_runner=False)
    return RolloutPool(env_runners, engines=engines, group_timeout_s=run.rollout.group_timeout_s)
