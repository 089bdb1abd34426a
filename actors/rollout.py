"""Rollout: a policy and an environment talk until the dialogue ends. Pure async, no Ray; a failure is data,
not a crash."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.config import OnTimeout
from actors.cut import Cut, Enough
from actors.engine import CompletionRequest, EngineError, PolicyEngine, Sampling
from actors.renderer import Dialogue, Renderer, parse_tool_call, spoken
from actors.room import Place, Room
from actors.trajectory import GroupOrder, StopReason, Trajectory, Turn
from simulators.env import Env, Gym, GymEnv, Observation
from simulators.gauges import UserTurn, count
from simulators.message import Action, Message
from simulators.persona import PersonaMix, draw_persona
from simulators.task import Task, TaskKey
from simulators.user import SimulatorError, User


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """All that a dialogue needs besides its task."""

    engine_for: Callable[[Task, int], PolicyEngine]
    """(task, seed) to who speaks for the policy: a script is made for each dialogue, a model's engine is
    shared."""
    user: User
    renderer: Renderer
    sampling: Sampling
    gyms: Mapping[str, Gym]
    personas: PersonaMix
    max_turns: int | None
    """None: each gym's own budget."""
    max_tokens: int
    """Longest token sequence of a dialogue: the engine's context."""
    dialogue_timeout_s: float | None = None
    on_timeout: OnTimeout = "mask"
    room: Room | None = None
    """Where whoever begins a group has taken a place for each of its dialogues. None: there is no limit."""


async def rollout_group(order: GroupOrder, setting: Setting) -> list[Trajectory]:  # [num_dialogues]
    """All trajectories of one task, at once; those that are still going on when `group_size` of them have
    ended by themselves are cut."""
    seeds = np.random.SeedSequence([order.seed, order.group_id]).generate_state(order.num_dialogues)
    limit_s = setting.dialogue_timeout_s if setting.on_timeout == "mask" else None
    cuts = [Cut(limit_s=limit_s) for _ in seeds]
    enough = Enough(order.group_size, cuts=cuts)

    async def play(seed: int, cut: Cut) -> Trajectory:
        return enough.note(await rollout(order.task_key, setting, seed=seed, cut=cut))

    dialogues = (play(int(seed), cut) for seed, cut in zip(seeds, cuts, strict=True))
    return list(await asyncio.gather(*dialogues))


async def rollout(key: TaskKey, setting: Setting, *, seed: int, cut: Cut | None = None) -> Trajectory:
    """One dialogue. Whatever fails outside the policy ends it with its own stop reason and is never a
    score; neither is what is `cut`."""
    slice_s = setting.dialogue_timeout_s if setting.on_timeout == "resume" else None
    place = Place(setting.room, slice_s=slice_s) if setting.room else None
    try:
        return await _play(key, setting, seed=seed, cut=cut or Cut(limit_s=None), place=place)
    finally:
        if place:
            place.leave()


async def _play(key: TaskKey, setting: Setting, *, seed: int, cut: Cut, place: Place | None) -> Trajectory:
    turns: list[Turn] = []
    observation = Observation(system="", opening="")
    error = simulator = ""
    scenario: Mapping[str, Any] = {}
    gold: Sequence[Action] = ()
    # The same person for the whole group: its trajectories are compared with each other.
    persona = draw_persona(setting.personas, seed=key.task_id)
    try:
        gym = setting.gyms[key.gym]
        task = gym.make_task(key)
        scenario, gold = task.scenario, gym.gold(task)
        engine = setting.engine_for(task, seed)
        env = GymEnv(gym, task=task, user=setting.user, persona=persona, max_turns=setting.max_turns)
        observation = await env.reset()
        talk = _talk(env, observation, setting, engine=engine, turns=turns, seed=seed, place=place)
        stop_reason = await cut.bound(talk)
        await env.close()
    except SimulatorError as failure:
        stop_reason, error, simulator = StopReason(failure.failure), str(failure), failure.simulator
    except EngineError as failure:
        stop_reason, error = StopReason.ENGINE_ERROR, str(failure)
    except Exception as failure:  # a gym's own bug must not end the run: it is counted, and its text kept
        stop_reason, error = StopReason.ERROR, f"{type(failure).__name__}: {failure}"
    asked = [
        UserTurn(question=turn.action.content, reply=turn.user_reply)
        for turn in turns
        if turn.action and turn.user_reply
    ]
    return Trajectory(
        task_key=key,
        system=observation.system,
        opening=observation.opening,
        turns=turns,
        stop_reason=stop_reason,
        error=error,
        persona=persona.name,
        simulator=simulator or next((turn.reply.simulator for turn in asked), ""),
        gauges=count(scenario, asked, user_left=stop_reason is StopReason.USER_LEFT),
        gold=gold,
    )


async def _talk(
    env: Env,
    observation: Observation,
    setting: Setting,
    *,
    engine: PolicyEngine,
    turns: list[Turn],
    seed: int,
    place: Place | None,
) -> StopReason:
    """Takes turns until the end; appends each to `turns` as soon as it is complete."""
    opening = [
        Message(role="system", content=observation.system),
        Message(role="user", content=observation.opening),
    ]
    dialogue = setting.renderer.begin(opening)
    while len(dialogue.token_ids) + setting.sampling.max_completion_tokens <= setting.max_tokens:
        turn = await _complete(dialogue, setting, engine=engine, seed=seed, turn=len(turns), place=place)
        if turn.action is None:
            turns.append(turn)
            return StopReason.NO_TOOL_CALL
        started = time.perf_counter()
        step = await env.step(str(turn.action))
        env_s = time.perf_counter() - started
        turns.append(
            replace(
                turn,
                feedback=step.feedback,
                reward=step.reward,
                progress=step.progress,
                news=step.news,
                user_s=step.user_s,
                tool_s=max(0.0, env_s - step.user_s),
                user_reply=step.user_reply,
            )
        )
        if step.terminated:
            return StopReason.TERMINATED
        if step.truncated:
            return StopReason.MAX_TURNS
        dialogue = setting.renderer.extend(
            dialogue,
            completion_ids=turn.completion.token_ids,
            said=Message(role="assistant", content=spoken(turn.text), action=turn.action),
            reply=Message(role="tool", content=step.feedback),
        )
    if not turns:
        raise ValueError(
            f"the opening leaves no room for a turn: max_model_len={setting.max_tokens} is too small"
        )
    return StopReason.MAX_TOKENS


async def _complete(
    dialogue: Dialogue,
    setting: Setting,
    *,
    engine: PolicyEngine,
    seed: int,
    turn: int,
    place: Place | None,
) -> Turn:
    """The policy's half of a turn; `seed` is the dialogue's."""
    began = time.perf_counter()
    if place:
        await place.keep()
    started = time.perf_counter()
    completion = await engine.complete(
        CompletionRequest(
            token_ids=dialogue.token_ids,
            messages=dialogue.messages,
            sampling=setting.sampling,
            seed=(seed + turn) % 2**31,
            dialogue=seed,
        )
    )
    waited_s = time.perf_counter() - started
    if not np.isfinite(completion.logprobs).all():
        raise EngineError("a token of the completion has a logprob that is not finite")
    text = setting.renderer.decode(completion.token_ids)
    return Turn(
        context_ids=dialogue.context_ids,
        forked=dialogue.forked,
        completion=completion,
        text=text,
        action=parse_tool_call(text),
        feedback="",
        reward=0.0,
        policy_s=max(0.0, waited_s - completion.queue_s),
        queue_s=started - began + min(completion.queue_s, waited_s),
    )
