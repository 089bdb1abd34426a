"""The page of all keys is up to date and shows what pydantic checks."""

import re
from pathlib import Path

import pytest

from cluster.config.recipe import known_keys
from cluster.config.recipe_docs import reference
from cluster.config.run_config import RunConfig

PAGE = Path(__file__).resolve().parents[3] / "docs" / "recipes.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == reference(), "the keys of a recipe have changed: make reference"


def rows(section: str) -> dict[str, list[str]]:
    """Key to the cells behind it, of the section with this header."""
    text = reference().partition(f"## `{section}`\n")[2].partition("\n## ")[0]
    table = [line for line in text.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    return {line[0].strip("`"): line[1:] for line in cells}


@pytest.mark.parametrize("key", known_keys(RunConfig))
def test_every_key_has_a_row_with_its_meaning(key: str):
    section, _, name = key.rpartition(".")
    heads = re.findall(rf"^## `(\[{re.escape(section)}\].*)`$", reference(), re.MULTILINE)
    meaning = next(rows(head)[name][-1] for head in heads if name in rows(head))
    assert meaning == " ".join((known_keys(RunConfig)[key].description or "").split())


def test_every_row_has_a_meaning():
    table = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(table) > len(known_keys(RunConfig)), "and those of users and of gyms, which stand in lists"
    assert [line for line in table if line.endswith("|  |")] == []


@pytest.mark.parametrize(
    ("section", "key", "cells"),
    [
        ("[engine]", "gpu_memory_utilization", ["number", "`0.8`", "share", "> 0, ≤ 1"]),
        ("[rollout]", "dialogue_timeout_s", ["number", "unset", "seconds", "> 0"]),
        ("[run]", "seed", ["whole number", "`0`", "", "≥ 0, < 2,147,483,648"]),
        ("[policy.tiny]", "head_dim", ["whole number", "`32`", "", "> 0, a multiple of 32"]),
        ("[rollout]", "on_timeout", ["`mask`, `resume`", '`"mask"`', "", ""]),
        ("[sft]", "files", ["list of paths", "`[]`", "", ""]),
        ("[simulator]", "users", ["list of tables", '`[{ type = "rules" }]`', "", ""]),
        ('[[simulator.users]], type = "llm"', "model", ["text", "**required**", "", ""]),
        (
            "[learner]",
            "loss",
            ["`ppo`, `gspo`, `turn`, `cispo`, `sapo`, `reinforce`, `custom`", '`{ type = "ppo" }`', "", ""],
        ),
        ('[learner.loss], type = "gspo"', "clip_high", ["number", "`0.0004`", "", "> 0"]),
        ('[learner.advantage], type = "turn_gae"', "gae_lambda", ["number", "`0.9`", "", "≥ 0, ≤ 1"]),
        (
            '[learner.aggregation], type = "token_budget"',
            "tokens",
            ["whole number", "**required**", "tokens", "> 0"],
        ),
        ("[reward.judge]", "rubric", ["text", "**required**", "", ""]),
    ],
)
def test_a_row_has_type_default_unit_and_bounds(section: str, key: str, cells: list[str]):
    assert rows(section)[key][:-1] == cells


def test_names_of_a_table_are_listed():
    assert "`turn_loo`" in rows("[learner]")["advantage"][0]
    assert rows("[reward]")["weights"][0].startswith("table of numbers, by name: `environment`, `outcome`")
