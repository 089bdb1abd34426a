"""Quality metrics of simulated users (goal leaks, front-loading, agreeableness, repetition, ...), measured on
finished dialogues. Each is a share in [0, 1].

Counted per dialogue in the rollout actor, summed over groups and steps, then divided. They are not scores:
they show when a simulated user no longer behaves like one.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from simulators.config import GaugeLimits
from simulators.input_limits import json_leaves
from simulators.user import UserReply
from simulators.users.persona_style import ASIDE, CORRECTION, CURT, PUT_OFFS, SMALL_TALK

MAX_HIDDEN_LENGTH = 60
"""Longer texts of a scenario are stories and instructions, not values."""
MAX_HIDDEN = 2000
PLAIN_WORDS = frozenset(
    {"yes", "no", "maybe", "any", "none", "true", "false", "it", "is", "a", "an", "the", "i"}
)
"""Never hidden values, even if a scenario contains them."""
VERDICT_WORDS = frozenset({"True", "False"})
"""Judgements of the agent's text, not names of properties."""
SHORT_REPLY = 3
"""Replies of up to this many words ("Yes.", "Any is fine.") are no repetitions."""
ASIDES = frozenset({*SMALL_TALK, CURT})
_TOKEN = re.compile(r"\w+")
_PROPOSAL = re.compile(
    r"(is|are|am|was|were|do|does|did|can|could|will|would|should|shall|may|might|has|have|had"
    r"|how about|what about|let us|let's|why not|i suggest|i propose|i recommend|you should)\b"
)
_ASSENT = re.compile(
    r"(yes|yeah|yep|sure|ok|okay|right|agreed|absolutely|exactly|correct|true|definitely|certainly"
    r"|of course|sounds good|that works|i agree|you are right|you're right|good idea)\b"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class UserTurn:
    """One question to a user and the reply."""

    question: str
    reply: UserReply


@dataclass(frozen=True, kw_only=True, slots=True)
class GaugeCounts:
    """Cases and hits of every gauge; sums are field by field."""

    dialogues: int = 0
    left: int = 0
    """Dialogues that the user ended without a reason."""
    replies: int = 0
    leaks: int = 0
    """Replies that reveal a hidden value without being asked."""
    facts: int = 0
    """Values in the facts of all replies, in dialogues in which two or more replies have any."""
    first_facts: int = 0
    """Of them, those in the first reply."""
    proposals: int = 0
    """Yes-or-no questions and proposals that were answered."""
    assents: int = 0
    sentences: int = 0
    """Replies with facts and more than `SHORT_REPLY` words; refusals may repeat."""
    repeats: int = 0
    """Of them, those equal to the reply to an earlier, different question."""
    told_again: int = 0
    """Properties that were told before."""
    contradictions: int = 0
    """Of them, those with another value than before."""

    def __add__(self, other: "GaugeCounts") -> "GaugeCounts":
        return GaugeCounts(**{name: getattr(self, name) + getattr(other, name) for name in _COUNTS})


_COUNTS = tuple(count.name for count in fields(GaugeCounts))
NO_COUNTS = GaugeCounts()
SHARES = {
    "goal_leaks": ("leaks", "replies"),
    "front_loading": ("first_facts", "facts"),
    "agreeableness": ("assents", "proposals"),
    "repetition": ("repeats", "sentences"),
    "contradictions": ("contradictions", "told_again"),
    "early_stop": ("left", "dialogues"),
}
"""Metric to its numerator and denominator."""


def count_gauges(
    scenario: Mapping[str, Any], turns: Sequence[UserTurn], *, user_left: bool = False
) -> GaugeCounts:
    """One dialogue's contribution to the gauges. Takes microseconds per turn."""
    sentences, repeats = _count_repeats(turns)
    proposals, assents = _count_assents(turns)
    told_again, contradictions = _count_contradictions(turns)
    num_facts = [len(json_leaves(turn.reply.facts)) for turn in turns]
    if (
        sum(num > 0 for num in num_facts) < 2
    ):  # a single good question can only be answered with everything at once
        num_facts = [0]
    return GaugeCounts(
        dialogues=1,
        left=int(user_left),
        replies=len(turns),
        leaks=_count_leaks(scenario, turns),
        facts=sum(num_facts),
        first_facts=num_facts[0],
        proposals=proposals,
        assents=assents,
        sentences=sentences,
        repeats=repeats,
        told_again=told_again,
        contradictions=contradictions,
    )


def gauge_shares(dialogues: Iterable[tuple[str, GaugeCounts]]) -> dict[str, float]:
    """(simulator, counts) pairs to `users/<simulator>/<gauge>` and its number of cases `.../num_cases`.

    A gauge without a case is left out.
    """
    totals: dict[str, GaugeCounts] = defaultdict(GaugeCounts)
    for simulator, counts in dialogues:
        totals[simulator] += counts
    shares: dict[str, float] = {}
    for simulator, counts in totals.items():
        for gauge, (hits, cases) in SHARES.items():
            if num_cases := getattr(counts, cases):
                shares[f"users/{simulator}/{gauge}"] = getattr(counts, hits) / num_cases
                shares[f"users/{simulator}/{gauge}/num_cases"] = float(num_cases)
    return shares


def alarms(gauges: Mapping[str, float], limits: GaugeLimits) -> list[str]:
    """One line for every gauge above its limit, e.g. `users/llm/goal_leaks=0.31 of 120 is above 0.02`."""
    lines: list[str] = []
    for key, share in gauges.items():
        limit = getattr(limits, key.rpartition("/")[2]) if key.rpartition("/")[2] in SHARES else None
        num_cases = int(gauges.get(f"{key}/num_cases", 0))
        if limit is not None and num_cases >= limits.min_cases and share > limit:
            lines.append(f"{key}={share:.2f} of {num_cases} is above {limit:g}")
    return lines


def _count_leaks(scenario: Mapping[str, Any], turns: Sequence[UserTurn]) -> int:
    """Replies with a hidden value that is in no fact so far and shares no word with the dialogue so far."""
    hidden = _hidden_values(scenario)
    known: set[str] = set()
    num_leaks = 0
    for turn in turns:
        known.update(_tokens(turn.question), _tokens(turn.reply.decoy))
        for value in _texts(turn.reply.facts):
            known.update(_tokens(value))
        head, _, aside = turn.reply.text.partition(ASIDE)
        said = _tokens(head if aside in ASIDES else turn.reply.text)
        new = [word for word in dict.fromkeys(said) if word in hidden and word not in known]
        num_leaks += any(_stands_in(value, said) for word in new for value in hidden[word])
        known.update(said)
    return num_leaks


def _hidden_values(scenario: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Longest word to all values of the scenario that contain it, as words: most replies contain no such
    word."""
    by_word: dict[str, list[list[str]]] = defaultdict(list)
    for value in set(_texts(scenario)):
        # A final full stop marks a sentence of the user, no value.
        is_value = 2 <= len(value) <= MAX_HIDDEN_LENGTH and value[-1] not in ".!?"
        if is_value and (words := _tokens(value)):
            longest = max(words, key=len)
            if longest not in PLAIN_WORDS:
                by_word[longest].append(words)
        if len(by_word) >= MAX_HIDDEN:
            break
    return by_word


def _stands_in(value: list[str], said: list[str]) -> bool:
    width = len(value)
    return width == 1 or any(said[at : at + width] == value for at in range(len(said) - width + 1))


def _count_assents(turns: Sequence[UserTurn]) -> tuple[int, int]:
    """(proposals, assents to them)."""
    replies = [
        _heard(turn.reply.text).lower()
        for turn in turns
        if _PROPOSAL.match(turn.question.lower()) and turn.reply.text not in PUT_OFFS
    ]
    return len(replies), sum(_ASSENT.match(reply) is not None for reply in replies)


def _count_repeats(turns: Sequence[UserTurn]) -> tuple[int, int]:
    """(sentences, those repeated from the reply to another question)."""
    heard: dict[str, str] = {}
    num_sentences = num_repeats = 0
    for turn in turns:
        reply = _heard(turn.reply.text)
        if not turn.reply.facts or len(reply.split()) <= SHORT_REPLY:
            continue
        num_sentences += 1
        num_repeats += heard.setdefault(reply, turn.question) != turn.question
    return num_sentences, num_repeats


def _count_contradictions(turns: Sequence[UserTurn]) -> tuple[int, int]:
    """(properties told again, those with another value).

    The last entry of facts is the value; the entries before it name the property: in
    `{"slot": "seat", "wish": "window"}` the seat. If none of them is a word, as in
    `{"reason": 1, "verdict": "rebutted"}`, the judged question is part of the name.
    """
    told: dict[tuple[object, ...], object] = {}
    num_again = num_other = 0
    for turn in turns:
        if len(turn.reply.facts) < 2:
            continue
        *subject, (name, value) = turn.reply.facts.items()
        is_named = any(isinstance(word, str) and word not in VERDICT_WORDS for _, word in subject)
        key = (str(subject), name, "" if is_named else turn.question)
        if key in told:
            num_again += 1
            num_other += told[key] != value
        told[key] = value
    return num_again, num_other


def _heard(text: str) -> str:
    """A reply without its corrected mistake and small talk."""
    return text.partition(ASIDE)[0].rpartition(CORRECTION)[2]


def _tokens(text: str) -> list[str]:
    return [text.lower()] if text.isalnum() else _TOKEN.findall(text.lower())


def _texts(value: Any) -> list[str]:
    return [leaf for leaf in json_leaves(value) if isinstance(leaf, str)]
