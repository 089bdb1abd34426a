"""Policies for `userrl play`: a script, a model folder, a run's newest model or checkpoint, or an endpoint's
model. All in this process: no Ray, no vLLM."""

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from actors.config import NO_CONTEXT_LIMIT
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig, load
from cluster.console.log import info
from cluster.preflight.endpoint import endpoint_of, is_base_url
from cluster.preflight.policy import SCRIPTED_POLICIES, check_hub, check_policy
from cluster.run_folder.paths import LEARNER_FOLDER, RunFolder
from simulators.gym_plugins import known_gyms

if TYPE_CHECKING:
    from actors.engines.protocol import PolicyEngine
    from actors.renderer import Renderer

DEFAULT = "expert"


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRequest:
    """What was asked for on the command line; None where nothing was."""

    policy: str | None = None
    model: str | None = None
    api_key_env: str | None = None

    @property
    def kind(self) -> Literal["script", "endpoint", "folder"]:
        if self.policy is None or self.policy in SCRIPTED_POLICIES:
            return "script"
        return "endpoint" if is_base_url(self.policy) else "folder"


@dataclass(frozen=True, kw_only=True, slots=True)
class Opponent:
    """A policy that is ready to play."""

    engine: "PolicyEngine"
    renderer: "Renderer"
    max_tokens: int
    """Of a dialogue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLocation:
    """Where on this disk a policy lies."""

    path: str
    """A model folder or hub name, or what `checkpoint` says."""
    run: RunFolder | None = None
    """The run that made it, where its folder is around it."""
    checkpoint: Path | None = None
    """Its weights, where they still have the learners' form."""


def check_request(request: PolicyRequest, *, side: str) -> None:
    """Refuses options that do not go together, and names that mean nothing. Raises `BadInput`."""
    if side == "agent" and request.policy is not None:
        raise BadInput(f"--policy={request.policy!r}: you are the agent yourself: add --as user")
    if request.kind != "endpoint":
        for option, value in (("--model", request.model), ("--api-key-env", request.api_key_env)):
            if value is not None:
                raise BadInput(f"{option}={value!r}: goes with a base URL as --policy: leave it out")


def find_policy(path: str) -> PolicyLocation:
    """A run folder's best or last model, or its newest checkpoint; a checkpoint; or a model folder or hub
    name. Raises `BadInput` where it is none of them."""
    folder = Path(path).expanduser()
    run = RunFolder(folder)
    if run.config.exists():
        for model in (run.best_model, run.model):
            if (model / "config.json").exists():
                return PolicyLocation(path=str(model), run=run)
        if run.latest_step is None:
            raise BadInput(f"--policy={path!r}: the run has no checkpoint yet: wait for one, or give a model")
        return PolicyLocation(path=path, run=run, checkpoint=run.checkpoint(run.latest_step))
    if (folder / LEARNER_FOLDER).is_dir():
        around = RunFolder(folder.resolve().parent.parent)
        if not around.config.exists():
            raise BadInput(f"--policy={path!r}: a checkpoint outside its run folder: give a model folder")
        return PolicyLocation(path=path, run=around, checkpoint=folder)
    check_policy(path)
    check_hub(path, key="--policy")
    parent = RunFolder(folder.resolve().parent)
    return PolicyLocation(path=path, run=parent if folder.is_dir() and parent.config.exists() else None)


def with_settings_of(place: PolicyLocation, config: RunConfig, *, overrides: Mapping[str, str]) -> RunConfig:
    """The config, with the turns, lengths and temperature of the run that made the policy, but for those
    that the command line names. Raises `BadInput` where the two do not go together."""
    if place.run is None:
        return config
    sections = ("rollout", "engine")
    named = {key: value for key, value in overrides.items() if key.partition(".")[0] in sections}
    made = load(place.run.config, named)
    return config.model_copy(update={name: getattr(made, name) for name in sections})


def open_policy(request: PolicyRequest, place: PolicyLocation | None, config: RunConfig) -> Opponent:
    """Loads the policy; `place` is that of a folder. Raises `BadInput`."""
    with tempfile.TemporaryDirectory() as scratch:
        if place is None:
            return _endpoint(request, config, Path(scratch))
        return _model(place, config, Path(scratch))


def _endpoint(request: PolicyRequest, config: RunConfig, scratch: Path) -> Opponent:
    from actors.engines.openai_engine import OpenAIEngine
    from actors.renderer import Renderer
    from learners.model.tiny_policy import make_tokenizer

    assert request.policy is not None, "an endpoint has a URL"
    endpoint = endpoint_of(
        request.policy,
        model=request.model,
        api_key_env=request.api_key_env,
        temperature=config.rollout.temperature,
        timeout_s=config.engine.complete_timeout_s,
    )
    # It reads messages; its dialogue is rendered with a tokenizer like any other.
    gyms = known_gyms(config.gyms.modules)
    make_tokenizer(vocab_size=config.policy.tiny.vocab_size, gyms=gyms).save_pretrained(scratch)
    return Opponent(
        engine=OpenAIEngine.connect(scratch, endpoint),
        renderer=Renderer.from_folder(scratch),
        max_tokens=NO_CONTEXT_LIMIT,
    )


def _model(place: PolicyLocation, config: RunConfig, scratch: Path) -> Opponent:
    from transformers.utils.logging import disable_progress_bar

    from actors.engines.transformers_engine import TransformersEngine
    from actors.renderer import Renderer
    from cluster.workers.policy_source import local_folder

    disable_progress_bar()  # it would stand between the lines of the dialogue
    if place.checkpoint is not None and place.run is not None:
        info(f"{place.checkpoint} is being read")
        folder = export_checkpoint(place.run, place.checkpoint, scratch)
    else:
        folder = Path(local_folder(place.path))
    renderer = Renderer.from_folder(folder)
    engine = TransformersEngine(folder, renderer=renderer)
    limits = (config.engine.max_model_len, engine.max_tokens or config.engine.max_model_len)
    return Opponent(engine=engine, renderer=renderer, max_tokens=min(limits))


def export_checkpoint(run: RunFolder, checkpoint: Path, folder: Path) -> Path:
    """Writes a checkpoint's policy into `folder` as transformers loads it, by one learner in this process,
    while the run may still be running. Raises `BadInput` if the checkpoint is deleted meanwhile or
    damaged."""
    import torch

    from cluster.workers.policy_source import local_folder
    from learners.config import LearnerSettings
    from learners.policy_learner import PolicyLearner

    made = load(run.config)
    base = str(run.policy) if made.policy.path is None else local_folder(made.policy.path)
    # Its weights alone are wanted: no reference to compare with, and a GPU only where there is one.
    here = {"kl": "none", "num_gpus_per_learner": int(torch.cuda.is_available())}
    settings = LearnerSettings(
        policy_folder=base,
        learner=made.learner.model_copy(update=here),
        sft=made.sft,
        temperature=made.rollout.temperature,
        seed=made.run.seed,
    )
    learner = PolicyLearner(settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that there is one process, as there should be
            learner.load(str(checkpoint / LEARNER_FOLDER))
    except (OSError, ValueError) as error:
        raise BadInput(f"--policy: {error}") from None
    learner.export(str(folder))
    return folder
