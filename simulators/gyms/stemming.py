"""Stemming of free text to sets of word stems, which rule-based users compare."""

import re
from functools import lru_cache

MAX_TEXT_CHARS = 4000
"""Longer texts are cut here."""
STOP_WORDS = frozenset(
    re.split(
        r"\s+",
        "a an the and or of to for in on at by with from as into about within this that these those there "
        "it its is are was were be been being am do does did have has had will would can could should "
        "shall may might must i you he she we they me him them my your his her our their what which who "
        "whom whose when where why how if so then please tell say let know like want need any some kind "
        "type specific s t re ve ll d m",
    )
)
"""Words that do not tell what a text is about. Numbers, `no`, `not`, `more` and `than` are kept."""
IRREGULAR = {
    word: root
    for root, words in {
        "die": "died dies dead death deaths dying",
        "eat": "ate eaten",
        "kill": "killer killers",
        "murder": "murderer murderers",
        "see": "saw seen",
        "find": "found",
        "take": "took taken",
        "give": "gave given",
        "fall": "fell fallen",
        "leave": "left",
        "think": "thought",
        "steal": "stole stolen",
        "hide": "hid hidden",
        "tell": "told",
        "buy": "bought",
        "drive": "drove driven",
        "wear": "wore worn",
        "child": "children",
        "woman": "women",
        "man": "men",
        "wife": "wives",
    }.items()
    for word in words.split()
}
_WORD = re.compile(r"[^\W_]+")
_SUFFIX = re.compile(r"(?<=...)(?:ations?|ating|ings?|ies|ied|ed|es|ly|s|e|y)$")


def stem(word: str) -> str:
    """A lower-case word without its commonest endings. Example: `stem("sizes")` is `stem("size")`."""
    return _SUFFIX.sub("", IRREGULAR.get(word, word))


def words_of(text: str) -> list[str]:
    """All words in order, lower-case, stop words included. Reads at most `MAX_TEXT_CHARS`."""
    return _WORD.findall(text[:MAX_TEXT_CHARS].lower())


def stems_of(text: str) -> frozenset[str]:
    """The stems of all words that are no stop words; of a text of stop words only, those of all its words."""
    words = words_of(text)
    telling = [word for word in words if word not in STOP_WORDS]
    return frozenset(stem(word) for word in telling or words)


@lru_cache(maxsize=1 << 15)
def stems_of_fixed(text: str) -> frozenset[str]:
    """`stems_of` with a cache, for texts that recur: a task's, never an agent's."""
    return stems_of(text)
