"""Recipes: parsing, overrides, and one-line errors with value, rule and cure."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.recipe import BadInput, known_keys, nearest, to_toml
from cluster.config.run_config import RunConfig, load
from learners.loss_config import GspoConfig, LossConfig, PpoConfig, SapoConfig

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))

_scalars = st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False)
_tables = st.recursive(
    st.dictionaries(st.text(), _scalars | st.lists(_scalars), max_size=4),
    lambda inner: st.dictionaries(st.text(), inner | _scalars, max_size=4),
    max_leaves=6,
)


@pytest.mark.medium
@given(_tables)
def test_written_toml_is_read_back(table: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(table)) == table


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_its_resolved_form_is_the_same_config(recipe: Path, tmp_path: Path) -> None:
    config = load(recipe)
    resolved = tmp_path / "config.toml"
    resolved.write_text(config.to_toml())
    assert load(resolved) == config


def test_command_line_wins_over_the_recipe_and_the_recipe_over_the_default(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[grpo]\nnum_steps = 7\n[rollout]\ngroup_size = 4\n")
    config = load(recipe, {"grpo.num_steps": "9", "run.name": "8", "learner.lr": "1e-4"})
    assert (config.grpo.num_steps, config.rollout.group_size) == (9, 4)
    assert config.run.name == "8"
    assert config.learner.lr == 1e-4
    assert config.buffer == RunConfig().buffer


@pytest.mark.parametrize(
    ("text", "overrides", "loss"),
    [
        ("", {"learner.loss": "gspo"}, GspoConfig()),
        ('loss = "gspo"', {}, GspoConfig()),
        ("", {"learner.loss.clip_low": "0.1"}, PpoConfig(clip_low=0.1)),
        ('loss = "gspo"', {"learner.loss.clip_low": "0.1"}, GspoConfig(clip_low=0.1)),
        ("loss = { dual_clip = 2 }", {"learner.loss.clip_low": "0.1"}, PpoConfig(clip_low=0.1, dual_clip=2)),
        ("loss = { dual_clip = 2 }", {"learner.loss": "gspo"}, GspoConfig()),
        ("", {"learner.loss.positive": "2", "learner.loss": "sapo"}, SapoConfig(positive=2)),
        ("", {"learner.loss": '{type = "sapo", positive = 2}'}, SapoConfig(positive=2)),
        ("", {"learner.loss.type": "sapo"}, SapoConfig()),
    ],
)
def test_a_bare_name_stands_for_a_type_and_its_keys_can_be_given_one_by_one(
    text: str, overrides: dict[str, str], loss: LossConfig, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(f"[learner]\n{text}\n")
    config = load(recipe, overrides)
    assert config.learner.loss == loss
    recipe.write_text(config.to_toml())
    assert load(recipe) == config


def test_the_command_line_can_exclude_one_gym_or_select_only_one() -> None:
    assert set(load(None, {"gyms.weights": "{travel = 2.0}"}).gyms.weights) == {"travel"}
    config = load(None, {"gyms.weights": "{travel = 1.0, function = 1.0}", "gyms.weights.travel": "0"})
    assert config.gyms.weights == {"function": 1.0}


def test_every_key_has_help() -> None:
    assert [key for key, info in known_keys(RunConfig).items() if not info.description] == []


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"learner.lrr": "1"}, "learner.lrr: unknown key: did you mean learner.lr?"),
        ({"learner.lr": "fast"}, "learner.lr='fast': must be a number"),
        ({"learner.lr": "-1"}, "learner.lr=-1: must be greater than 0"),
        ({"learner.clip_low": "0.1"}, "learner.clip_low: unknown key: did you mean learner.loss.clip_low?"),
        ({"learner.loss.clip_lo": "0.1"}, "unknown key: did you mean learner.loss.clip_low?"),
        (
            {"learner.loss": "gspoo"},
            "learner.loss='gspoo': unknown: did you mean gspo? Known are ppo, gspo, turn",
        ),
        ({"learner.loss": "3"}, "learner.loss=3: must be a table: write [learner.loss] in the recipe"),
        ({"learner.kl": "k2", "learner.kl.coefficient": "x"}, "learner.kl.coefficient='x': must be a number"),
        (
            {"learner.aggregation": "token_budget"},
            "learner.aggregation.tokens: missing: write it in the recipe",
        ),
        (
            {"learner.by_gym.tau": "{gama = 1}"},
            "learner.by_gym.tau.gama: type=grpo has no such key: its keys",
        ),
        ({"learner.by_gym.tau": "3"}, "learner.by_gym.tau=3: must be a table"),
        ({"rollout.group_size": "1"}, "rollout.group_size=1: a group needs at least 2 trajectories"),
        ({"rollout.group_size": "2.5"}, "rollout.group_size=2.5: must be a whole number"),
        ({"rollout.temperature": "0"}, "rollout.temperature=0: must be greater than or equal to 0.01"),
        ({"rollout.max_completion_tokens": "9999"}, "give less than engine.max_model_len="),
        ({"rollout.dialogues_per_actor": "2"}, "whole groups: at least group_size + extra_dialogues = 8"),
        ({"rollout.extra_dialogues": "57"}, "whole groups: at least group_size + extra_dialogues = 65"),
        ({"rollout.on_timeout": "resume"}, "max_off_policy_steps=0 allows: give 1 or more, or use"),
        ({"rollout.dialogue_timeout_s": "0"}, "rollout.dialogue_timeout_s=0: must be greater than 0"),
        ({"learner.micro_batch_tokens": "100"}, "it must fit the longest dialogue"),
        ({"buffer.groups_per_step": "0"}, "buffer.groups_per_step=0: must be greater than or equal to 1"),
        ({"gyms.weights": "{travl = 1.0}"}, "'travl': unknown gym: did you mean travel?"),
        ({"gyms.weights": "3"}, "gyms.weights=3: must be a table"),
        ({"gyms.weights": "{travel = 0.0}"}, "no gym has a weight above 0"),
        ({"run.name": "a/b"}, "run.name='a/b': a run's name is a folder name"),
        (
            {"tracking.mode": "loud"},
            "tracking.mode='loud': must be 'auto', 'online', 'offline' or 'disabled'",
        ),
    ],
)
def test_a_mistake_is_one_line_with_value_rule_and_cure(overrides: dict[str, str], says: str) -> None:
    with pytest.raises(BadInput) as refusal:
        load(None, overrides)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[learner\n", "not TOML"),
        ("[learner]\nlearning_rate = 1.0\n", "learner.learning_rate: unknown key"),
        ("learner = 3\n", "learner=3: must be a table: write [learner]"),
        ("colour = 3\n", "colour: unknown key"),
        ("[run]\nname = 3\n", "run.name=3: must be text"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(text)
    with pytest.raises(BadInput) as refusal:
        load(recipe)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_error_of_a_missing_recipe_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "cpu-quickstart.toml").touch()
    with pytest.raises(BadInput, match=r"no such recipe: did you mean .*cpu-quickstart\.toml"):
        load(tmp_path / "cpu-quick.toml")


def test_the_last_part_of_a_key_is_enough_to_find_the_nearest_one() -> None:
    assert nearest("num_step", list(known_keys(RunConfig))) == "grpo.num_steps"
