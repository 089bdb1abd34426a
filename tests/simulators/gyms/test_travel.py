"""The travel gym: options, rewards by hand, and that skipping a question does not pay."""

from statistics import mean

import pytest

from simulators.gyms.travel import LEVELS, PARTS, SECOND_BEST
from simulators.task import SPLITS, Task, split_of
from tests.fakes import feedback_of, make_tasks, play, score_of

(TASK,) = make_tasks("travel", num=1, difficulty=1)
WISHES: dict[str, dict[str, str]] = TASK.scenario["wishes"]
FIRST, SECOND = WISHES
REFUSAL = "Please ask about one slot."


ASKS = [f"[action] Which {slot}?" for slots in WISHES.values() for slot in slots]


def find(part: str) -> str:
    """The search with all wishes."""
    return " ".join(["[search]", part, *WISHES[part].values()])


def fitting(task: Task, part: str) -> list[str]:
    """Ids of the options that fit, cheapest first."""
    wished = task.scenario["wishes"][part].items()
    options = sorted(task.scenario["catalogue"][part], key=lambda option: option["price"])
    return [option["id"] for option in options if wished <= option["values"].items()]


@pytest.mark.parametrize("difficulty", range(len(LEVELS)))
def test_no_part_with_its_wishes_is_in_two_splits(difficulty: int):
    for split in SPLITS:
        tasks = make_tasks("travel", num=50, split=split, difficulty=difficulty)
        parts = {
            f"travel:{part}:{sorted(wishes.items())}"
            for task in tasks
            for part, wishes in task.scenario["wishes"].items()
        }
        assert {split_of(part) for part in parts} == {split}


@pytest.mark.parametrize("difficulty", range(len(LEVELS)))
def test_for_each_wish_a_cheaper_option_breaks_only_this_wish(difficulty: int):
    for task in make_tasks("travel", num=30, difficulty=difficulty):
        for part, wishes in task.scenario["wishes"].items():
            options = task.scenario["catalogue"][part]
            assert len({option["id"] for option in options}) == len(options)
            best = next(option for option in options if option["id"] == fitting(task, part)[0])
            for slot in wishes:
                rest = {k: v for k, v in wishes.items() if k != slot}.items()
                cheapest = min((o for o in options if rest <= o["values"].items()), key=lambda o: o["price"])
                assert cheapest["price"] < best["price"] and cheapest["values"][slot] != wishes[slot]


def test_no_value_belongs_to_two_slots_of_a_part_and_no_slot_to_two_parts():
    for slots in PARTS.values():
        values = [value for choices in slots.values() for value in choices]
        assert len(set(values)) == len(values)
    slots = [slot for slots in PARTS.values() for slot in slots]
    assert len(set(slots)) == len(slots)
    assert len({part[0] for part in PARTS}) == len(PARTS)


async def test_an_option_that_was_never_shown_cannot_be_booked():
    best = fitting(TASK, FIRST)[0]
    steps = await play(
        TASK,
        [
            *ASKS,
            f"[answer] {best}",
            f"[search] {SECOND}",
            f"[answer] {best}",
            find(FIRST),
            f"[answer] {best}",
        ],
    )
    assert [step.reward for step in steps] == pytest.approx([*[0] * len(ASKS), 0, 0, 0, 0, 0.5])
    assert steps[-5].feedback == steps[-3].feedback == await feedback_of(TASK, "[answer] X00")


async def test_several_ids_in_one_answer_book_nothing_and_tell_nothing():
    best, second = fitting(TASK, FIRST)
    steps = await play(
        TASK,
        [*ASKS, find(FIRST), f"[answer] {best} {second}", f"[answer] {best}, {best}", f"[answer] {best}"],
    )
    assert [step.reward for step in steps] == pytest.approx([*[0] * len(ASKS), 0, 0, 0, 0.5])
    assert steps[-3].feedback == steps[-2].feedback == await feedback_of(TASK, "[answer] X00")


async def test_a_part_is_booked_once():
    best, second = fitting(TASK, FIRST)
    steps = await play(
        TASK, [*ASKS, find(FIRST), f"[answer] {second}", f"[answer] {best}", f"[answer] {best}"]
    )
    assert [step.reward for step in steps[len(ASKS) :]] == pytest.approx([0, SECOND_BEST / 2, 0, 0])
    assert not steps[-1].terminated


async def test_booking_every_part_ends_the_dialogue():
    texts = [text for part in WISHES for text in (find(part), f"[answer] {fitting(TASK, part)[0]}")]
    steps = await play(TASK, [*ASKS, *texts])
    assert score_of(steps) == pytest.approx(1) and steps[-1].terminated


async def test_a_booking_is_worth_the_share_of_wishes_that_were_told():
    texts = [text for part in WISHES for text in (find(part), f"[answer] {fitting(TASK, part)[0]}")]
    for num_asked in range(len(ASKS) + 1):
        steps = await play(TASK, [*ASKS[:num_asked], *texts])
        assert score_of(steps) == pytest.approx(num_asked / len(ASKS)) and steps[-1].terminated


async def test_the_cheapest_option_without_asking_pays_nothing():
    for task in make_tasks("travel", num=40):
        (part,) = task.scenario["wishes"]
        shown = await feedback_of(task, f"[search] {part}")
        assert score_of(await play(task, [f"[search] {part}", f"[answer] {shown.split()[0]}"])) == 0


@pytest.mark.parametrize("difficulty", range(len(LEVELS)))
async def test_no_price_rank_makes_up_for_a_question_that_was_skipped(difficulty: int):
    scores: list[list[float]] = [[] for _ in range(4)]
    for task in make_tasks("travel", num=40, difficulty=difficulty):
        part, wishes = next(iter(task.scenario["wishes"].items()))
        asks = [f"[action] Which {slot}?" for slot in list(wishes)[1:]]
        search = " ".join(["[search]", part, *list(wishes.values())[1:]])
        shown = (await feedback_of(task, search)).split("; ")
        for rank, option in enumerate(shown):
            steps = await play(task, [*asks, search, f"[answer] {option.split()[0]}"])
            scores[rank].append(score_of(steps) * len(task.scenario["wishes"]))
    assert max(mean(of_rank) for of_rank in scores) <= 0.5


async def test_a_question_about_one_slot_is_answered_and_no_other():
    (slot, wish), (other, _) = WISHES[FIRST].items()
    assert await feedback_of(TASK, f"[action] Which {slot}?") == f"I want {wish}."
    for question in (
        f"Which {slot} and {other}?",
        f"{slot}?",
        "What do you want?",
        f"Which {next(iter(WISHES[SECOND]))} and {slot}?",
    ):
        expected = f"I want {wish}." if question == f"{slot}?" else REFUSAL
        assert await feedback_of(TASK, f"[action] {question}") == expected
    every = " ".join(slot for slots in PARTS.values() for slot in slots)
    assert await feedback_of(TASK, f"[action] {every}") == REFUSAL


async def test_a_slot_of_an_unbooked_part_does_not_count_as_a_second_one_nor_leak():
    foreign = next(slot for part, slots in PARTS.items() if part not in WISHES for slot in slots)
    assert await feedback_of(TASK, f"[action] Which {foreign}?") == REFUSAL
    slot = next(iter(WISHES[FIRST]))
    assert await feedback_of(TASK, f"[action] Which {foreign} and which {slot}?") == REFUSAL


async def test_a_search_is_for_one_part():
    for query in ("", f"{FIRST} {SECOND}", "everything", next(part for part in PARTS if part not in WISHES)):
        assert await feedback_of(TASK, f"[search] {query}") == "Search for one part of the trip."
