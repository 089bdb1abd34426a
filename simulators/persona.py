"""Personas of simulated users: traits of how a user talks, independent of what it knows. Sampled once per
task, the same for the whole group.

A persona changes words and order, never facts: an agent that asks again and reads past typos and small talk
can always succeed.
"""

import random
from dataclasses import dataclass, fields
from typing import Literal

PersonaMix = Literal["plain", "varied"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Persona:
    """Traits in [0, 1]. The defaults are a plain person that says what is asked and nothing else."""

    cooperativeness: float = 1.0
    """Probability of answering a question at once; else it is put off until it is asked again."""
    patience: float = 1.0
    """At 1 unlimited; below, the tone turns curt after `8 * patience` questions."""
    verbosity: float = 0.0
    """Probability of small talk around a reply."""
    knowledge: float = 1.0
    """Probability of knowing the answer at once; else the person looks it up and has it when asked again."""
    typos: float = 0.0
    """Probability of a typo in each long word that carries no fact."""
    changes_of_mind: float = 0.0
    """Probability of saying another thing first and correcting it in the same reply."""

    @property
    def name(self) -> str:
        """`plain`, or the traits that differ from it: `cooperativeness=0.6 typos=0.05`."""
        traits = [
            f"{trait.name}={getattr(self, trait.name):g}"
            for trait in fields(self)
            if getattr(self, trait.name) != trait.default
        ]
        return " ".join(traits) or "plain"


PLAIN = Persona()


def draw_persona(mix: PersonaMix, *, seed: str) -> Persona:
    """The persona of the task that `seed` names. `varied` draws about half of the traits away from plain."""
    if mix == "plain":
        return PLAIN
    rng = random.Random(f"persona-{seed}")

    def trait(plain: float, other: float) -> float:
        return plain if rng.random() < 0.5 else round(rng.uniform(*sorted((plain, other))), 2)

    return Persona(
        cooperativeness=trait(1.0, 0.5),
        patience=trait(1.0, 0.25),
        verbosity=trait(0.0, 0.8),
        knowledge=trait(1.0, 0.6),
        typos=trait(0.0, 0.2),
        changes_of_mind=trait(0.0, 0.3),
    )
