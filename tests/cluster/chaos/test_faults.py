"""Chaos by the book: the same faults for the same seed, mended when the run says and shows it."""

import pytest

from cluster.chaos.faults import (
    KINDS,
    LONGEST_CALM_S,
    FaultKind,
    Snapshot,
    has_role,
    is_mended,
    schedule,
    summary,
    summary_by_kind,
)
from cluster.chaos.report import recovery_table, reward_table


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    assert schedule(30, seed=7) == schedule(30, seed=7) != schedule(30, seed=8)


def test_every_kind_comes_before_any_comes_again() -> None:
    faults = schedule(3 * len(KINDS), seed=1)
    for begin in range(0, len(faults), len(KINDS)):
        assert {fault.kind for fault in faults[begin : begin + len(KINDS)]} == set(KINDS)
    assert all(0 <= fault.calm_s <= LONGEST_CALM_S and 0 <= fault.pick < 1 for fault in faults)
    assert len(schedule(5, seed=1)) == 5


def test_each_fault_is_told_with_its_number() -> None:
    titles = [fault.title for fault in schedule(20, seed=1)]
    assert titles[11].startswith("fault 12/20 ") and titles[11].split()[-1] in KINDS


def test_who_is_struck_in_whose_role() -> None:
    roles = {fault.kind: (fault.role, fault.is_hang) for fault in schedule(len(KINDS), seed=0)}
    assert roles["core"] == ("engine", False)
    assert roles["hung_engine"] == ("engine", True)
    assert roles["hung_replica"] == ("replica", True)
    assert roles["driver"] == ("driver", False)
    assert roles["slow_node"] == ("node", False)


def test_an_actor_is_known_by_its_class() -> None:
    assert has_role("RolloutActor", "rollout") and not has_role("RolloutActor", "learner")
    assert has_role("ServeReplica:simulators-quickstart-v1.2:Simulator", "replica")
    assert has_role("create_executable_class.<locals>._WrappedExecutable", "learner"), "Ray Train's name"


def alive(**pids: set[int]) -> dict[str, frozenset[int]]:
    return {role: frozenset(numbers) for role, numbers in pids.items()}


def mended(role: str, victim: int, before: Snapshot, now: Snapshot) -> bool:
    return is_mended(role, victims=frozenset({victim}), before=before, now=now)


def test_a_rollout_actor_is_mended_when_another_lives_in_its_place() -> None:
    before = Snapshot(alive=alive(rollout={1, 2}))
    assert not mended("rollout", 2, before, before), "Ray has not noticed yet"
    assert not mended("rollout", 2, before, Snapshot(alive=alive(rollout={1})))
    assert mended("rollout", 2, before, Snapshot(alive=alive(rollout={1, 9})))


@pytest.mark.parametrize(
    ("role", "line"),
    [
        ("engine", "engine 3 (pid 9 on 127.0.0.1) serves | weights after 0.1s\n"),
        ("learner", "new learners resumed from step-00010, 3 steps repeated | 9.0s\n"),
        ("buffer", "simulators, buffer and 1 engine(s) are up\n"),
    ],
)
def test_a_process_that_lives_is_not_yet_at_work(role: str, line: str) -> None:
    log = line.replace("3 ", "2 ") + "other lines\n"  # from an earlier fault
    before = Snapshot(alive={role: frozenset({1})}, log=log)
    reborn = {role: frozenset({2})}
    assert not mended(role, 1, before, Snapshot(alive=reborn, log=log + "something else\n"))
    assert not mended(role, 1, before, Snapshot(alive={}, log=log + line))
    assert mended(role, 1, before, Snapshot(alive=reborn, log=log + line))


def test_a_node_is_mended_when_all_that_was_on_it_lives_elsewhere() -> None:
    before = Snapshot(alive=alive(node={1, 2}, rollout={3, 4}, engine={5}))
    victims = frozenset({2, 4, 5})

    def is_whole(**pids: set[int]) -> bool:
        return is_mended("node", victims=victims, before=before, now=Snapshot(alive=alive(**pids)))

    assert not is_whole(node={1, 6}, rollout={3, 7}, engine={5})
    assert not is_whole(node={1}, rollout={3, 7}, engine={8})
    assert is_whole(node={1, 6}, rollout={3, 7}, engine={8})


UP = "simulators, buffer and 1 engine(s) are up\n"


def test_a_driver_is_mended_when_everything_is_up_again() -> None:
    before = Snapshot(alive=alive(driver={1}, buffer={2}))
    again = alive(driver={3}, buffer={4})
    assert not mended("driver", 1, before, Snapshot(alive=again))
    assert mended("driver", 1, before, Snapshot(alive=again, log=UP))


@pytest.mark.parametrize("role", ["driver", "buffer"])
def test_what_the_dead_left_behind_is_not_counted_as_what_came_in_its_place(role: str) -> None:
    before = Snapshot(alive=alive(driver={1}, buffer={2}, learner={3, 4}, rollout={5}, replica={6}))
    victim = {"driver": 1, "buffer": 2}[role]
    driver = {7} if role == "driver" else {1}
    # Ray does not know yet that learner 4 and rollout actor 5 are dead, or are about to be.
    early = alive(driver=driver, buffer={8}, learner={4, 9}, rollout={5}, replica={6})
    assert not mended(role, victim, before, Snapshot(alive=early, log=UP))
    whole = alive(driver=driver, buffer={8}, learner={4, 9, 10}, rollout={5, 11}, replica={6})
    assert mended(role, victim, before, Snapshot(alive=whole, log=UP))
    assert not mended(role, victim, before, Snapshot(alive=whole, log="step 12/60 | 4.2s\n"))


def test_the_last_step_that_the_driver_told() -> None:
    log = "step 8/60 | 4.2s\nstep 9/60 | 4.1s | reward 0.4\nstep 10 waits for groups: none\n"
    assert Snapshot(log=log).last_step == "step 9/60"
    assert Snapshot(log=UP).last_step == ""


def test_what_is_printed_of_recoveries() -> None:
    assert summary([("rollout", 4.0), ("driver", 40.0), ("rollout", 6.0), ("node", 8.0)]) == {
        "kills": 4,
        "by_kind": {"rollout": 2, "driver": 1, "node": 1},
        "recovery_s": {"p50": 7.0, "max": 40.0},
    }
    assert summary([]) == {"kills": 0, "by_kind": {}, "recovery_s": {"p50": None, "max": None}}


def test_each_kind_is_told_with_its_times_its_median_and_its_longest() -> None:
    recoveries: list[tuple[FaultKind, float]] = [("rollout", 4.0), ("driver", 40.0), ("rollout", 6.0)]
    recoveries.append(("rollout", 5.5))
    by_kind = summary_by_kind(recoveries)
    assert by_kind == {"rollout": {"p50": 5.5, "max": 6.0}, "driver": {"p50": 40.0, "max": 40.0}}
    table = recovery_table(recoveries, completed=True)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    assert list(rows) == [("rollout", "3", "5.5", "6.0"), ("driver", "1", "40.0", "40.0")]


def test_rewards_stand_side_by_side_in_blocks_of_steps() -> None:
    table = reward_table([{1: 0.0, 2: 0.2, 3: 0.5}, {1: 0.2, 2: 0.4}], {1: 0.2, 2: 0.2})
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["1-1", "2-2", "3-3"], ["0.100", "0.300", "0.500"], ["0.200", "0.200", "-"]]
    long = reward_table([dict.fromkeys(range(1, 18), 0.5)], {})
    assert list(long.columns[0].cells) == ["1-3", "4-6", "7-9", "10-12", "13-15", "16-17"]
