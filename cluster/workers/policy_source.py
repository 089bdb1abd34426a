"""The model folder of the policy and of the KL reference: a given folder, a hub download, or a tiny policy
that is built here."""

from pathlib import Path

from huggingface_hub import snapshot_download

from cluster.config.run_config import RunConfig
from cluster.preflight.policy import is_hub_name
from cluster.run_folder.atomic_files import write_folder
from cluster.run_folder.paths import RunFolder
from learners.model.tiny_policy import build
from simulators.gym_plugins import known_gyms


def local_folder(path: str) -> str:
    """The absolute folder of a model: a given one, or a download by hub name into the local cache."""
    return snapshot_download(path) if is_hub_name(path) else str(Path(path).expanduser().resolve())


def provide_policy(config: RunConfig, folder: RunFolder) -> str:
    """The policy's folder, which transformers and vLLM load; a tiny policy is built once per run."""
    if config.policy.path is not None:
        return local_folder(config.policy.path)
    if not (folder.policy / "config.json").exists():
        write_folder(  # atomically: a run that was killed here must not resume with half of it
            folder.policy,
            lambda path: build(
                path,
                config.policy.tiny,
                max_tokens=config.engine.max_model_len,
                seed=config.run.seed,
                gyms=known_gyms(config.gyms.modules),
            ),
        )
    return str(folder.policy.resolve())


def reference_folder(config: RunConfig, folder: RunFolder) -> str:
    """The folder of the KL's reference model: the one that the recipe names, or the learners' own."""
    if config.learner.reference:
        return local_folder(config.learner.reference)
    return str(folder.reference.resolve())
