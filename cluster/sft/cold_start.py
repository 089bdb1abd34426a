"""The cold start: drives supervised fine-tuning (SFT) of the learners on demonstrations."""

from collections.abc import Callable, Mapping

from cluster.config.run_config import RunConfig
from cluster.console.log import info
from cluster.console.progress import stage_progress
from cluster.sft.demonstrations import gather_demonstrations
from cluster.workers.learner_pool import LearnerPool
from cluster.workers.play_orders import OrderPlayer
from cluster.workers.supervisor import Supervisor
from learners.sft.batches import num_sft_steps

STEPS_PER_CALL = 10
STEPS_PER_CHECKPOINT = 50
SftLog = Callable[[int, Mapping[str, float]], None]
"""(SFT steps done, the last one's metrics)."""


def cold_start(
    config: RunConfig,
    *,
    learners: LearnerPool,
    player: OrderPlayer,
    supervisor: Supervisor,
    policy_folder: str,
    done: int,
    log: SftLog,
    save: Callable[[], None],
) -> None:
    """Runs the SFT stage from step `done` to its end, and has it saved now and then, while the
    supervisor ticks. Raises `BadInput`
    for a source that cannot be used, and RuntimeError where no demonstration succeeded."""
    if not config.sft.has_sources:
        return
    demonstrations = gather_demonstrations(
        config, player=player, policy_folder=policy_folder, has_begun=done > 0
    )
    num_samples = learners.set_demonstrations(demonstrations.tables)
    by_source = dict(demonstrations.num_samples)
    if config.sft.num_demonstrations:
        by_source = {"experts": num_samples - sum(by_source.values()), **by_source}
    del demonstrations  # the learners have their own copy
    if not num_samples:
        raise RuntimeError("no demonstration ended without a failure: their table's `error` column says why")
    info("samples to imitate: " + ", ".join(f"{source} {count}" for source, count in by_source.items()))
    counts = {f"sft/num_samples/{source}": float(count) for source, count in by_source.items()}
    num_steps = num_sft_steps(config.sft, num_samples=num_samples)
    with stage_progress("SFT", total=num_steps - done) as advance:
        for step in range(done, num_steps, STEPS_PER_CALL):
            count = min(STEPS_PER_CALL, num_steps - step)
            metrics = learners.sft_updates(first_step=step, num_steps=count, supervisor=supervisor)
            supervisor.tick("between_sft_updates")
            log(step + count, {**metrics, **counts})
            if (step + count) % STEPS_PER_CHECKPOINT == 0:
                save()
            advance(count, f"loss {metrics['learner/loss']:.3f}")
