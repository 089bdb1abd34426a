"""Persona style of rule-based replies (small talk, typos, put-offs, corrections), and its inverse for
scripted experts.

The meaning never changes: a reply is put off (with its facts) at most once per question, preceded by a
corrected mistake, mistyped, or wrapped in small talk.
"""

import random
import re
from dataclasses import replace

from simulators.gym import Expert
from simulators.input_limits import json_leaves
from simulators.persona import PLAIN
from simulators.user import UserCall, UserReply

PUT_OFF = "Why do you want to know? Ask again if it matters."
LOOK_UP = "I would have to look that up. Ask me again."
PUT_OFFS = (PUT_OFF, LOOK_UP)
CORRECTION = " No, wait: "
ASIDE = " — "
"""Separator of small talk at the end of a reply."""
SMALL_TALK = (
    "By the way, the weather here is awful.",
    "Sorry, I am doing three things at once today.",
    "My sister recommended you, I hope she was right.",
    "Thanks for taking the time, really.",
)
CURT = "Could we get to the point, please?"
QUESTIONS_OF_PATIENCE = 8
SLIP_MIN_LETTERS = 6
"""Shorter words are never mistyped, nor are words that carry a fact."""


def apply_persona(reply: UserReply, call: UserCall, rng: random.Random) -> UserReply:
    """The reply in the style of this call's persona."""
    persona = call.persona
    if persona == PLAIN:
        return reply
    is_new = all(text not in PUT_OFFS for question, text in call.history if question == call.question)
    if reply.facts and is_new:
        if rng.random() >= persona.cooperativeness:
            return replace(reply, text=PUT_OFF, facts={}, decoy="")
        if rng.random() >= persona.knowledge:
            return replace(reply, text=LOOK_UP, facts={}, decoy="")
    text = _with_typos(reply, rng, chance=persona.typos)
    if reply.decoy and rng.random() < persona.changes_of_mind:
        text = f"{reply.decoy}{CORRECTION}{text}"
    if persona.patience < 1 and len(call.history) >= QUESTIONS_OF_PATIENCE * persona.patience:
        text = f"{text}{ASIDE}{CURT}"
    elif rng.random() < persona.verbosity:
        text = f"{text}{ASIDE}{rng.choice(SMALL_TALK)}"
    return replace(reply, text=text)


def persona_aware(expert: Expert) -> Expert:
    """Wraps an expert so that it copes with personas: asks again when put off, and strips corrected mistakes
    and small talk from the feedback."""
    action = next(expert)
    while True:
        feedback = yield action
        if feedback in PUT_OFFS:
            continue
        try:
            action = expert.send(feedback.partition(ASIDE)[0].rpartition(CORRECTION)[2])
        except StopIteration:
            return


def _with_typos(reply: UserReply, rng: random.Random, *, chance: float) -> str:
    """Swaps two neighbouring letters in some words that carry no fact."""
    if not chance:
        return reply.text
    texts = [leaf for leaf in json_leaves(reply.facts) if isinstance(leaf, str)]
    kept = {word.lower() for text in texts for word in re.findall(r"[A-Za-z]+", text)}

    def slip(match: re.Match[str]) -> str:
        word = match.group()
        if len(word) < SLIP_MIN_LETTERS or word.lower() in kept or rng.random() >= chance:
            return word
        at = rng.randrange(1, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return re.sub(r"[A-Za-z]+", slip, reply.text)
