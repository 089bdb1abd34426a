"""Rollout: plays dialogues between a policy and an environment, alone or as a group. Pure async, no Ray; a
failure is data and raises nothing."""

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
from actors.partial_rollouts import (
    CompletedTurn,
    CompletedTurns,
    PublishTurn,
    ReplayMismatchError,
    ignore_turn,
)
from actors.renderer import Dialogue, Renderer
from actors.tool_call_parser import parse_tool_call, text_before_call
from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory, Turn
from simulators.env import Env, GymEnv, Observation, TurnResult
from simulators.gym import Gym
from simulators.message import Action, Message
from simulators.persona import PersonaMix, draw_persona
from simulators.task import Task, TaskKey
from simulators.user import SimulatorError, User
from simulators.users.quality_metrics import UserTurn, count_gauges


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutContext:
    """All that a dialogue needs besides its task."""

    engine_for: Callable[[Task, int], PolicyEngine]
    """(task, seed) to the policy's engine: a script is made for each dialogue, a model's engine is shared."""
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
    slots: DialogueSlots | None = None
    """The caller of `rollout_group` has acquired a slot for each dialogue of the group. None: no limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """How far a dialogue had come."""

    completed: Sequence[CompletedTurn] = ()
    """Its first turns: replayed without asking engine or user."""
    publish: Callable[[int, Turn], None] = lambda index, turn: None
    """(index of the turn, turn): called for every turn that is played live."""


async def rollout_group(
    order: GroupOrder,
    context: RolloutContext,
    *,
    partial_rollouts: CompletedTurns | None = None,
    publish: PublishTurn = ignore_turn,
) -> list[Trajectory]:  # [num_dialogues]
    """All trajectories of one task, in parallel; those still running when `group_size` of them have ended by
    themselves are stopped. `partial_rollouts` are turns, by trajectory, that an earlier actor has
    completed."""
    seeds = np.random.SeedSequence([order.seed, order.group_id]).generate_state(order.num_dialogues)
    limit_s = context.dialogue_timeout_s if context.on_timeout == "mask" else None
    stops = [StopControl(limit_s=limit_s) for _ in seeds]
    quota = GroupQuota(order.group_size, stops=stops)

    async def play(index: int, stop: StopControl) -> Trajectory:
        completed = (partial_rollouts or {}).get(index, ())
        resume = ResumePoint(completed=completed, publish=partial(publish, index))
        played = await rollout(order.task_key, context, seed=int(seeds[index]), stop=stop, resume=resume)
        return quota.count(played)

    return list(await asyncio.gather(*(play(index, stop) for index, stop in enumerate(stops))))


START = ResumePoint()


async def rollout(
    key: TaskKey,
    context: RolloutContext,
    *,
    seed: int,
    stop: StopControl | None = None,
    resume: ResumePoint = START,
) -> Trajectory:
    """One dialogue. A failure outside the policy, and a `stop`, end it with their own stop reason and are
    never scored."""
    slice_s = context.dialogue_timeout_s if context.on_timeout == "resume" else None
    lease = SlotLease(context.slots, slice_s=slice_s) if context.slots else None
    play = partial(_play, key, context, seed=seed, stop=stop or StopControl(limit_s=None), lease=lease)
    try:
        return await play(resume=resume)
    except ReplayMismatchError:  # the gym was changed in between
        return await play(resume=replace(resume, completed=()))
    finally:
        if lease:
            lease.end()


async def _play(
    key: TaskKey,
    context: RolloutContext,
    *,
    seed: int,
    stop: StopControl,
    lease: SlotLease | None,
    resume: ResumePoint,
) -> Trajectory:
    turns: list[Turn] = []
    observation = Observation(system="", opening="")
    error = simulator = ""
    scenario: Mapping[str, Any] = {}
    gold: Sequence[Action] = ()
    # One persona for the whole group: its trajectories are compared with each other.
    persona = draw_persona(context.personas, seed=key.task_id)
    try:
        gym = context.gyms[key.gym]
        task = gym.make_task(key)
        scenario, gold = task.scenario, gym.gold_actions(task)
        engine = context.engine_for(task, seed)
        env = GymEnv(gym, task=task, user=context.user, persona=persona, max_turns=context.max_turns)
        observation = await env.reset()
        dialogue = _RunningDialogue(
            context=context,
            env=env,
            engine=engine,
            seed=seed,
            lease=lease,
            turns=turns,
            rendered=context.renderer.begin(_messages(observation)),
        )
        stop_reason = await stop.run(dialogue.run(resume))
        await env.close()
    except SimulatorError as failure:
        stop_reason, error, simulator = StopReason(failure.failure), str(failure), failure.simulator
    except EngineError as failure:
        stop_reason, error = StopReason.ENGINE_ERROR, str(failure)
    except ReplayMismatchError:
        raise
    except Exception as failure:  # a gym's own bug must not end the run: it is counted, and its text kept
        stop_reason, error = StopReason.ERROR, f"{type(failure).__name__}: {failure}"
    user_turns = [
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
        simulator=simulator or next((turn.reply.simulator for turn in user_turns), ""),
        gauges=count_gauges(scenario, user_turns, user_left=stop_reason is StopReason.USER_LEFT),
        gold=gold,
    )


def _messages(observation: Observation) -> list[Message]:
    return [
        Message(role="system", content=observation.system),
        Message(role="user", content=observation.opening),
    ]


@dataclass(kw_only=True, slots=True, eq=False)
class _RunningDialogue:
    """Plays the turns of one dialogue."""

    context: RolloutContext
    env: Env
    engine: PolicyEngine
    seed: int
    lease: SlotLease | None
    turns: list[Turn]
    """The complete turns so far."""
    rendered: Dialogue
    """What the next completion continues."""

    async def run(self, resume: ResumePoint) -> StopReason:
        """Replays the completed turns, then plays live ones until the end. Raises `ReplayMismatchError` if
        the environment's reply to a completed turn is not the recorded one."""
        for completed in resume.completed:
            if stop_reason := self._end_of_context() or await self._replay_turn(completed):
                return stop_reason
        while True:
            if stop_reason := self._end_of_context() or await self._play_turn(resume.publish):
                return stop_reason

    def _end_of_context(self) -> StopReason | None:
        """MAX_TOKENS if a further turn might not fit. Raises ValueError if not even the first one does."""
        sampling, limit = self.context.sampling, self.context.max_tokens
        if len(self.rendered.token_ids) + sampling.max_completion_tokens <= limit:
            return None
        if not self.turns:
            raise ValueError(f"the opening leaves no room for a turn: max_model_len={limit} is too small")
        return StopReason.MAX_TOKENS

    async def _replay_turn(self, completed: CompletedTurn) -> StopReason | None:
        turn, result = self._turn_of(completed.completion), None
        if turn.action is not None:
            result = await self.env.step(str(turn.action), known=completed.user_reply)
            if result.feedback != completed.feedback:
                raise ReplayMismatchError
            turn = _with_result(turn, result)
        return self._end_turn(replace(turn, **completed.seconds), result)

    async def _play_turn(self, publish: Callable[[int, Turn], None]) -> StopReason | None:
        turn, result = await self._complete(), None
        if turn.action is not None:
            started = time.perf_counter()
            result = await self.env.step(str(turn.action))
            env_s = time.perf_counter() - started
            turn = replace(_with_result(turn, result), tool_s=max(0.0, env_s - result.user_s))
        publish(len(self.turns), turn)
        return self._end_turn(turn, result)

    def _end_turn(self, turn: Turn, result: TurnResult | None) -> StopReason | None:
        """Appends the complete turn. None: the dialogue continues, with another prompt."""
        self.turns.append(turn)
        if result is None:
            return StopReason.NO_TOOL_CALL
        if result.terminated:
            return StopReason.TERMINATED
        if result.truncated:
            return StopReason.MAX_TURNS
        self.rendered = self.context.renderer.extend(
            self.rendered,
            completion_ids=turn.completion.token_ids,
            message=Message(role="assistant", content=text_before_call(turn.text), action=turn.action),
            reply=Message(role="tool", content=result.feedback),
        )
        return None

    async def _complete(self) -> Turn:
        """The policy's half of the next turn."""
        began = time.perf_counter()
        if self.lease:
            await self.lease.renew()
        started = time.perf_counter()
        completion = await self.engine.complete(
            CompletionRequest(
                token_ids=self.rendered.token_ids,
                messages=self.rendered.messages,
                sampling=self.context.sampling,
                seed=(self.seed + len(self.turns)) % 2**31,
                dialogue=self.seed,
            )
        )
        waited_s = time.perf_counter() - started
        if not np.isfinite(completion.logprobs).all():
            raise EngineError("a token of the completion has a logprob that is not finite")
        return replace(
            self._turn_of(completion),
            policy_s=max(0.0, waited_s - completion.queue_s),
            queue_s=started - began + min(completion.queue_s, waited_s),
        )

    def _turn_of(self, completion: Completion) -> Turn:
        """The turn before the environment has replied."""
        text = self.context.renderer.decode(completion.token_ids)
        return Turn(
            context_ids=self.rendered.context_ids,
            forked=self.rendered.forked,
            completion=completion,
            text=text,
            action=parse_tool_call(text),
            feedback="",
            reward=0.0,
        )


def _with_result(turn: Turn, result: TurnResult) -> Turn:
    return replace(
        turn,
        feedback=result.feedback,
        reward=result.reward,
        progress=result.progress,
        news=result.observation_key,
        user_reply=result.user_reply,
        user_s=result.user_s,
    )
