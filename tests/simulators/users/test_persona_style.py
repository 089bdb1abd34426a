"""Persona style: each trait has its own effect, and none changes the meaning."""

from collections.abc import Sequence
from dataclasses import fields, replace
from random import Random

import pytest

from simulators.message import Action
from simulators.persona import PLAIN, Persona, draw_persona
from simulators.user import UserCall, UserReply
from simulators.users.persona_style import (
    ASIDE,
    CORRECTION,
    CURT,
    LOOK_UP,
    PUT_OFF,
    SMALL_TALK,
    apply_persona,
    persona_aware,
)

REPLY = UserReply(
    text="I would rather travel in a business cabin.", facts={"cabin": "business"}, decoy="First."
)
CALL = UserCall(gym="travel", scenario={}, question="Which cabin?")


def spoken(persona: Persona, reply: UserReply = REPLY, *, call: UserCall = CALL, num: int = 1) -> list[str]:
    """What this person says, with `num` different seeds."""
    call = replace(call, persona=persona)
    return [apply_persona(reply, call, Random(seed)).text for seed in range(num)]


def share(texts: Sequence[str], part: str) -> float:
    return sum(part in text for text in texts) / len(texts)


def test_a_plain_person_says_what_is_meant():
    assert spoken(PLAIN, num=20) == [REPLY.text] * 20


@pytest.mark.parametrize(
    ("persona", "sign", "expected"),
    [
        (Persona(cooperativeness=0.5), PUT_OFF, 0.5),
        (Persona(knowledge=0.6), LOOK_UP, 0.4),
        (Persona(verbosity=0.8), ASIDE, 0.8),
        (Persona(changes_of_mind=0.3), CORRECTION, 0.3),
    ],
)
def test_a_trait_shows_as_often_as_it_says(persona: Persona, sign: str, expected: float):
    assert share(spoken(persona, num=1000), sign) == pytest.approx(expected, abs=0.05)


def test_a_put_off_question_is_answered_when_asked_again():
    for persona, text in ((Persona(cooperativeness=0.0), PUT_OFF), (Persona(knowledge=0.0), LOOK_UP)):
        call = replace(CALL, persona=persona)
        first = apply_persona(REPLY, call, Random(0))
        assert (first.text, first.facts, first.decoy) == (text, {}, "")
        again = apply_persona(REPLY, replace(call, history=((CALL.question, text),)), Random(0))
        assert (again.text, again.facts) == (REPLY.text, REPLY.facts)


def test_a_refusal_is_never_put_off():
    refusal = UserReply(text="I do not understand.")
    assert spoken(Persona(cooperativeness=0.0, knowledge=0.0), refusal, num=20) == [refusal.text] * 20


def test_patience_ends_after_eight_times_its_share_of_questions():
    def after(num_questions: int) -> str:
        history = (("Why?", "Because."),) * num_questions
        return spoken(Persona(patience=0.5), call=replace(CALL, history=history))[0]

    assert (after(3), after(4)) == (REPLY.text, f"{REPLY.text}{ASIDE}{CURT}")


def test_typos_spare_short_words_and_facts_and_only_swap_letters():
    texts = spoken(Persona(typos=1.0), num=200)
    assert all("business" in text and "would" in text and text != REPLY.text for text in texts)
    assert {"".join(sorted(text)) for text in texts} == {"".join(sorted(REPLY.text))}


def test_a_change_of_mind_ends_with_what_is_meant():
    assert spoken(Persona(changes_of_mind=1.0)) == [f"{REPLY.decoy}{CORRECTION}{REPLY.text}"]
    assert spoken(Persona(changes_of_mind=1.0), replace(REPLY, decoy="")) == [REPLY.text]


def test_small_talk_stands_behind_what_is_meant():
    assert {text.partition(ASIDE)[2] for text in spoken(Persona(verbosity=1.0), num=100)} == set(SMALL_TALK)


def test_facts_are_the_same_in_every_manner():
    for seed in range(200):
        persona = draw_persona("varied", seed=str(seed))
        reply = apply_persona(REPLY, replace(CALL, persona=persona), Random(seed))
        assert reply.facts in (REPLY.facts, {}) and (reply.facts or reply.text in (PUT_OFF, LOOK_UP))


def test_a_task_has_one_person_and_about_half_of_the_traits_differ():
    people = [draw_persona("varied", seed=str(seed)) for seed in range(500)]
    assert people == [draw_persona("varied", seed=str(seed)) for seed in range(500)]
    for trait in fields(Persona):
        plain = sum(getattr(person, trait.name) == trait.default for person in people) / len(people)
        assert plain == pytest.approx(0.5, abs=0.07), trait.name
    assert draw_persona("plain", seed="1") == PLAIN and PLAIN.name == "plain"
    assert Persona(cooperativeness=0.6, typos=0.05).name == "cooperativeness=0.6 typos=0.05"


def test_an_attentive_expert_hears_the_last_word_and_asks_again():
    def script():
        heard = yield Action(choice="action", content="Which cabin?")
        yield Action(choice="answer", content=heard)

    expert = persona_aware(script())
    assert next(expert).content == expert.send(PUT_OFF).content == expert.send(LOOK_UP).content
    assert expert.send(f"First.{CORRECTION}Business.{ASIDE}{SMALL_TALK[0]}").content == "Business."
