"""Tasks: splits, keys, and a source that can be stopped and resumed."""

from collections import Counter

import pytest

from simulators.gyms import GYMS
from simulators.task import SPLITS, TaskSource, split_of
from tests.fakes import make_key

WEIGHTS = {"function": 1.0, "travel": 3.0}


def source(*, num_drawn: int = 0, seed: int = 5) -> TaskSource:
    return TaskSource(WEIGHTS, split="train", seed=seed, difficulty=1, num_drawn=num_drawn)


def test_every_meaning_has_exactly_one_split_and_the_shares_hold():
    counts = Counter(split_of(f"meaning {i}") for i in range(10_000))
    assert set(counts) == set(SPLITS)
    assert counts["train"] == pytest.approx(8000, abs=200)
    assert counts["validation"] == pytest.approx(1000, abs=150)
    assert split_of("2*a") == split_of("2*a")


def test_a_source_that_starts_at_n_goes_on_exactly_as_the_first():
    first = source()
    keys = [first.draw() for _ in range(20)]
    later = source(num_drawn=8)
    assert [later.draw() for _ in range(12)] == keys[8:]
    assert later.num_drawn == first.num_drawn == 20


def test_a_source_mixes_gyms_by_weight_and_repeats_no_key():
    drawn = source()
    keys = [drawn.draw() for _ in range(2000)]
    assert len(set(keys)) == 2000
    assert Counter(key.gym for key in keys)["travel"] == pytest.approx(1500, abs=100)
    assert {(key.split, key.difficulty) for key in keys} == {("train", 1)}


def test_another_seed_is_another_order_of_other_tasks():
    one, other = source(seed=5), source(seed=6)
    assert [one.draw().gym for _ in range(30)] != [other.draw().gym for _ in range(30)]


@pytest.mark.parametrize("gym", GYMS)
def test_the_same_key_is_the_same_task(gym: str):
    key = make_key(gym, index=3, difficulty=1)
    assert GYMS[gym].make_task(key) == GYMS[gym].make_task(key)


@pytest.mark.parametrize("gym", GYMS)
def test_keys_that_differ_in_anything_have_their_own_random_source(gym: str):
    keys = [
        make_key(gym),
        make_key(gym, index=1),
        make_key(gym, seed=1),
        make_key(gym, difficulty=1),
        make_key(gym, split="train"),
    ]
    assert len({key.task_id for key in keys}) == len({key.rng().random() for key in keys}) == len(keys)


def test_each_gym_of_a_mix_has_its_own_random_source():
    assert make_key("function").rng().random() != make_key("travel").rng().random()
