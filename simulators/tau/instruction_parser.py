"""Parser of published customer instructions: the customer's personal details, and the instruction in the
first person."""

import re

OBJECT_AFTER = (
    "asks?|asked|tells?|told|for|to|gives?|gave|with|helps?|lets?|sends?|sent|makes?|made|of|from|offers?"
    "|charges?"
)
"""Words after which `you` becomes `me`."""
STAGE_ASIDE = r"\s*\([^)]*\b(?:agent|reveal|mention)\b[^)]*\)"
STAGE_DIRECTION = (
    r"(?i)\b(reveal|mention|pretend|make up reasons|sound very|if asked|try not to|at the same time)"
    r"|^(be |you are an? [\w -]+ person)|^(?!.*\b(want|wish|would like)).*\bthe agent\b"
)
"""Directions for playing the customer, which a customer would not say."""


def customer_details(text: str) -> dict[str, str]:
    """The customer's personal details in its instruction. Addresses in braces are not its own."""
    text = re.sub(r"\{[^}]*\}", "", text)
    found = {
        "name": re.search(
            r"(?:[Yy]our name is|[Yy]ou are|[Yy]ou're|[Yy]ou name is) ([A-Z][a-z]+(?:[ -][A-Z][a-z]+)+)", text
        ),
        "zip": re.search(r"\b(?<!\d)(\d{5})(?!\d)\b", text),
        "email": re.search(r"([\w.+-]+@[\w-]+(?:\.[\w-]+)+)", text),
        "user_id": re.search(r"\b(?!credit_card_|gift_card_)([a-z]+_[a-z]+_\d+)\b", text),
    }
    return {slot: match.group(1).rstrip(".") for slot, match in found.items() if match}


def first_person(instruction: str) -> str:
    """The instruction in the first person: "you" becomes "I". Approximate, but it keeps every fact."""
    words = {
        "you are": "I am",
        "you're": "I'm",
        "you were": "I was",
        "you've": "I've",
        "you'd": "I'd",
        "you'll": "I'll",
        "yourself": "myself",
        "yours": "mine",
        "your": "my",
        "you": "I",
    }
    text = re.sub(rf"\b({OBJECT_AFTER}) you\b", r"\1 me", _without_stage_directions(instruction))
    pattern = re.compile(r"\b(" + "|".join(words) + r")\b", re.IGNORECASE)
    text = pattern.sub(lambda match: words[match.group().lower()], text)
    text = re.sub(r"(?i)\bthe (?:customer service )?agent\b", "you", text)
    return re.sub(
        r"(^|[.!?] )(my|mine|myself)\b", lambda match: match.group(1) + match.group(2).capitalize(), text
    )


def _without_stage_directions(instruction: str) -> str:
    """The instruction without the sentences on how to play the customer, unless there are no others."""
    sentences = re.split(r"(?<=[.!?])\s+", re.sub(STAGE_ASIDE, "", instruction.strip()))
    kept = [text for text in sentences if not re.search(STAGE_DIRECTION, text) and len(text) > 1]
    return " ".join(kept) or instruction.strip()
