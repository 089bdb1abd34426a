"""docs/code-map.md: every file that it names exists, and the walk has at most 25 files."""

import re

from tests.docs_pages import ROOT

PAGE = (ROOT / "docs" / "code-map.md").read_text()


def test_every_file_and_folder_of_the_map_exists() -> None:
    named = re.findall(r"`((?:simulators|actors|rewards|learners|cluster)/[\w/]+(?:\.py|/))`", PAGE)
    assert len(named) > 40
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_walk_has_at_most_25_files() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \| `", PAGE, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) <= 25
