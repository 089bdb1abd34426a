"""Grading of a tau dialogue: the final database must equal that after the gold actions, and required
statements must have been made."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simulators.tau.database import Database
from simulators.tau.tools import TRANSFER, TauToolCall, Tool, run_call

MAX_NUMBERS = 40
"""A message with more numbers is ignored: reciting all numbers is not answering."""


def replay(database: Database, gold: Iterable[Mapping[str, Any]], tools: Mapping[str, Tool]) -> Database:
    """The database after the gold actions; actions that fail or end the conversation change nothing."""
    for action in gold:
        if action["name"] != TRANSFER:
            call = TauToolCall(name=action["name"], arguments=action["arguments"])
            database, _ = run_call(database, call, tools, validated=False)
    return database


def matches_gold(database: Database, gold: Sequence[Mapping[str, Any]], tools: Mapping[str, Tool]) -> bool:
    """Whether the database is in the state of the gold actions."""
    return database.state_hash() == replay(Database(tables=database.tables), gold, tools).state_hash()


def gold_changes_database(
    database: Database, gold: Sequence[Mapping[str, Any]], tools: Mapping[str, Tool]
) -> bool:
    """Whether the gold actions change anything."""
    fresh = Database(tables=database.tables)
    return replay(fresh, gold, tools).state_hash() != fresh.state_hash()


def said_all_outputs(outputs: Iterable[str], said: Sequence[str]) -> bool:
    """Whether each output was said to the customer: as whole words, ignoring case and commas."""
    clear = [_plain(text) for text in said]
    spoken = [text for text in clear if len(re.findall(r"\d+(?:\.\d+)?", text)) <= MAX_NUMBERS]
    return all(
        any(re.search(rf"(?<![\w.]){re.escape(_plain(output))}(?!\w|\.\d)", text) for text in spoken)
        for output in outputs
    )


def _plain(text: str) -> str:
    return text.lower().replace(",", "")
