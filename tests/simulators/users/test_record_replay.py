"""Recording and replay: a replay gives the recorded replies and no others."""

import asyncio
import json
import multiprocessing
import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from simulators.env import GymEnv, TurnResult
from simulators.gyms import GYMS
from simulators.llm_client.client import ChatClient, ChatConfig
from simulators.persona import Persona, draw_persona
from simulators.user import Failure, SimulatorError, User, UserCall, UserReply
from simulators.users.llm_user import LlmUser
from simulators.users.persona_style import persona_aware
from simulators.users.record_replay import RecordingUser, ReplayUser, key_of
from simulators.users.rule_user import RuleUser
from tests.fake_endpoint import serve_endpoint
from tests.fakes import make_tasks

CALL = UserCall(gym="travel", scenario={"wish": ["sea"]}, question="Which view?", seed=3, view={"turn": 1})


@dataclass
class Moody:
    """Never answers twice alike; the first `num_failures` calls fail."""

    num_failures: int = 0
    calls: list[UserCall] = field(default_factory=list)

    async def reply(self, call: UserCall) -> UserReply:
        self.calls.append(call)
        await asyncio.sleep(0.001)
        if len(self.calls) <= self.num_failures:
            raise SimulatorError("not today", Failure.TIMEOUT)
        return UserReply(
            text=f"reply {len(self.calls)}", facts={"n": len(self.calls)}, num_tokens=9, latency_s=1.0
        )


async def play_all(user: User, *, num: int = 8) -> list[list[TurnResult]]:
    """Experts' dialogues, with varied personas."""

    async def play(index: int) -> list[TurnResult]:
        task = make_tasks("travel", num=index + 1)[index]
        persona = draw_persona("varied", seed=str(index))
        env = GymEnv(GYMS["travel"], task=task, user=user, persona=persona)
        rng = random.Random(index)
        texts = [str(GYMS["travel"].random_action(task, rng)) for _ in range(10)]
        return [await env.step(text) for text in texts if not env._over]

    return list(await asyncio.gather(*(play(index) for index in range(num))))


def replies_of(dialogues: Sequence[Sequence[TurnResult]]) -> list[UserReply]:
    """With what the first asker paid left out."""
    replies = [step.user_reply for steps in dialogues for step in steps if step.user_reply]
    return [replace(reply, num_tokens=0, latency_s=0.0, num_retries=0, concurrency=0) for reply in replies]


async def test_a_run_is_repeated_without_its_user(tmp_path: Path):
    recorded = await play_all(RecordingUser(Moody(), tmp_path, gyms=GYMS))
    replayed = await play_all(ReplayUser(tmp_path, gyms=GYMS))
    assert replies_of(recorded) == replies_of(replayed) and len(replies_of(recorded)) > 10
    assert [[step.feedback for step in steps] for steps in recorded] == [
        [step.feedback for step in steps] for steps in replayed
    ]


@pytest.mark.parametrize("gym", GYMS)
async def test_an_experts_dialogue_in_any_gym_is_replayed_to_the_letter(gym: str, tmp_path: Path):
    async def talk(user: User) -> list[TurnResult]:
        task = make_tasks(gym, num=1)[0]
        persona = draw_persona("varied", seed=task.key.task_id)
        env = GymEnv(GYMS[gym], task=task, user=user, persona=persona)
        expert = persona_aware(GYMS[gym].expert(task.opening, random.Random(0), 0.0))
        steps = [await env.step(str(next(expert)))]
        while not (steps[-1].terminated or steps[-1].truncated):
            steps.append(await env.step(str(expert.send(steps[-1].feedback))))
        return steps

    recorded = await talk(RecordingUser(RuleUser(), tmp_path, gyms=GYMS))
    assert recorded == await talk(ReplayUser(tmp_path, gyms=GYMS))
    assert sum(step.reward for step in recorded) > 0.9 and any(step.user_reply for step in recorded)


@pytest.mark.parametrize(
    "change",
    [
        {"question": "Which view"},
        {"choice": "answer"},
        {"seed": 4},
        {"persona": Persona(typos=0.1)},
        {"history": (("a", "b"),)},
        {"scenario": {"wish": ["pool"]}},
        {"view": {"turn": 2}},
        {"gym": "telepathy"},
    ],
)
async def test_another_call_is_another_key(tmp_path: Path, change: dict[str, object]):
    await RecordingUser(Moody(), tmp_path, gyms=GYMS).reply(CALL)
    user = ReplayUser(tmp_path, gyms=GYMS)
    assert (await user.reply(CALL)).text == "reply 1"
    with pytest.raises(SimulatorError, match=r"holds no reply to .* or record it again") as error:
        await user.reply(replace(CALL, **change))  # pyright: ignore[reportArgumentType]
    assert error.value.simulator == "replay"


async def test_another_version_of_a_gyms_user_is_not_replayed(tmp_path: Path):
    await RecordingUser(Moody(), tmp_path, gyms=GYMS).reply(CALL)
    gyms = {**GYMS, "travel": replace(GYMS["travel"], system="Other rules.")}
    with pytest.raises(SimulatorError, match="record it again"):
        await ReplayUser(tmp_path, gyms=gyms).reply(CALL)


def test_a_key_is_the_same_on_every_machine():
    again = replace(CALL, view={"turn": 1}, scenario={"wish": ("sea",)})  # tuples travel as lists
    assert key_of(CALL, version="v") == key_of(again, version="v") == "2e58d3195cc2bd3f4a203a00e95ad658"


async def test_the_same_call_is_asked_once_even_at_the_same_moment(tmp_path: Path):
    moody = Moody()
    user = RecordingUser(moody, tmp_path, gyms=GYMS)
    replies = await asyncio.gather(*(user.reply(CALL) for _ in range(8)))
    replies.append(await user.reply(CALL))
    assert len(moody.calls) == 1 and {reply.text for reply in replies} == {"reply 1"}
    assert [reply.num_tokens for reply in replies] == [9, *[0] * 8]  # one paid


async def test_a_cancelled_dialogue_does_not_cancel_the_others(tmp_path: Path):
    user = RecordingUser(Moody(), tmp_path, gyms=GYMS)
    first = asyncio.create_task(user.reply(CALL))
    second = asyncio.create_task(user.reply(CALL))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).text == "reply 1"


async def test_a_failure_is_not_recorded_and_may_mend(tmp_path: Path):
    user = RecordingUser(Moody(num_failures=1), tmp_path, gyms=GYMS)
    with pytest.raises(SimulatorError) as error:
        await user.reply(CALL)
    assert error.value.failure is Failure.TIMEOUT
    assert (await user.reply(CALL)).text == "reply 2"
    assert (await ReplayUser(tmp_path, gyms=GYMS).reply(CALL)).text == "reply 2"


async def test_the_cut_last_line_of_a_killed_process_is_left_out(tmp_path: Path):
    user = RecordingUser(Moody(), tmp_path, gyms=GYMS)
    for seed in range(3):
        await user.reply(replace(CALL, seed=seed))
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    replay = ReplayUser(tmp_path, gyms=GYMS)
    assert (await replay.reply(replace(CALL, seed=1))).text == "reply 2"
    with pytest.raises(SimulatorError):
        await replay.reply(replace(CALL, seed=2))


def test_a_record_that_is_none_is_refused_with_file_and_line(tmp_path: Path):
    with pytest.raises(ValueError, match="no such record"):
        ReplayUser(tmp_path / "none", gyms=GYMS)
    with pytest.raises(ValueError, match="holds no reply"):
        ReplayUser(tmp_path, gyms=GYMS)
    (tmp_path / "a.jsonl").write_text('{"key": "k", "reply": {"text": "x"}}\n{"key": "k"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not a recorded reply"):
        ReplayUser(tmp_path, gyms=GYMS)


def record_some(folder: str, first: int) -> None:
    user = RecordingUser(RuleUser(), folder, gyms=GYMS)
    task = make_tasks("travel", num=1)[0]

    async def run() -> None:
        for seed in range(first, first + 50):
            call = UserCall(gym="travel", scenario=task.scenario, question="Which view?", seed=seed)
            await user.reply(call)

    asyncio.run(run())


async def test_several_processes_record_at_once(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=record_some, args=(str(tmp_path), 50 * i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and len(list(tmp_path.iterdir())) == 3
    task = make_tasks("travel", num=1)[0]
    replay = ReplayUser(tmp_path, gyms=GYMS)
    for seed in range(150):
        await replay.reply(UserCall(gym="travel", scenario=task.scenario, question="Which view?", seed=seed))


async def test_the_key_of_an_endpoint_is_in_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOOPBACK_KEY", "sk-loopback-0123456789")
    task = make_tasks("travel", num=1)[0]
    async with serve_endpoint(['sk-loopback-0123456789 {"slot": "none"}']) as endpoint:
        chat = ChatClient(ChatConfig(base_url=endpoint.url, model="m", api_key_env="LOOPBACK_KEY"))
        user = RecordingUser(LlmUser(GYMS, chat, rules=RuleUser()), tmp_path, gyms=GYMS)
        reply = await user.reply(replace(CALL, scenario=task.scenario))
        await chat.close()
    assert "0123456789" in endpoint.headers[0]["Authorization"]
    [file] = tmp_path.iterdir()
    shown = [file.read_text(), repr(reply), repr(pickle.dumps(reply))]
    assert not [text for text in shown if "0123456789" in text]
    assert json.loads(file.read_text())["reply"]["simulator"] == "llm"
