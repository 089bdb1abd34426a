"""Tau gym: customer service with real tools over a database, graded by the final state of the database (after
tau-bench).

The customer knows what it wants and some facts; the records hold the rest; the shop's policy is shown.
Levels: 0 a stall with a handful of tools, 1 a retail shop and one wish, 2 two wishes. Splits are disjoint by
customer. All or nothing, graded once, at the end: no credit can be collected on the way.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulators.gym import ActionOutcome, Expert, Gym, GymRules, GymScoring
from simulators.message import Action
from simulators.task import Task, TaskKey, split_of
from simulators.tau import generated_shop, rule_customer, toy_shop
from simulators.tau.customer_phrasing import make_wish
from simulators.tau.database import Database
from simulators.tau.grading import gold_changes_database, matches_gold, said_all_outputs
from simulators.tau.llm_customer import ROLE
from simulators.tau.load_tasks import load_tasks
from simulators.tau.scripted_expert import retail_expert, stall_expert
from simulators.tau.shop_registry import TOOLS, open_database
from simulators.tau.tools import TRANSFER, ToolError, list_tools, parse_call, run_call
from simulators.user import UserReply

SYSTEM = (
    "You serve a customer of a shop, by the shop's policy. "
    "action: speak to the customer. "
    'answer: one tool call, as {"name": ..., "arguments": {...}} or as name key=value. '
    "search: lists the tools with their schemas. "
    "finish: ends; better ask whether there is anything else, and let the customer say goodbye. "
    "You are graded at the end by what the tools have changed and what you have told. "
    f"Where no policy is shown: {toy_shop.RULES}"
)
STALL_OPENING = "Hello, I need help with an order."
OPENINGS = (
    "Hi, I need some help with my orders, please.",
    "Hello! I have a question about something that I bought.",
    "Good day. Could you help me with an order?",
)
MAX_TURNS = 30
"""tau-bench's own budget."""
WISHES: tuple[int, ...] = (1, 1, 2)
"""Level to the number of wishes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    database: Database
    said: tuple[str, ...] = ()
    """The agent's messages to the customer, oldest first."""
    told: tuple[int, ...] = ()
    """Indices of the wishes that the customer has told, in order."""
    num_replies: int = 0
    """Replies of the customer that told something."""
    is_identified: bool = False
    """Whether a tool result has identified the customer."""


def make_task(key: TaskKey) -> Task:
    rng = key.rng()
    level = min(key.difficulty, len(WISHES) - 1)
    return _stall_task(key, rng) if level == 0 else _shop_task(key, rng, num_wishes=WISHES[level])


def initial_state(task: Task) -> State:
    return State(database=open_database(task.scenario))


def apply_action(task: Task, state: State, action: Action, reply: UserReply | None) -> ActionOutcome:
    if action.choice == "search":
        tools = TOOLS[task.scenario["domain"]]
        return ActionOutcome(state=state, feedback=list_tools(tools), score=0.0)
    if reply is None:
        return _use_tool(task, state, action.content)
    wish = reply.facts.get("wish")
    is_new = isinstance(wish, int) and wish not in state.told
    state = replace(
        state,
        said=(*state.said, action.content),
        told=(*state.told, wish) if is_new else state.told,
        num_replies=state.num_replies + bool(reply.facts),
    )
    is_over = reply.facts.get("stop") is True
    score = _grade(task, state, is_served=is_over and state.is_identified) if is_over else 0.0
    return ActionOutcome(state=state, feedback=reply.text, score=score, done=is_over)


def user_view(state: State) -> Mapping[str, Any]:
    return {"told": list(state.told)}


def on_finish(task: Task, state: State) -> ActionOutcome:
    score = _grade(task, state, is_served=False)
    return ActionOutcome(state=state, feedback="The conversation is over.", score=score, done=True)


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    return stall_expert(rng, guess_rate) if opening == STALL_OPENING else retail_expert(rng, guess_rate)


def gold_actions(task: Task) -> Sequence[Action]:
    """The tool calls that leave the database as it should be, as JSON."""
    return [Action(choice="answer", content=json.dumps(call)) for call in task.scenario["gold"]]


def progress(task: Task, state: State) -> float:
    """Half for identifying the customer, half for the share of wishes that the customer has told."""
    is_all = rule_customer.REQUEST in state.told  # a request in one piece
    told = 1.0 if is_all else len(state.told) / max(1, len(task.scenario["wishes"]))
    return 0.5 * state.is_identified + 0.5 * told


def random_action(task: Task, rng: random.Random) -> Action:
    """Speaks, or uses a tool of the shop with words that fit it."""
    scenario = task.scenario
    if rng.random() < 0.4:
        texts = ("What shall I do?", "Which order?", "What is your name?", "Done. Anything else?")
        return Action(choice="action", content=rng.choice(texts))
    tools = [name for name in TOOLS[scenario["domain"]] if name != TRANSFER]
    name = rng.choice(tools)
    words: Sequence[str] = toy_shop.NUMBERS + toy_shop.COLORS + toy_shop.METHODS
    properties = TOOLS[scenario["domain"]][name].properties
    pairs = " ".join(
        f"{key}={rng.choice(toy_shop.NUMBERS if key == 'order' else words)}" for key in properties
    )
    return Action(choice="answer", content=f"{name} {pairs}")


def _stall_task(key: TaskKey, rng: random.Random) -> Task:
    while True:
        source, number = str(rng.randrange(toy_shop.NUM_STALLS)), rng.choice(toy_shop.NUMBERS)
        if split_of(f"tau:{source}:{number}") == key.split:
            break
    wish = toy_shop.draw_wish(rng, number=number, record=toy_shop.tables(source)["orders"][number])
    gold = [{"name": wish["name"], "arguments": wish["arguments"]}]
    scenario = _scenario("stall", source=source, user_id=number, known={}, wishes=[wish], gold=gold)
    return Task(key=key, opening=STALL_OPENING, scenario=scenario)


def _shop_task(key: TaskKey, rng: random.Random, *, num_wishes: int) -> Task:
    users = generated_shop.tables()["users"]
    ids = list(users)
    while True:
        user_id = rng.choice(ids)
        if split_of(f"tau:{user_id}") == key.split:
            break
    gold = generated_shop.draw_calls(rng, user_id, num_wishes=num_wishes)
    database = Database(tables=generated_shop.tables())
    name = users[user_id]["name"]
    known = {"name": f"{name['first_name']} {name['last_name']}"}
    if rng.random() < 0.5:
        known["zip"] = users[user_id]["address"]["zip"]
    else:
        known["email"] = users[user_id]["email"]
    wishes = [make_wish(database, call["name"], call["arguments"]) for call in gold]
    scenario = _scenario("retail", source="", user_id=user_id, known=known, wishes=wishes, gold=gold)
    return Task(
        key=key, opening=f"Policy: {generated_shop.POLICY}\n\n{rng.choice(OPENINGS)}", scenario=scenario
    )


def _scenario(
    domain: str,
    *,
    source: str,
    user_id: str,
    known: Mapping[str, str],
    wishes: list[dict[str, Any]],
    gold: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "domain": domain,
        "source": source,
        "user_id": user_id,
        "known": dict(known),
        "request": "",
        "wishes": wishes,
        "gold": gold,
        "outputs": [],
    }


def _use_tool(task: Task, state: State, content: str) -> ActionOutcome:
    scenario = task.scenario
    tools = TOOLS[scenario["domain"]]
    try:
        call = parse_call(content, tools)
    except ToolError as error:
        return ActionOutcome(state=state, feedback=f"Error: {error}", score=0.0)
    database, text = run_call(state.database, call, tools)
    user_id = scenario["user_id"]
    is_known = bool(user_id) and user_id in (text, call.arguments.get("user_id"))
    is_identified = state.is_identified or (is_known and not text.startswith("Error"))
    state = replace(state, database=database, is_identified=is_identified)
    if call.name != TRANSFER or text.startswith("Error"):
        return ActionOutcome(state=state, feedback=text, score=0.0)
    is_right = any(action["name"] == TRANSFER for action in scenario["gold"]) and state.num_replies > 0
    score = _grade(task, state, is_served=True) if is_right else 0.0
    return ActionOutcome(state=state, feedback=text, score=score, done=True)


def _grade(task: Task, state: State, *, is_served: bool) -> float:
    """1 if the database equals that after the gold actions and all required outputs were said. If there was
    nothing to change and nothing to say, the customer must also have been served: doing nothing looks the
    same in the database."""
    scenario = task.scenario
    tools = TOOLS[scenario["domain"]]
    is_right = matches_gold(state.database, scenario["gold"], tools) and said_all_outputs(
        scenario["outputs"], state.said
    )
    if is_right and not is_served and not scenario["outputs"]:
        is_right = gold_changes_database(state.database, scenario["gold"], tools)
    return float(is_right)


GYM = Gym(
    name="tau",
    system=SYSTEM,
    make_task=make_task,
    initial_state=initial_state,
    apply_action=apply_action,
    rule_based_reply=rule_customer.rule_based_reply,
    expert=expert,
    random_action=random_action,
    llm_role=ROLE,
    load_tasks=load_tasks,
    user_view=user_view,
    gold_actions=gold_actions,
    max_turns=MAX_TURNS,
    rules=GymRules(on_finish=on_finish),
    scoring=GymScoring(progress=progress),
)
