"""Rule-based tau customer: answers free text from its task alone.

Facts of a reply: `wish` the index of the wish that it tells (-1: the whole request), `values` the values in
it, `confirmed` whether the customer agrees, `stop` True with its goodbye. The reply to a question that the
customer cannot answer has no facts.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from simulators.tau.customer_phrasing import detail_of
from simulators.tau.toy_shop import COLORS, NUMBERS, REASONS
from simulators.user import UserCall, UserReply

REQUEST = -1
"""The index under which a free-text request counts as told."""
GOODBYE = "No, thank you. Goodbye."
THAT_IS_ALL = "No, that is all. Please go on."
YES = "Yes, please."
NO = "No, that is not what I want."
UNSURE = "I do not know what you mean. What do you need to know?"
IDENTITY: Mapping[str, tuple[str, str]] = {
    "name": (r"\bnames?\b|\bwho (are you|am i)\b", "My name is {}."),
    "zip": (r"\bzip|\bpostal|\bpost ?code", "My zip code is {}."),
    "email": (r"\be-?mail", "My email is {}."),
    "user_id": (r"\b(user|customer|account|profile|member) ?id\b", "My user id is {}."),
}
"""Personal details: the pattern of a question for each, and the wording of the answer."""
DETAILS = {
    "payment": r"\bpay|\brefund|\bcard\b|\bpaypal\b|\bmethod\b",
    "reason": r"\breason\b|\bwhy\b",
    "address": r"\baddress\b|\bwhere\b",
}
CONFIRM = (
    r"\b(confirm|proceed|yes|correct|go ahead|agree|right\?|should i|shall i (?!do)|do you want me"
    r"|would you like me)"
)
CLOSING = (
    r"\b(anything else|anything more|any other|something else|further assistance|goodbye|bye|all set|all done"
    r"|nice day|great day|wonderful day|take care)\b"
)
SAME_THING = (
    r"\b(before|(other|more) (items?|products?)|(this|that|same) order|to (exchange|modify|return))\b"
)
"""With these words, `anything else` asks for the rest of one change and is no closing."""
REPORT = r"\b(done|completed|processed|successfully|has been|have been|finished)\b"
NEED = (
    r"\b(what|which|how|help|assist|need|want|wish|like to|looking for|detail|details|orders?|items?|exactly"
    r"|tell me|specify|product|reservation|flights?|trip)\b"
)
EXACTLY = r"\b(exactly|precise|precisely|specific|details?|which)\b"
PLEA = r"^(please|could|can|may|tell|provide|give|confirm|let me know)\b"
CHANGE = r"\b(cancel|return|exchange|modif|chang|refund|book|updat|proceed|upgrad)"
IDS = r"#W\d+|\b(?:credit_card|gift_card|paypal|certificate)_\d+"


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """In order of priority: identity, consent, goodbye, details, wishes."""
    if call.scenario["domain"] == "stall":
        return _answer_at_stall(call, rng)
    asked = _asked_part(call.question)
    num_wishes = len(call.scenario["wishes"])
    told = [index for index in call.view.get("told", []) if REQUEST <= index < num_wishes]
    if slots := [slot for slot, (words, _) in IDENTITY.items() if re.search(words, asked)]:
        return _identify(call.scenario["known"], slots)
    if told and re.search(CONFIRM, asked):
        return _consent(call)
    text = call.question.lower()
    if re.search(CLOSING, text) or (asked == text and re.search(REPORT, text)):
        return _close(call, told)
    for slot, words in DETAILS.items():
        if re.search(words, asked) and (reply := _give_detail(call, told, slot)):
            return reply
    if re.search(NEED, asked) or not told:
        return _reveal_wishes(call, told)
    return UserReply(text=UNSURE)


def untold_wishes(scenario: Mapping[str, Any], told: Sequence[int]) -> list[int]:
    """Indices of the wishes that the customer has not told yet; the whole request first."""
    if REQUEST in told:
        return []
    first = [REQUEST] if scenario["request"] else []
    return first or [index for index in range(len(scenario["wishes"])) if index not in told]


def _answer_at_stall(call: UserCall, rng: random.Random) -> UserReply:
    wish = call.scenario["wishes"][0]
    text = call.question.lower()
    if re.search(r"\b(which order|number|which one)\b", text):
        number = wish["arguments"]["order"]
        return UserReply(
            text=f"Order {number}.", facts={"values": [number]}, decoy=f"Order {rng.choice(NUMBERS)}."
        )
    has_told = bool(call.view.get("told"))
    if re.search(CLOSING, text) and has_told:
        return UserReply(text=GOODBYE, facts={"stop": True})
    if re.search(CONFIRM, text) and has_told:
        return UserReply(text=YES, facts={"confirmed": True})
    if re.search(rf"{NEED}|\b(do|reason|why|color)\b|{CLOSING}", text):
        other = rng.choice((f"I want {rng.choice(COLORS)}.", f"Undo it because {rng.choice(REASONS)}."))
        return UserReply(text=wish["text"], facts={"wish": 0, "values": wish["values"]}, decoy=other)
    return UserReply(text=UNSURE)


def _asked_part(question: str) -> str:
    """The sentences that ask something, in lower case; the whole text if none does."""
    sentences = re.split(r"(?<=[.?!])\s+|\n+", question.lower())
    asking = [text for text in sentences if text.endswith("?") or re.search(PLEA, text.strip())]
    return " ".join(asking) or question.lower()


def _identify(known: Mapping[str, str], slots: Sequence[str]) -> UserReply:
    given = [slot for slot in slots if slot in known]
    texts = [
        IDENTITY[slot][1].format(known[slot])
        if slot in known
        else f"I do not know my {slot.replace('_', ' ')}."
        for slot in slots
    ]
    return UserReply(text=" ".join(texts), facts={"values": [known[slot] for slot in given]} if given else {})


def _consent(call: UserCall) -> UserReply:
    """Yes, unless the question names an order or payment outside its wishes, or a change although it wants
    none."""
    wishes = call.scenario["wishes"]
    known = str([wish["arguments"] for wish in wishes]) + call.scenario["request"]
    named = re.findall(IDS, call.question)
    is_wrong = (
        any(name not in known for name in named) if wishes else bool(re.search(CHANGE, call.question.lower()))
    )
    return UserReply(text=NO if is_wrong else YES, facts={"confirmed": not is_wrong})


def _close(call: UserCall, told: list[int]) -> UserReply:
    if untold_wishes(call.scenario, told):
        return _reveal_wishes(call, told)
    if re.search(SAME_THING, call.question.lower()):
        return UserReply(text=THAT_IS_ALL, facts={"confirmed": True})
    return UserReply(text=GOODBYE, facts={"stop": True})


def _reveal_wishes(call: UserCall, told: list[int]) -> UserReply:
    """The next wish. When none is left: the last one again, or the wishes of the whole request if asked for
    details."""
    wishes = call.scenario["wishes"]
    left = untold_wishes(call.scenario, told)
    later = [index for index in range(len(wishes)) if index not in told]
    if left:
        index = left[0]
    elif REQUEST in told and not (wishes and re.search(EXACTLY, call.question.lower())):
        index = REQUEST
    else:
        index = [*later, *(index for index in told[-1:] if index != REQUEST), len(wishes) - 1][0]
    if index == REQUEST:
        return UserReply(text=call.scenario["request"], facts={"wish": REQUEST})
    return UserReply(text=wishes[index]["text"], facts={"wish": index, "values": wishes[index]["values"]})


def _give_detail(call: UserCall, told: list[int], slot: str) -> UserReply | None:
    """The detail of the last wish told, unless the question names another order; else of the named wishes,
    else of all."""
    wishes = call.scenario["wishes"]
    ids = set(re.findall(r"#W\d+|\b[A-Z0-9]{6}\b", call.question))
    named = [wish for wish in wishes if ids & {str(value) for value in wish["arguments"].values()}]
    last = [wishes[index] for index in told if index != REQUEST][-1:]
    for choice in (
        [wish for wish in last if not named or wish in named],
        named,
        last,
        wishes if told else [],
    ):
        found = [detail_of(wish, slot) for wish in choice]
        texts = list(dict.fromkeys(text for text, _ in found if text))
        if texts:
            return UserReply(
                text=" ".join(texts), facts={"values": [value for _, values in found for value in values]}
            )
    return None
