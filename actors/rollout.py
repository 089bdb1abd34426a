"""Rollout: a policy and an environment talk until the dialogue ends. Pure async, no Ray; a failure is data,
not a crash."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from actors.config import OnTimeout
from actors.dialogue_slots import DialogueSlots, SlotLease
from actors.early_stop import GroupQuota, StopControl
from actors.engines.protocol import CompletionRequest, EngineError, PolicyEngine, Sampling
from actors.partial_rollouts import CompletedTurn, PublishTurn, ReplayMismatchError, ignore_turn
from actors.renderer import Dialogue, Renderer, parse_tool_call, spoken
from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory, Turn
from simulators.env import Env, Gym, GymEnv, Observation
from simulators.message import Action, Message
from simulators.persona import PersonaMix, draw_persona
from simulators.task import Task, TaskKey
from simulators.user import SimulatorError, User
from simulators.users.quality_metrics import UserTurn, count


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutContext:
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
    room: DialogueSlots | None = None
    """Where whoever begins a group has taken a place for each of its dialogues. None: there is no limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """How far a dialogue had come, and whom to tell how it goes on."""

    begun: Sequence[CompletedTurn] = ()
    """Its first turns, which are over: they are gone through again, and neither engine nor user is asked."""
    tell: Callable[[int, Turn], None] = lambda index, turn: None
    """(index of the turn, turn)."""


async def rollout_group(
    order: GroupOrder,
    setting: RolloutContext,
    *,
    begun: Mapping[int, Sequence[CompletedTurn]] | None = None,
    tell: PublishTurn = ignore_turn,
) -> list[Trajectory]:  # [num_dialogues]
    """All trajectories of one task, at once; those that are still going on when `group_size` of them have
    ended by themselves are cut. `begun`, by trajectory, are turns that somebody else has played."""
    seeds = np.random.SeedSequence([order.seed, order.group_id]).generate_state(order.num_dialogues)
    limit_s = setting.dialogue_timeout_s if setting.on_timeout == "mask" else None
    cuts = [StopControl(limit_s=limit_s) for _ in seeds]
    enough = GroupQuota(order.group_size, cuts=cuts)

    async def play(index: int, cut: StopControl) -> Trajectory:
        course = ResumePoint(begun=(begun or {}).get(index, ()), tell=partial(tell, index))
        played = await rollout(order.task_key, setting, seed=int(seeds[index]), cut=cut, course=course)
        return enough.note(played)

    return list(await asyncio.gather(*(play(index, cut) for index, cut in enumerate(cuts))))


NEW = ResumePoint()


async def rollout(
    key: TaskKey,
    setting: RolloutContext,
    *,
    seed: int,
    cut: StopControl | None = None,
    course: ResumePoint = NEW,
) -> Trajectory:
    """One dialogue. Whatever fails outside the policy ends it with its own stop reason and is never a
    score; neither is what is `cut`."""
    slice_s = setting.dialogue_timeout_s if setting.on_timeout == "resume" else None
    place = SlotLease(setting.room, slice_s=slice_s) if setting.room else None
    play = partial(_play, key, setting, seed=seed, cut=cut or StopControl(limit_s=None), place=place)
    try:
        return await play(course=course)
    except ReplayMismatchError:  # a gym that was changed meanwhile
        return await play(course=replace(course, begun=()))
    finally:
        if place:
            place.leave()


async def _play(
    key: TaskKey,
    setting: RolloutContext,
    *,
    seed: int,
    cut: StopControl,
    place: SlotLease | None,
    course: ResumePoint,
) -> Trajectory:
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
        talk = _talk(
            env, observation, setting, engine=engine, turns=turns, seed=seed, place=place, course=course
        )
        stop_reason = await cut.bound(talk)
        await env.close()
    except SimulatorError as failure:
        stop_reason, error, simulator = StopReason(failure.failure), str(failure), failure.simulator
    except EngineError as failure:
        stop_reason, error = StopReason.ENGINE_ERROR, str(failure)
    except ReplayMismatchError:
        raise
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
    setting: RolloutContext,
    *,
    engine: PolicyEngine,
    turns: list[Turn],
    seed: int,
    place: SlotLease | None,
    course: ResumePoint,
) -> StopReason:
    """Takes turns until the end, those that are over already first; appends each to `turns` as soon as it is
    complete. Raises OtherFeedbackError where one that was over comes out otherwise."""
    opening = [
        Message(role="system", content=observation.system),
        Message(role="user", content=observation.opening),
    ]
    dialogue = setting.renderer.begin(opening)
    while len(dialogue.token_ids) + setting.sampling.max_completion_tokens <= setting.max_tokens:
        index = len(turns)
        over = course.begun[index] if index < len(course.begun) else None
        if over is None:
            turn = await _complete(dialogue, setting, engine=engine, seed=seed, turn=index, place=place)
        else:
            turn = _turn_of(dialogue, over.completion, setting)
        if turn.action is None:
            turns.append(replace(turn, **over.seconds) if over else turn)
            if not over:
                course.tell(index, turn)
            return StopReason.NO_TOOL_CALL
        started = time.perf_counter()
        step = await env.step(str(turn.action), known=over.user_reply if over else None)
        env_s = time.perf_counter() - started
        turn = replace(
            turn,
            feedback=step.feedback,
            reward=step.reward,
            progress=step.progress,
            news=step.news,
            user_s=step.user_s,
            tool_s=max(0.0, env_s - step.user_s),
            user_reply=step.user_reply,
        )
        if over is None:
            course.tell(index, turn)
        elif step.feedback == over.feedback:
            turn = replace(turn, **over.seconds)
        else:
            raise ReplayMismatchError
        turns.append(turn)
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
    setting: RolloutContext,
    *,
    engine: PolicyEngine,
    seed: int,
    turn: int,
    place: SlotLease | None,
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
    return replace(
        _turn_of(dialogue, completion, setting),
        policy_s=max(0.0, waited_s - completion.queue_s),
        queue_s=started - began + min(completion.queue_s, waited_s),
    )


def _turn_of(dialogue: Dialogue, completion: Completion, setting: RolloutContext) -> Turn:
    """A completion as it stands in its dialogue, before anybody has answered it."""
    text = setting.renderer.decode(completion.token_ids)
    return Turn(
        context_ids=dialogue.context_ids,
        forked=dialogue.forked,
        completion=completion,
        text=text,
        action=parse_tool_call(text),
        feedback="",
        reward=0.0,
    )
