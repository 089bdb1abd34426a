"""Where the policy comes from: a folder or hub name that was given, or a small one made on the spot."""

from cluster.config import RunConfig
from cluster.run_folder import RunFolder
from learners.tiny_policy import build


def provide_policy(config: RunConfig, folder: RunFolder) -> str:
    """A folder or name that transformers and vLLM load; a tiny policy is made once a run."""
    if config.policy.path is not None:
        return config.policy.path
    if not (folder.policy / "config.json").exists():
        build(folder.policy, config.policy.tiny, max_tokens=config.engine.max_model_len, seed=config.run.seed)
    return str(folder.policy.resolve())
