"""Ray for tests that need none: references that are done when the test says so, and actors that answer with
them."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError


class Reference:
    """What a call returns: nothing yet, or an outcome. Compared by identity, as Ray's are by id."""

    def __init__(self) -> None:
        self.is_done = False
        self.outcome: object = None

    def done(self, outcome: object = None) -> None:
        """An exception is raised by `ray.get`."""
        self.is_done, self.outcome = True, outcome


class FakeActor:
    """A handle: every call is remembered by its method's name, and open until the test ends it."""

    def __init__(self, name: object):
        self.name = name
        self.calls: list[tuple[str, tuple[Any, ...], Reference]] = []
        self.is_killed = False

    def __getattr__(self, method: str) -> SimpleNamespace:
        if method.startswith("_"):
            raise AttributeError(method)
        return SimpleNamespace(remote=lambda *args, **kwargs: self._call(method, args))

    def open_calls(self, method: str) -> list[Reference]:
        return [one for name, _, one in self.calls if name == method and not one.is_done]

    def end(self, method: str, outcome: object = None) -> None:
        """The oldest open call of this method."""
        self.open_calls(method)[0].done(outcome)

    def die(self) -> None:
        """All open calls fail, and all later ones."""
        self.is_killed = True
        for _, _, reference in self.calls:
            if not reference.is_done:
                reference.done(RayActorError())

    def _call(self, method: str, args: tuple[Any, ...]) -> Reference:
        reference = Reference()
        self.calls.append((method, args, reference))
        if self.is_killed:
            reference.done(RayActorError())
        return reference


def use_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.get`, `ray.wait`, `ray.kill`, `ray.put` and `ray.remote` as these fakes need them."""

    def get(references: Any, timeout: float | None = None) -> Any:
        if isinstance(references, list):
            return [get(one) for one in references]
        if not isinstance(references, Reference):
            return references
        assert references.is_done, "the caller would wait for ever"
        if isinstance(references.outcome, RayError):
            raise references.outcome
        if isinstance(references.outcome, Exception):  # as Ray brings what an actor raised
            raise RayTaskError(
                "call", f"Traceback\n{references.outcome}", references.outcome
            ).as_instanceof_cause()
        return references.outcome

    def wait(
        references: Sequence[Any], *, num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Any], list[Any]]:
        done = [one for one in references if one.is_done]
        return done, [one for one in references if not one.is_done]

    def remote(work: Callable[..., Any]) -> SimpleNamespace:
        task = SimpleNamespace(remote=lambda *args: None)
        return SimpleNamespace(options=lambda **options: task)

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "kill", lambda actor, **how: actor.die())
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "remote", remote)
