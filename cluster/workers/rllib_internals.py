"""Private names of RLlib, read from Ray 2.60.0.

RLlib has no public call to reach one actor of an EnvRunnerGroup, to add or remove one at run time, or to call
the actors of a LearnerGroup with a deadline. An upgrade of Ray has to check this file.
"""

from typing import Any

from ray.actor import ActorHandle


def rollout_actors(env_runners: Any) -> dict[int, ActorHandle]:
    """All actors of an EnvRunnerGroup by worker index, dead ones included."""
    return env_runners._worker_manager.actors()


def mark_unhealthy(env_runners: Any, index: int) -> None:
    """RLlib probes this actor until it answers again."""
    env_runners._worker_manager.set_actor_state(index, healthy=False)


def create_rollout_actor(env_runners: Any, *, index: int, num_workers: int) -> Any:
    """A new actor that is not part of the group yet.

    RLlib's own `add_workers` counts a new actor as healthy at once, so that every call waits for a node that
    does not exist yet; and it derives indexes from the number of actors, so that one index is used twice
    after an actor has left.
    """
    return env_runners._make_worker(
        env_creator=env_runners._env_creator,
        validate_env=None,
        worker_index=index,
        num_workers=num_workers,
        config=env_runners._remote_config_obj_ref,
    )


def add_rollout_actor(env_runners: Any, actor: Any, *, index: int) -> None:
    """Adds it under the index that the actor itself was created with."""
    env_runners._worker_manager._next_id = index
    env_runners._worker_manager.add_actors([actor])


def remove_rollout_actor(env_runners: Any, index: int) -> ActorHandle:
    """Takes it out of the group; its process stays."""
    return env_runners._worker_manager.remove_actor(index)


def learner_actors(learner_group: Any) -> list[ActorHandle]:
    """The actors of a LearnerGroup, rank 0 first."""
    return learner_group._workers
