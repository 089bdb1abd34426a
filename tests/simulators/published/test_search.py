"""Published SearchGym rules: rewards and feedback computed by hand."""

from pathlib import Path

import pyarrow
import pyarrow.parquet

from simulators.published import PUBLISHED
from simulators.published.shared_rules import make_task
from simulators.user import UserCall, UserReply
from simulators.users.rule_user import RuleUser
from tests.simulators.published.scripted_judges import USERRL, Oracle, needs_data, play, rewards

TASK = make_task(
    "search",
    index=0,
    opening="When did he die?",
    scenario={"id": "s", "question": "When did he die?", "answer": "20 June 1837"},
)


async def test_five_searches_are_executed_and_the_sixth_is_refused():
    oracle = Oracle(lambda call: {"text": f"about {call.question}"})
    steps = await play(TASK, [f"[search] {n}" for n in range(7)], user=oracle)
    assert [step.feedback for step in steps[:5]] == [f"about {n}" for n in range(5)]
    assert len(oracle.calls) == 5 and steps[5].feedback == steps[6].feedback


async def test_an_exact_match_needs_no_judge():
    oracle = Oracle([])
    (step,) = await play(TASK, ["[answer] 20, JUNE - 1837!"], user=oracle)
    assert step.reward == 1.0 and step.terminated and not oracle.calls


async def test_other_answers_are_judged_freely_and_the_judges_text_is_discarded():
    oracle = Oracle([{"judgment": "No", "text": "It was 1837."}, {"judgment": "yes"}, {"judgment": "Yes"}])
    steps = await play(TASK, ["[answer] 1836", "[answer] 1837?", "[answer] June 20th, 1837"], user=oracle)
    assert rewards(steps) == [0.0, 0.0, 1.0] and steps[-1].terminated
    assert "1837" not in steps[0].feedback


async def test_speaking_and_untagged_text_are_refused_and_finish_tells_the_answer():
    steps = await play(TASK, ["[action] hello", "20 June 1837", "[finish]"])
    assert rewards(steps) == [0.0] * 3 and steps[-1].terminated
    assert "20 June 1837" in steps[-1].feedback


def test_the_rule_based_judge_takes_a_sentence_that_holds_the_answer():
    def judged(text: str) -> UserReply:
        call = UserCall(gym="search", scenario=TASK.scenario, question=text, choice="answer")
        return RuleUser(PUBLISHED).reply_sync(call)

    assert judged("He died on 20 June 1837.").facts == {"judgment": "Yes"}
    assert judged("He died in 1837.").facts == {"judgment": "No"}
    assert judged("").facts == {"judgment": "No"}


def test_released_parquet_rows_load_with_their_split(tmp_path: Path):
    row = {
        "prompt": [{"role": "system", "content": "rules"}, {"role": "user", "content": "Who?"}],
        "reward_model": {"env_name": "SearchGym", "id": "Bamboogle-1", "ground_truth": "Ann"},
        "extra_info": {"split": "test"},
    }
    path = tmp_path / "test.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    (task,) = PUBLISHED["search"].load_tasks(path)
    assert (task.opening, task.scenario["answer"], task.key.split) == ("Who?", "Ann", "test")


@needs_data
def test_the_shipped_sample_loads():
    tasks = PUBLISHED["search"].load_tasks(USERRL / "gyms" / "questions.sample.json")
    assert len(tasks) == 12 and tasks[0].opening.endswith("founded?")
