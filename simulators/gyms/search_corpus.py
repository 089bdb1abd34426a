"""Generated corpus of the search gym: facts, documents that state them, and BM25 search over the documents.

A world is the same in every process. Shops and people belong to a split, each together with all people linked
to them; cities and rivers are shared by all splits.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import TYPE_CHECKING

from simulators.task import SPLITS, Split, split_of

if TYPE_CHECKING:
    import bm25s

LOOKS = (
    *("red", "blue", "green", "white", "black", "gold", "silver", "brown", "pink", "grey"),
    *("old", "new", "big", "small", "wild", "quick", "lazy", "happy", "quiet", "lucky"),
)
SIGNS = (
    *("owl", "fox", "bear", "wolf", "lion", "swan", "crow", "goat", "horse", "whale"),
    *("rose", "oak", "moon", "star", "crown", "bell", "key", "ship", "wheel", "anchor"),
)
FIRST_NAMES = (
    *("anna", "ben", "clara", "david", "emma", "frank", "grace", "henry", "iris", "jack"),
    *("kate", "leo", "maria", "nora", "oscar", "paul", "rosa", "sam", "tina", "victor"),
)
LAST_NAMES = (
    *("stone", "hill", "wood", "lake", "field", "marsh", "ford", "park", "dale", "brook"),
    *("cole", "reed", "hart", "lane", "page", "ross", "shaw", "webb", "york", "nash"),
)
CITIES = (
    *("oslo", "rome", "paris", "lima", "cairo", "delhi", "quito", "seoul", "perth", "dakar", "tokyo"),
    *("berlin", "madrid", "vienna", "lisbon", "athens", "dublin", "prague", "warsaw", "milan", "bern"),
    *("boston", "dallas", "denver", "austin", "miami", "havana", "bogota", "nairobi", "lagos", "accra"),
    *("tunis", "beirut", "tehran", "kabul", "hanoi", "manila", "osaka", "sydney", "geneva"),
)
RIVERS = (
    *("nile", "rhine", "thames", "seine", "tiber", "volga", "indus", "ganges", "congo", "niger"),
    *("amazon", "orinoco", "danube", "elbe", "oder", "loire", "rhone", "ebro", "douro", "tagus"),
    *("tigris", "jordan", "mekong", "yukon", "ohio", "hudson", "zambezi", "murray", "dnieper", "vistula"),
    *("neva", "lena", "amur", "ural", "marne", "somme", "shannon", "severn", "tweed", "clyde"),
)
PHRASES: dict[str, tuple[str, ...]] = {
    "owner": ("The owner of {s} is {o}.", "{o} is the owner of {s}."),
    "cook": ("The cook of {s} is {o}.", "{o} is the cook of {s}."),
    "home": ("The home of {s} is {o}.", "{s} has a home in {o}."),
    "birthplace": ("The birthplace of {s} is {o}.", "{s} has {o} as a birthplace."),
    "friend": ("The friend of {s} is {o}.", "{s} has {o} as a friend."),
    "river": ("The river of {s} is {o}.", "{s} lies on the river {o}."),
    "twin": ("The twin of {s} is {o}.", "{s} has {o} as a twin."),
}
"""Relation to its wordings in documents; level 0 uses the first only."""
STALE: tuple[str, ...] = ("Long ago the {r} of {s} was {o}.", "Some say that the {r} of {s} may be {o}.")
"""Outdated facts and hearsay in the documents of level 2."""
FILLER: tuple[str, ...] = (
    "The story is told in many places.",
    "Little else is known about it.",
    "A short note in the local paper said so.",
    "Visitors often ask about it.",
)
NUM_SHOWN: tuple[int, ...] = (1, 3, 5)
"""Documents that a search shows, by level; 5 is the published number."""
MAX_QUERY = 200
"""Characters of a query that are read."""
QUERIES_KEPT = 65536


@dataclass(frozen=True, kw_only=True, slots=True)
class FactWorld:
    """All facts of one level."""

    facts: Mapping[tuple[str, str], str]
    """(entity, relation) to the related entity."""
    shops: Mapping[Split, tuple[str, ...]]
    """The shops that belong to each split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchIndex:
    """The documents of one level, and BM25 over them."""

    documents: tuple[str, ...]
    scorer: "bm25s.BM25"
    vocabulary: Mapping[str, int]


@cache
def make_world() -> FactWorld:
    """The facts: owner and cook of each shop, friend, home and birthplace of each person, and so on. A few
    thousand, generated in milliseconds."""
    rng = random.Random("search-world")
    facts: dict[tuple[str, str], str] = {}
    shops = [f"{look} {sign}" for look, sign in product(LOOKS, SIGNS)]
    people = [f"{first} {last}" for first, last in product(FIRST_NAMES, LAST_NAMES)]
    rng.shuffle(people)
    of_split: dict[Split, tuple[str, ...]] = {}
    for split in SPLITS:
        of_split[split] = tuple(shop for shop in shops if split_of(f"search:{shop}") == split)
        num_shops = len(of_split[split])
        group, people = people[:num_shops], people[num_shops:]
        for relation, subjects in (("owner", of_split[split]), ("cook", of_split[split]), ("friend", group)):
            # A shift of a shuffled circle: everyone occurs once, and no one is their own friend.
            circle = list(group) if relation == "friend" else rng.sample(group, num_shops)
            facts |= {(subject, relation): circle[(i + 1) % num_shops] for i, subject in enumerate(subjects)}
        # Every city as often as any other: a name that is right more often than the rest could be guessed.
        homes, shift = rng.sample(CITIES, len(CITIES)), rng.randrange(1, len(CITIES))
        for i, person in enumerate(group):
            facts[person, "home"] = homes[i % len(homes)]
            facts[person, "birthplace"] = homes[(i + shift) % len(homes)]
    circle = rng.sample(CITIES, len(CITIES))
    for i, (city, river) in enumerate(zip(circle, rng.sample(RIVERS, len(RIVERS)), strict=True)):
        facts[city, "river"], facts[city, "twin"] = river, circle[(i + 1) % len(circle)]
    return FactWorld(facts=facts, shops=of_split)


def search(query: str, *, level: int) -> tuple[str, ...]:
    """The best documents for a query, best first; empty if none of its words occurs."""
    return _best(tuple(_words(query[:MAX_QUERY])), level)


@lru_cache(maxsize=QUERIES_KEPT)
def _best(words: tuple[str, ...], level: int) -> tuple[str, ...]:
    index = make_index(level)
    known = [index.vocabulary[word] for word in words if word in index.vocabulary]
    if not known:
        return ()
    scores = index.scorer.get_scores_from_ids(known)
    num = NUM_SHOWN[level]
    threshold = scores[scores.argpartition(-num)[-num:]].min()
    # All that tie at the threshold compete, so that the order does not depend on numpy's partitioning.
    best = sorted((scores >= threshold).nonzero()[0], key=lambda i: (-scores[i], i))[:num]
    return tuple(index.documents[i] for i in best if scores[i] > 0)


@cache
def make_index(level: int) -> SearchIndex:
    """The documents of a level with their index; some hundredths of a second, once a process."""
    import bm25s  # slow to import, and only this gym needs it

    documents = _documents(level)
    words = [_words(document) for document in documents]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(w for line in words for w in line))}
    scorer = bm25s.BM25()
    ids = [[vocabulary[word] for word in line] for line in words]
    scorer.index((ids, vocabulary), show_progress=False)
    return SearchIndex(documents=documents, scorer=scorer, vocabulary=vocabulary)


def _documents(level: int) -> tuple[str, ...]:
    """Level 0: a document a fact. Above: titled, in more than one wording, with filler; level 2: with
    outdated facts and hearsay."""
    rng = random.Random(f"search-documents-{level}")
    facts = make_world().facts
    same_kind: dict[str, list[str]] = {}
    for (_, relation), value in facts.items():
        same_kind.setdefault(relation, []).append(value)
    documents: list[str] = []
    for (subject, relation), value in facts.items():
        if level == 0:
            documents.append(PHRASES[relation][0].format(s=subject, o=value))
            continue
        text = rng.choice(PHRASES[relation]).format(s=subject, o=value)
        if level > 1:
            stale = rng.choice(STALE).format(r=relation, s=subject, o=rng.choice(same_kind[relation]))
            text = " ".join(rng.sample((text, stale), 2))
        documents.append(f"{subject}: {text} {rng.choice(FILLER)}")
    return tuple(documents)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())
