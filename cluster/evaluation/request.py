"""Arguments of `userrl evaluate`, validated before anything heavy starts. Every refusal is one line."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.preflight.checks import check
from cluster.preflight.endpoint import endpoint_of, is_base_url
from cluster.preflight.policy import SCRIPTED_POLICIES, check_hub, check_policy
from simulators.config import SimulatorConfig
from simulators.llm_client.client import ChatConfig
from simulators.task import Split

PolicyKind = Literal["script", "folder", "endpoint"]
SIBLINGS = (".md", ".parquet", ".dialogues.jsonl")
"""Files written next to the JSON: the Markdown report, one Parquet row a dialogue, and the resume log of a
killed evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRequest:
    """One evaluation of one policy, besides its recipe."""

    policy: str
    """As it was given: a script's name, a folder or hub name, a base URL."""
    endpoint: ChatConfig | None
    """Where the policy is a base URL."""
    simulators: tuple[str, ...]
    split: Split
    num_trials: int
    success_score: float
    output: Path | None
    as_json: bool

    @property
    def kind(self) -> PolicyKind:
        if self.endpoint is not None:
            return "endpoint"
        return "script" if self.policy in SCRIPTED_POLICIES else "folder"

    @property
    def name(self) -> str:
        """What rows call the policy: an endpoint may have several models."""
        return self.policy if self.endpoint is None else f"{self.policy}#{self.endpoint.model}"


def make_request(
    config: RunConfig,
    *,
    policy: str,
    model: str | None,
    api_key_env: str | None,
    simulators: str,
    split: Split,
    num_trials: int,
    success_score: float,
    output: Path | None,
    as_json: bool,
) -> EvaluationRequest:
    """The request, if it can be met. Raises `BadInput`."""
    if not is_base_url(policy):
        check_policy(policy)
        for option, value in (("--model", model), ("--api-key-env", api_key_env)):
            if value is not None:
                raise BadInput(f"{option}={value!r}: goes with a base URL as --policy: leave it out")
    if num_trials < 1:
        raise BadInput(f"--trials={num_trials}: each task is played at least once: give 1 or more")
    names = _simulators(simulators, config.simulator)
    if output is not None:
        check_output(output)
    check_data(config)
    check(with_users(config, names))
    check_hub(None if is_base_url(policy) else policy, key="--policy")
    endpoint = None
    if is_base_url(policy):
        endpoint = endpoint_of(
            policy,
            model=model,
            api_key_env=api_key_env,
            temperature=config.rollout.temperature,
            timeout_s=config.engine.complete_timeout_s,
        )
    return EvaluationRequest(
        policy=policy,
        endpoint=endpoint,
        simulators=names,
        split=split,
        num_trials=num_trials,
        success_score=success_score,
        output=output,
        as_json=as_json,
    )


def _simulators(text: str, config: SimulatorConfig) -> tuple[str, ...]:
    if text == "all":
        return tuple(user.name for user in config.users)
    try:
        return tuple(dict.fromkeys(config.named(name.strip()).name for name in text.split(",")))
    except ValueError as error:
        raise BadInput(f"--simulators: {error}") from None


def with_users(config: RunConfig, names: Sequence[str]) -> RunConfig:
    """The recipe with these users only, so that no other one's model is started and no other one's key is
    asked for. A user that is kept out of training has a weight of 0, and plays here all the same."""
    users = tuple(
        config.simulator.named(name).model_copy(update={"weight": 1.0}) for name in dict.fromkeys(names)
    )
    return config.model_copy(update={"simulator": config.simulator.model_copy(update={"users": users})})


def check_data(config: RunConfig) -> None:
    """The files of published tasks can be read. Raises `BadInput`, with file, row and field."""
    try:
        config.gyms.open()
    except ValueError as error:
        raise BadInput(str(error)) from None


def check_output(output: Path) -> None:
    """Report and siblings can be written, and what is there is a report. Raises `BadInput`; writes
    nothing."""
    if output.suffix in (".md", ".parquet", ".jsonl"):
        raise BadInput(
            f"--output={output}: names the JSON file, not the {output.suffix} next to it: end it with .json"
        )
    for path in (output, *(output.with_suffix(suffix) for suffix in SIBLINGS)):
        if path.is_dir():
            raise BadInput(f"--output={output}: {path} is a folder: give a file, such as {path / 'e.json'}")
    place = output.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise BadInput(f"--output={output}: {place} is a file, not a folder: give another place")
    try:
        tempfile.TemporaryFile(dir=place).close()  # what a folder's mode says, a read-only disk may deny
    except OSError as error:
        raise BadInput(
            f"--output={output}: {place} cannot be written ({error.strerror}): give another place"
        ) from None
    if output.exists():
        _check_is_report(output)


def _check_is_report(output: Path) -> None:
    try:
        rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
        is_report = isinstance(rows, list) and all({"stage", "gym", "score"} <= row.keys() for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        is_report = False
    if not is_report:
        raise BadInput(f"--output={output}: is there already and no evaluation: give another file")
