"""Published SearchGym rules: answer a question with at most five web searches.

A search calls the user as the search engine: it sees `choice` search, and the reply's text is the result
list; no facts. An answer that is not literally right calls the user as the judge: it sees `choice` answer and
the question and gold answer in the scenario. Verdict facts: {"judgment": "Yes" or "No"}; the judge's text is
discarded, as released.

Kept as released: an exact match of letters and digits needs no judge; wrong answers are free and without
limit; from the sixth search on it is refused; an empty query counts, an empty answer is not judged; `finish`
tells the answer; `[action]` is refused. The released judge prompt is filled by chained replacement, so an
answer that is the placeholder of the gold answer becomes the gold answer: `judge_prompt` does the same (the
placeholders' own names are ours), and the rule-based judge reads it. The released search engine is on the
web; the rule-based one has no corpus and finds nothing.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from simulators.dataset_files import ENV_NAME, is_parquet, read_records
from simulators.gym import ActionOutcome, Expert, Gym, GymRules
from simulators.gyms.stemming import stems_of
from simulators.message import Action
from simulators.published.settings import PublishedConstants
from simulators.published.shared_rules import EACH_TURN, data_only, make_task, norm, parse_stripped
from simulators.task import Task
from simulators.user import LlmRole, UserCall, UserReply, flat_schema

SYSTEM = (
    "Answer the user's question with what the web says. Your rounds are limited, and so are your searches.\n"
    "search: a query for the search engine.\n"
    "answer: your final answer, as short as possible; you may try again."
)
JUDGE_TEMPLATE = "Question: {question}\nAnswer of the model: {answer}\nRight answer: {gold}\nIs it right?"
GOLD_PLACEHOLDER = "{gold}"
NO_RESULTS = "No results."


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    gold: str
    max_searches: int
    num_searches: int = 0


def load_tasks(path: Path) -> list[Task]:
    """The released JSON list of {id, question, answer}, or Parquet rows with the question as the user's
    message and the answer as `reward_model.ground_truth`."""
    names = {"id": "id", "question": "question", "answer": "answer"}
    if is_parquet(path):
        names = {
            "id": "reward_model.id",
            "question": "prompt.1.content",
            "answer": "reward_model.ground_truth",
        }
    fields: dict[str, Any] = dict.fromkeys(names.values(), str) | {"extra_info.split": (str, type(None))}
    records = read_records(path, fields=fields, where={ENV_NAME: "SearchGym"})
    return [
        make_task(
            "search",
            index=row,
            opening=record[names["question"]],
            scenario={name: record[field] for name, field in names.items()},
            split=record["extra_info.split"],
        )
        for row, record in enumerate(records)
    ]


def initial_state(task: Task, *, max_searches: int) -> State:
    return State(gold=task.scenario["answer"], max_searches=max_searches)


def needs_user(state: State, action: Action) -> bool:
    if not action.content:
        return False
    if action.choice == "search":
        return state.num_searches < state.max_searches
    return action.choice == "answer" and norm(action.content) != norm(state.gold)


def apply_action(task: Task, state: State, action: Action, reply: UserReply | None) -> ActionOutcome:
    if action.choice == "search":
        return _search(state, reply)
    if action.choice != "answer":
        return ActionOutcome(state=state, feedback="Search or answer: nothing else works here.", score=0.0)
    if not action.content:
        return ActionOutcome(state=state, feedback="The answer is empty.", score=0.0)
    if reply is None or reply.facts.get("judgment") == "Yes":
        return ActionOutcome(state=state, feedback="Your answer is correct.", score=1.0, done=True)
    if not reply.facts and reply.text:
        return ActionOutcome(state=state, feedback=reply.text, score=0.0)
    return ActionOutcome(state=state, feedback="Your answer is not correct. You may try again.", score=0.0)


def on_finish(task: Task, state: State) -> ActionOutcome:
    return ActionOutcome(
        state=state, feedback=f"The end. The right answer was {state.gold}.", score=0.0, done=True
    )


def judge_prompt(*, question: str, answer: str, gold: str) -> str:
    """The judge's prompt as the released code fills it: one placeholder after the other, in text that
    already contains the agent's. Never shown to a model here."""
    filled = JUDGE_TEMPLATE.replace("{question}", question)
    return filled.replace("{answer}", answer).replace(GOLD_PLACEHOLDER, gold)


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """Finds nothing; judges by the words of its prompt: right if all of the gold answer's words are in the
    model's answer."""
    if call.choice == "search":
        return UserReply(text=NO_RESULTS)
    gold = str(call.scenario["answer"])
    prompt = judge_prompt(question=str(call.scenario["question"]), answer=call.question, gold=gold)
    given = prompt.partition("Answer of the model: ")[2].rpartition("\nRight answer: ")[0]
    given_words, gold_words = stems_of(given), stems_of(gold)
    is_right = norm(given) == norm(gold) or (bool(gold_words) and gold_words <= given_words)
    judgment = "Yes" if is_right else "No"
    return UserReply(text=judgment, facts={"judgment": judgment})


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Searches the question and answers the head of the first result. At `guess_rate` it answers without a
    search."""
    results = "" if rng.random() < guess_rate else (yield Action(choice="search", content=opening))
    head = results.partition("\n")[0].partition(":")[0]
    yield Action(choice="answer", content=head or "unknown")
    yield Action(choice="finish", content="")


def gold_actions(task: Task) -> Sequence[Action]:
    return (Action(choice="answer", content=task.scenario["answer"]),)


def random_action(task: Task, rng: random.Random) -> Action:
    if rng.random() < 0.5:
        return Action(choice="search", content=rng.choice(("who", "when", "where")))
    return Action(choice="answer", content=str(rng.randint(1000, 2000)))


def instructions(call: UserCall) -> str:
    if call.choice == "search":
        return "You are a search engine. Give up to five short results for the query, one a line, or none."
    return (
        f"Question: {call.scenario['question']}\nRight answer: {call.scenario['answer']}\n"
        "Judge whether the given answer means the right answer."
    )


def schema(call: UserCall) -> dict[str, Any]:
    if call.choice == "search":
        return flat_schema({"results": {"type": "string", "maxLength": 2000}})
    return flat_schema({"judgment": {"type": "string", "enum": ["Yes", "No"]}})


def read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    if call.choice == "search":
        return UserReply(text=str(verdict["results"]) or NO_RESULTS)
    return UserReply(text=str(verdict["judgment"]), facts={"judgment": verdict["judgment"]})


def make_gym(constants: PublishedConstants) -> Gym:
    return Gym(
        name="search",
        system=SYSTEM,
        make_task=data_only,
        initial_state=partial(initial_state, max_searches=constants.max_searches),
        needs_user=needs_user,
        apply_action=apply_action,
        rule_based_reply=rule_based_reply,
        expert=expert,
        random_action=random_action,
        llm_role=LlmRole(instructions=instructions, schema=schema, read=read),
        load_tasks=load_tasks,
        gold_actions=gold_actions,
        rules=GymRules(on_finish=on_finish, parse_action=parse_stripped),
        scoring=EACH_TURN,
    )


def _search(state: State, reply: UserReply | None) -> ActionOutcome:
    """The results, if the engine was called; an empty query is counted like any other."""
    if state.num_searches >= state.max_searches:
        return ActionOutcome(state=state, feedback="No searches are left. Answer.", score=0.0)
    searched = replace(state, num_searches=state.num_searches + 1)
    feedback = "The query is empty." if reply is None else reply.text
    return ActionOutcome(state=searched, feedback=feedback, score=0.0)
