"""Resume log of an evaluation: one line for each finished group of dialogues, so that a killed evaluation
resumes.

One file, next to the report, may hold several policies, each under its own settings. It affects no score.
"""

import fcntl
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from cluster.config.recipe import BadInput
from cluster.evaluation.metrics import DialogueOutcome
from cluster.evaluation.outcomes import from_json, to_json
from cluster.evaluation.report import EvaluationReport
from cluster.run_folder.atomic_files import write_whole

TrialsByTask = dict[tuple[str, str], list[DialogueOutcome]]
"""By simulator and task id: the task's trials."""


class EvaluationLog:
    """One policy's evaluation under one set of settings, in a file that others may share. Use it in
    `with`."""

    def __init__(self, path: Path | None, *, policy: str, settings: Mapping[str, object]):
        """Without a path it remembers nothing beyond this process."""
        self.policy = policy
        self.settings: dict[str, object] = json.loads(json.dumps(settings))
        self.changed: list[str] = []
        """Settings under which dialogues of this policy were there that this evaluation replaces."""
        self._path = path
        self._groups: dict[str, TrialsByTask] = {policy: {}}
        self._settings: dict[str, Mapping[str, object]] = {policy: self.settings}
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        """Reads what is there. Raises `BadInput` where another process evaluates into the same file."""
        if self._path is None:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._path.with_name(f".{self._path.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise BadInput(
                f"{self._path}: another evaluation writes here: wait for it, or give another --output"
            ) from None
        if self._path.exists():
            self._read(self._path)
        if self.changed and self.previous is not None:
            shutil.copyfile(self._path, self.previous)
        # Rewritten without replaced and failed groups and without an incomplete last line.
        write_whole(self._path, "".join(self._lines()))
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._lock.close()

    @property
    def previous(self) -> Path | None:
        """Where the journal of before a replacement is kept."""
        return None if self._path is None else self._path.with_suffix(".previous.jsonl")

    def has(self, simulator: str, task_id: str) -> bool:
        """Whether this task's dialogues are finished, none of them failed."""
        return (simulator, task_id) in self._groups[self.policy]

    def add(self, simulator: str, groups: Sequence[Sequence[DialogueOutcome]]) -> None:
        """Keeps finished groups; what is returned from here survives a kill."""
        for outcomes in groups:
            self._groups[self.policy][(simulator, outcomes[0].task_id)] = list(outcomes)
        if self._file is not None:
            self._file.write("".join(_line(self.policy, outcomes) for outcomes in groups))
            self._file.flush()

    def evaluations(self) -> list[EvaluationReport]:
        """Every policy's, this one's last."""
        others = [policy for policy in self._groups if policy != self.policy and self._groups[policy]]
        return [
            EvaluationReport(
                policy=policy,
                settings=self._settings[policy],
                outcomes=[outcome for group in self._groups[policy].values() for outcome in group],
            )
            for policy in (*others, self.policy)
        ]

    def _read(self, path: Path) -> None:
        theirs: dict[str, object] = {}
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):
                return
            try:
                theirs = self._take(json.loads(line), theirs)
            except (ValueError, KeyError, TypeError) as error:
                raise BadInput(
                    f"{path}: not a journal of evaluations ({type(error).__name__}): "
                    "delete it, or give another --output"
                ) from None

    def _take(self, entry: dict[str, object], theirs: dict[str, object]) -> dict[str, object]:
        """One line: a policy's settings, or one of its groups. `theirs` are this policy's settings so far."""
        policy = str(entry["policy"])
        settings, group = entry.get("settings"), entry.get("group")
        if isinstance(settings, dict):
            if policy == self.policy:
                return settings
            self._settings[policy] = settings
            self._groups[policy] = {}
            return theirs
        if not isinstance(group, list):
            raise ValueError("neither settings nor a group")
        if policy == self.policy and theirs != self.settings:
            self.changed = [
                key for key in self.settings | theirs if self.settings.get(key) != theirs.get(key)
            ]
            return theirs
        outcomes = [from_json(outcome) for outcome in group]
        if policy != self.policy or not any(outcome.failed for outcome in outcomes):
            self._groups[policy][(outcomes[0].simulator, outcomes[0].task_id)] = outcomes
        return theirs

    def _lines(self) -> list[str]:
        lines = []
        for policy, groups in self._groups.items():
            lines.append(json.dumps({"policy": policy, "settings": dict(self._settings[policy])}) + "\n")
            lines += [_line(policy, outcomes) for outcomes in groups.values()]
        return lines


def _line(policy: str, outcomes: Sequence[DialogueOutcome]) -> str:
    return json.dumps({"policy": policy, "group": [to_json(outcome) for outcome in outcomes]}) + "\n"
