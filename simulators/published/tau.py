"""Published TauGym rules: tau-bench's tools and grade behind a wrapper, without tau-bench's policy text.

Verdict facts of the customer: {"stop": bool}, True if it says that it is satisfied (the released customer's
stop word). The grade is all or nothing, given only at that reply or at a transfer: the database must equal
that after the gold actions, and every required output must occur in the agent's messages (lower case, commas
left out, also inside other words).

Kept as released: a transfer ends and is graded regardless of its reason, so that tasks without a change pay
for it at once and finished changes need no goodbye; the policy is never shown; tools are listed once and
without types, enums or required marks; arguments are not checked before a tool runs; `finish` pays nothing;
the opening is the cached line, not one of the simulated customer; a search is exactly tools or help; a call
of `respond` speaks to the customer; the call of an unknown tool is reported as such; text without a tag is
refused and costs nothing but the turn. Chosen here: calls longer than `MAX_CALL_CHARS` or with more than
`MAX_BRACKETS` brackets are refused unread.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulators.gym import ActionOutcome, Expert, Gym, GymRules
from simulators.message import Action
from simulators.published.shared_rules import EACH_TURN, data_only, parse_stripped
from simulators.task import Task
from simulators.tau import load_tasks as tau_files
from simulators.tau import rule_customer
from simulators.tau.database import Database
from simulators.tau.grading import matches_gold
from simulators.tau.llm_customer import ROLE
from simulators.tau.scripted_expert import retail_expert
from simulators.tau.shop_registry import TOOLS, open_database
from simulators.tau.tools import MAX_BRACKETS, MAX_CALL_CHARS, TRANSFER, TauToolCall, run_call
from simulators.user import UserReply

SYSTEM = (
    "You serve a customer with the shop's internal tools. Your rounds are limited.\n"
    "search: the word tools lists the tools, help tells how to work here.\n"
    "action: speak to the customer.\n"
    'answer: one tool call, as {"name": ..., "arguments": {...}}.'
)
HELP = (
    "Speak to the customer with action, call tools with answer, list the tools with search. Find out what "
    "the customer wants, do it, and ask whether all is well."
)
STOP_WORD = "###STOP###"
LOOK_BACK = "The tools were listed before: look back."
SEARCH_FOR = "Search for tools, or for help."
NOT_A_CALL = 'Error: a tool call is {"name": ..., "arguments": {...}} or name: {...}'
RESPOND = "respond"
"""The name under which tau-bench itself speaks to the customer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    database: Database
    said: tuple[str, ...] = ()
    """The agent's messages to the customer, oldest first."""
    told: tuple[int, ...] = ()
    """Indices of the wishes that the rule-based customer has told."""
    has_listed: bool = False
    """The tools have been listed."""


def load_tasks(path: Path) -> list[Task]:
    """UserRL's task files, and those that the default rules read; the opening is the cached line alone."""
    return [replace(task, opening=task.scenario["line"]) for task in tau_files.load_tasks(path)]


def initial_state(task: Task) -> State:
    return State(database=open_database(task.scenario))


def parse_action(text: str) -> Action | None:
    """A call of tau-bench's own `respond` is speech, as it is in the released wrapper."""
    action = parse_stripped(text)
    call = _read_call(action.content) if action and action.choice == "answer" else None
    if call is None or call.name != RESPOND:
        return action
    said = call.arguments.get("content")
    return Action(choice="action", content=said) if isinstance(said, str) else action


def apply_action(task: Task, state: State, action: Action, reply: UserReply | None) -> ActionOutcome:
    if action.choice == "search":
        return _search(task, state, action.content.lower())
    if reply is None:
        return _use_tool(task, state, action.content)
    wish = reply.facts.get("wish")
    is_new = isinstance(wish, int) and wish not in state.told
    state = replace(
        state, said=(*state.said, action.content), told=(*state.told, wish) if is_new else state.told
    )
    is_over = reply.facts.get("stop") is True or STOP_WORD in reply.text
    score = _grade(task, state) if is_over else 0.0
    return ActionOutcome(state=state, feedback=reply.text, score=score, done=is_over)


def user_view(state: State) -> Mapping[str, Any]:
    return {"told": list(state.told)}


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """The retail expert: a script cannot solve the airline's tasks."""
    return retail_expert(rng, guess_rate)


def gold_actions(task: Task) -> Sequence[Action]:
    return [Action(choice="answer", content=json.dumps(call)) for call in task.scenario["gold"]]


def random_action(task: Task, rng: random.Random) -> Action:
    choice = rng.choice(("action", "search", "answer"))
    content = {
        "action": "What can I do for you?",
        "search": "tools",
        "answer": f'{{"name": "{rng.choice(list(TOOLS[task.scenario["domain"]]))}", "arguments": {{}}}}',
    }[choice]
    return Action(choice=choice, content=content)


def _search(task: Task, state: State, query: str) -> ActionOutcome:
    if query != "tools":
        return ActionOutcome(state=state, feedback=HELP if query == "help" else SEARCH_FOR, score=0.0)
    if state.has_listed:
        return ActionOutcome(state=state, feedback=LOOK_BACK, score=0.0)
    listed = "\n".join(
        f"{name}: {tool.description} Arguments: {', '.join(tool.properties) or 'none'}."
        for name, tool in TOOLS[task.scenario["domain"]].items()
    )
    return ActionOutcome(state=replace(state, has_listed=True), feedback=listed, score=0.0)


def _use_tool(task: Task, state: State, content: str) -> ActionOutcome:
    tools = TOOLS[task.scenario["domain"]]
    call = _read_call(content)
    if call is None:
        return ActionOutcome(state=state, feedback=NOT_A_CALL, score=0.0)
    database, text = run_call(state.database, call, tools, validated=False)
    state = replace(state, database=database)
    if call.name != TRANSFER:
        return ActionOutcome(state=state, feedback=text, score=0.0)
    return ActionOutcome(state=state, feedback=text, score=_grade(task, state), done=True)


def _read_call(content: str) -> TauToolCall | None:
    """A call in one of the two released forms. Numbers stay as written: 5 and 5.0 are graded as different."""
    text = content.strip()
    if len(text) > MAX_CALL_CHARS or text.count("[") + text.count("{") > MAX_BRACKETS:
        return None
    is_object = text.startswith("{") and text.endswith("}")
    name, _, rest = ("", "", text) if is_object else text.partition(":")
    try:
        value = json.loads(rest)
    except (ValueError, RecursionError):
        return None
    if is_object:
        name, value = value.get("name", ""), value.get("arguments", {})
    if not isinstance(name, str) or not isinstance(value, dict):
        return None
    return TauToolCall(name=name.strip() if not is_object else name, arguments=value)


def _grade(task: Task, state: State) -> float:
    outputs = [output.lower() for output in task.scenario["outputs"]]
    said = [text.lower().replace(",", "") for text in state.said]
    is_said = all(any(output in text for text in said) for output in outputs)
    tools = TOOLS[task.scenario["domain"]]
    return float(is_said and matches_gold(state.database, task.scenario["gold"], tools))


GYM = Gym(
    name="tau",
    system=SYSTEM,
    make_task=data_only,
    initial_state=initial_state,
    apply_action=apply_action,
    rule_based_reply=rule_customer.rule_based_reply,
    expert=expert,
    random_action=random_action,
    llm_role=ROLE,
    load_tasks=load_tasks,
    user_view=user_view,
    gold_actions=gold_actions,
    rules=GymRules(parse_action=parse_action),
    scoring=EACH_TURN,
)
