"""A person in the terminal as the simulated user: shows scenario and agent messages, reads the person's
verdict.

The verdict has the schema of the gym's LLM form: a person decides exactly what a model would, and the gym's
rules compute reply and reward. The event loop is never blocked.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jsonschema

from simulators.gym import Gym
from simulators.user import Failure, SimulatorError, User, UserCall, UserReply
from simulators.users.persona_style import apply_persona
from simulators.users.rule_user import unknown_gym

PATIENCE_S = 3600.0
"""Longest wait for one line."""
MAX_TRIES = 5
"""Invalid lines before the call fails."""
NAME = "human"


class HumanUser:
    """A `User` at the terminal. Concurrent dialogues wait for each other: there is one terminal."""

    def __init__(
        self,
        gyms: Mapping[str, Gym],
        *,
        rules: User,
        read_line: Callable[[str], str] = input,
        show: Callable[[str], None] = print,
        timeout_s: float = PATIENCE_S,
    ):
        """`rules` replies, under its own name, in gyms without an LLM form. `read_line` may block, and
        raises EOFError at the end."""
        self._gyms = gyms
        self._rules = rules
        self._read_line = read_line
        self._show = show
        self._timeout_s = timeout_s
        self._terminal = asyncio.Lock()

    async def reply(self, call: UserCall) -> UserReply:
        """Asks the person. Raises `SimulatorError`: USER_LEFT (end of input), TIMEOUT, INVALID_VERDICT."""
        if call.gym not in self._gyms:
            raise SimulatorError(unknown_gym(call.gym, known=list(self._gyms)))
        role = self._gyms[call.gym].llm_role
        if role is None:
            return await self._rules.reply(call)
        began = time.monotonic()
        async with self._terminal:
            if not call.history:
                scenario = json.dumps(dict(call.scenario), ensure_ascii=False)
                self._show(f"\n--- {call.gym}: you are the user ---\n{role.instructions(call)}\n{scenario}")
            self._show(f"\nThe agent ({call.choice}): {printable(call.question)}")
            verdict = await self._verdict(role.schema(call))
            rng = random.Random(f"user-{call.gym}-{call.seed}-{len(call.history)}")
            reply = apply_persona(role.read(call, verdict), call, rng)
            self._show(f"You say: {reply.text}")
        return replace(reply, simulator=NAME, latency_s=time.monotonic() - began)

    async def _verdict(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """One value per property; asks until it is valid."""
        return {
            name: await self._value(name, spec, is_required=name in schema.get("required", ()))
            for name, spec in schema.get("properties", {}).items()
        }

    async def _value(self, name: str, spec: Mapping[str, Any], *, is_required: bool) -> Any:
        choices = choices_of(spec)
        if choices:
            menu = "\n".join(f"  {at}. {_shown(choice)}" for at, choice in enumerate(choices, start=1))
            self._show(f"{name}:\n{menu}")
        hint = f"1-{len(choices)}" if choices else str(spec.get("type", "text"))
        for _ in range(MAX_TRIES):
            line = (await self._line(f"{name} ({hint}): ")).strip()
            try:
                return parse_line(line, spec)
            except ValueError as error:
                self._show(f"{error}")
        text = f"{NAME}: {MAX_TRIES} lines for {name!r}, and none fits its menu"
        raise SimulatorError(text, Failure.INVALID_VERDICT, NAME)

    async def _line(self, prompt: str) -> str:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.to_thread(self._read_line, prompt)
        except TimeoutError:
            text = f"{NAME}: nothing was typed within {self._timeout_s:g} s"
            raise SimulatorError(text, Failure.TIMEOUT, NAME) from None
        except EOFError:
            raise SimulatorError(f"{NAME}: the input ended", Failure.USER_LEFT, NAME) from None


def choices_of(spec: Mapping[str, Any]) -> list[Any]:
    """The values to pick from; empty where a property is free text or a number."""
    if "const" in spec:
        return [spec["const"]]
    if "enum" in spec:
        return list(spec["enum"])
    return [True, False] if spec.get("type") == "boolean" else []


def parse_line(line: str, spec: Mapping[str, Any]) -> Any:
    """The value of a typed line: a number of the menu, a choice itself, a number, or text. Raises ValueError
    with the rule and the cure."""
    choices = choices_of(spec)
    if choices:
        if line.isdecimal() and 1 <= int(line) <= len(choices):
            return choices[int(line) - 1]
        named = [choice for choice in choices if _shown(choice).lower() == line.lower()]
        if len(named) == 1:
            return named[0]
        raise ValueError(f"{line!r} is not on the menu: type a number from 1 to {len(choices)}")
    value: Any = line
    if spec.get("type") in ("integer", "number"):
        try:
            value = int(line) if spec["type"] == "integer" else float(line)
        except ValueError:
            raise ValueError(f"{line!r} is not a number: type one") from None
    problem = next(jsonschema.Draft202012Validator(spec).iter_errors(value), None)
    if problem is not None:
        raise ValueError(f"{problem.message}: type another")
    return value


def printable(text: str) -> str:
    """The agent's text without terminal control characters: it comes from a policy in training."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")


def _shown(choice: object) -> str:
    return {True: "yes", False: "no", None: "none"}[choice] if choice in (True, False, None) else str(choice)
