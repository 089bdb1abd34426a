"""Law of words: riddles and private names are not used in docstrings, comments, pages and names of the code.

Every offence is listed as file:line, so that one run shows all that is to be changed.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs_pages import BLOCK, PAGES, ROOT, name_of
from tests.syntax_trees import tree_of

ROOMS = ("simulators", "actors", "rewards", "learners", "cluster")
CLEAN = (*ROOMS, "examples")
"""Where no banned word is left; the others join as they are rewritten."""
NAMED = (*ROOMS, "examples")
"""Where no banned name is left."""
FILES = sorted(path for room in (*ROOMS, "examples") for path in (ROOT / room).rglob("*.py"))
WHO = re.compile(r"\bwhom?\b", re.IGNORECASE)
BANNED_WORDS = {
    r"whoever|nobody|somebody|anybody|everybody": "name the process, actor or person",
    r"anew": "again; or restarted, recreated",
    r"of now": "current",
    r"heed(?:s|ed|ing)?": "obeys, uses",
    r"c[oa]mes? home": "returns, finishes",
    r"(?:is|are) told": "receives, is set to",
    r"takes? part|took part": "joins, is included",
    r"of its own accord": "without being asked",
    WHO.pattern: "that, which; `who` is for people",
}
"""Words (regular expressions) to what to write instead."""
OF_PEOPLE = re.compile(
    r"\b(?:people|persons?|users?|humans?|customers?|authors?|engineers?|readers?|agents?|team|someone|one)"
    r"(?:,| \w+)? whom?\b",
    re.IGNORECASE,
)
"""`Who` after a word for people is right."""
ABOUT_PEOPLE = ("simulators/", "cluster/play/", "docs/users.md", "docs/add-a-user.md", "docs/gyms.md")
"""Files that are about persons, where `who` needs no such word before it."""
ALLOWED = {("CONTRIBUTING.md", "*Who* is for people")}
"""(file, part of the line) of a use of `who` that means a human being and that `OF_PEOPLE` does not see."""
BANNED_NAMES = frozenset({
    "accounts", "anew", "begun", "begun_turn", "crew", "cut", "delivery", "demand", "dropped",
    "engine_line", "engine_pauses", "engine_pulse", "enough", "feed", "flat_watch", "give", "hang_up",
    "heap", "hear", "heed", "keep_up", "keep_working", "let_go", "let_leave", "manner", "new_start",
    "nobody", "notices", "orders", "pace", "place", "pulse", "recall", "redo", "roll_call", "room",
    "sealed", "settle", "settled", "speak", "strikes", "tell", "teller", "telling", "told", "untrusted",
    "way", "whoever",
})  # fmt: skip
"""Names of files, classes (as snake case) and functions that say nothing to a reader of this field."""


def _where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of the docstrings, of attributes too, and comments of a Python file."""
    text = path.read_text()
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                yield from enumerate(text.splitlines()[node.lineno - 1 : node.end_lineno], node.lineno)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _prose_of_page(page: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of a page without its fenced blocks and inline code."""
    text = BLOCK.sub(lambda found: "\n" * found[0].count("\n"), page.read_text())
    for number, line in enumerate(text.splitlines(), 1):
        yield number, re.sub(r"`[^`]*`", "`", line)


def _banned_words(where: str, lines: Iterator[tuple[int, str]]) -> list[str]:
    offences = []
    for number, line in lines:
        is_allowed = where.startswith(ABOUT_PEOPLE) or any(
            where == file and part in line for file, part in ALLOWED
        )
        checked = WHO.sub("", line) if is_allowed else OF_PEOPLE.sub("", line)
        for words, instead in BANNED_WORDS.items():
            for found in re.finditer(rf"\b(?:{words})\b", checked, re.IGNORECASE):
                offences.append(f"{where}:{number}: {found[0]!r}: write: {instead}: {line.strip()}")
    return offences


@pytest.mark.parametrize("room", CLEAN)
def test_docstrings_and_comments_use_plain_words(room: str):
    files = [path for path in FILES if _where(path).startswith(f"{room}/")]
    offences = [line for path in files for line in _banned_words(_where(path), _prose_of(path))]
    assert not offences, "\n" + "\n".join(offences)


GENERATED = {"docs/recipes.md"}
"""Pages made of docstrings that are checked where they stand."""


def test_pages_use_plain_words():
    pages = [page for page in PAGES if name_of(page) not in GENERATED]
    offences = [line for page in pages for line in _banned_words(name_of(page), _prose_of_page(page))]
    assert not offences, "\n" + "\n".join(offences)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip("_")).lower()


def _banned_names(path: Path) -> Iterator[str]:
    where = _where(path)
    if path.stem in BANNED_NAMES:
        yield f"{where}:1: file {path.stem}"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = _snake(node.name)
            if name in BANNED_NAMES or name.startswith("expect_"):
                yield f"{where}:{node.lineno}: {node.name}"


def test_files_classes_and_functions_have_names_that_the_field_knows():
    files = [path for path in FILES if _where(path).split("/")[0] in NAMED]
    offences = [line for path in files for line in _banned_names(path)]
    assert not offences, "\n" + "\n".join(offences)


def test_every_module_says_in_its_first_sentence_what_it_is():
    """The sentence ends within two lines. An empty `__init__.py` needs none."""
    offences = []
    for path in FILES:
        text = path.read_text()
        docstring = ast.get_docstring(tree_of(path))
        if not docstring:
            offences += [f"{_where(path)}:1: no module docstring"] if text.strip() else []
        elif not re.search(r"[.](?=\s|$)", " ".join(docstring.splitlines()[:2])):
            offences.append(f"{_where(path)}:1: the first sentence is longer than two lines")
    assert not offences, "\n" + "\n".join(offences)
