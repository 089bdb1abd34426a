"""`userrl status`: a run read from its folder alone, at once, whatever state it is in."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.config.run_config import load
from cluster.console.events import StepFinished
from cluster.console.log import LOG, warn
from cluster.console.progress import report_step, report_wait
from cluster.run_folder.heartbeat import DriverStatus, recorded
from cluster.run_folder.paths import RunFolder
from cluster.status.files import best_step, last_lines
from cluster.status.rates import rates_of, waits_of
from cluster.status.status import read_status
from cluster.status.text import status_lines
from learners.buffer.buffer import BufferSizes
from tests.cluster.console.test_screens import METRICS, ROOT
from tests.learners.local_buffer import make_local_buffer

KEYS = {"run.name": "mine", "rollout.group_size": "4", "buffer.groups_per_step": "2", "grpo.num_steps": "20"}


def a_run(path: Path, *, steps: int = 0) -> RunFolder:
    """Steps of 2 s, of which each settles 16 trajectories and leaves 8 in flight."""
    config = load(None, KEYS | {"run.folder": str(path)})
    folder = RunFolder.of(config)
    folder.create(config)
    folder.metrics.write_text("".join(json.dumps(line(step)) + "\n" for step in range(1, steps + 1)))
    return folder


def line(step: int) -> dict[str, float | int | None]:
    """Step 3 has the best reward, 0.9."""
    return {
        "step": step,
        **METRICS,
        "rollout/reward/mean": 0.9 if step == 3 else step / 100,
        "rollout/reward/travel": 1.0,
        "time/step_s": 2.0,
        "time/wait_s": 0.5,
        "rollout/tokens_per_s": 1000.0,
        "learner/idle/share": 0.5,
        "engine/idle/share": 0.05,
        "engine/requests/mean": 60.0,
        "ledger/issued": 16.0 * step + 8,
        "ledger/in_flight": 8.0,
        "buffer/groups_ready": 1.0,
        "buffer/slots_taken": 2.0,
        "buffer/journal_failures": 1.0,
        "rollout/num_actors": 2.0,
        "engine/num_serving": 1.0,
    }


def test_rates_are_of_the_last_steps_by_the_ledger() -> None:
    rates = rates_of([line(step) for step in (5, 6, 7)], dialogues_per_group=4)
    assert (rates.step_s, rates.tokens_per_s) == (2.0, 1000.0)
    assert rates.dialogues_per_min == 2 * 16 / 4.0 * 60  # of steps 6 and 7, after 5
    assert rates.groups_per_s == 2 * 16 / 4 / 4.0
    first = rates_of([line(1)], dialogues_per_group=4)
    assert first.dialogues_per_min == 16 / 2.0 * 60
    alone = rates_of([line(7)], dialogues_per_group=4)
    assert (alone.step_s, alone.dialogues_per_min, alone.groups_per_s) == (2.0, None, None)
    assert rates_of([], dialogues_per_group=4).step_s is None


def test_a_long_step_counts_more_than_a_short_one() -> None:
    slow = {**line(2), "time/step_s": 6.0, "rollout/tokens_per_s": 500.0}
    rates = rates_of([line(1), slow, line(3)], dialogues_per_group=4)
    assert (rates.step_s, rates.tokens_per_s) == (4.0, (6 * 500 + 2 * 1000) / 8)


def test_what_the_rest_waits_for_is_read_as_scaling_reads_it() -> None:
    told = {"text": "", "since_s": None, "disk_free_bytes": 0, "journal_bytes": 0}
    lines = [line(step) for step in (1, 2, 3)]
    waits = waits_of(lines, places=64, is_synchronous=False, **told)
    assert (waits.limit, waits.learner_idle) == ("engines", 0.5)
    assert waits_of(lines, places=512, is_synchronous=False, **told).limit == "dialogues"
    assert waits_of([], places=64, is_synchronous=False, **told).limit == ""


async def test_the_orders_that_a_step_waits_for_are_named(tmp_path: Path) -> None:
    sizes = BufferSizes(group_size=4, groups_per_step=2, max_off_policy_steps=0, seed=0)
    buffer = make_local_buffer(tmp_path, sizes, group_timeout_s=60.0)
    await buffer.next_orders("rollout-1", max_groups=2)
    with pytest.raises(TimeoutError) as waited:
        await buffer.take(2, 0, timeout_s=0.01)
    told = {"since_s": 3.0, "places": 64, "is_synchronous": True, "disk_free_bytes": 0, "journal_bytes": 0}
    orders = waits_of([], text=f"step 1 waits for groups: {waited.value}", **told).orders
    assert [order.rpartition(" for ")[0] for order in orders] == [
        "group 0 with rollout-1",
        "group 1 with rollout-1",
    ]
    await buffer.close()


def test_a_running_run_says_where_it_is_and_what_waits(tmp_path: Path) -> None:
    folder = a_run(tmp_path, steps=4)
    folder.begin_checkpoint(4)
    written = folder.complete_checkpoint(4) / "driver.json"
    written.write_text("{}")
    now = time.time()
    os.utime(written, (now - 90, now - 90))
    with folder.locked(), recorded(folder, num_steps=20):
        warn("engine 1 is lost: another is started")
        LOG.info(StepFinished(step=4, num_steps=20, text="step 4/20", left_s=100.0, metrics=METRICS))
        report_wait(
            "step 5 waits for groups: 1 of 2 groups are ready after 3 s; group 7 with rollout-1 for 9 s"
        )
        status = read_status(folder.path, at=time.time() + 10)
    assert (status.health, status.is_running, status.step, status.num_steps) == ("running", True, 4, 20)
    assert status.left_s == pytest.approx(90, abs=2), "it goes down while nobody speaks"
    assert status.driver is not None
    assert (status.driver.pid, status.driver.stage) == (os.getpid(), "GRPO")
    assert status.driver.silent_s == pytest.approx(10, abs=2)
    assert (status.reward.last, status.reward.best, status.reward.best_step) == (0.04, 0.9, 3)
    assert status.waits.orders == ["group 7 with rollout-1 for 9 s"]
    assert status.waits.since_s == pytest.approx(10, abs=2)
    assert (status.waits.groups_ready, status.waits.trajectories_in_flight) == (1.0, 8.0)
    assert status.checkpoint is not None and status.checkpoint.step == 4
    assert status.checkpoint.age_s == pytest.approx(100, abs=3)
    assert [one.text for one in status.troubles] == ["engine 1 is lost: another is started"]
    text = "\n".join(status_lines(status))
    for part in ("running, pid", "GRPO | step 4 of 20 | 1m 30s left", "best 0.900 at step 3"):
        assert part in text.replace("1m 29s", "1m 30s"), text
    assert "the rest waits for engines" in text and "failed writes: journal 1" in text
    assert "for        group 7 with rollout-1 for 9 s" in text
    assert "ago: engine 1 is lost" in text
    assert "rollout actors 2, engines 1, learners 1" in text


def test_steps_that_are_taken_again_are_told_from_those_before(tmp_path: Path) -> None:
    folder = a_run(tmp_path, steps=14)
    folder.begin_checkpoint(10)
    (folder.complete_checkpoint(10) / "driver.json").write_text("{}")
    stopped = read_status(folder.path)
    assert (stopped.step, stopped.again_up_to) == (14, None), "what metrics.jsonl has"
    with folder.locked(), recorded(folder, num_steps=20):
        told = []
        for step in (10, 11, 14, 15):
            if step > 10:
                LOG.info(StepFinished(step=step, num_steps=20, text="", left_s=None, metrics=METRICS))
            status = read_status(folder.path)
            told.append((status.step, status.again_up_to, status.left_s))
    assert told == [(10, 14, 20.0), (11, 14, 18.0), (14, None, 12.0), (15, None, 10.0)]
    text = "\n".join(status_lines(replace(status, step=11, again_up_to=14)))
    assert "| step 11 (again, up to 14) of 20" in text


def test_without_the_drivers_words_the_steps_say_what_is_left(tmp_path: Path) -> None:
    folder = a_run(tmp_path, steps=4)
    with folder.locked():  # as one that the command line did not start
        status = read_status(folder.path)
    assert (status.is_running, status.driver, status.left_s) == (True, None, 16 * 2.0)


def test_every_end_of_a_run_has_its_word(tmp_path: Path) -> None:
    folder = a_run(tmp_path, steps=1)
    assert read_status(folder.path).health == "stopped"
    for error, health in ((KeyboardInterrupt(), "stopped"), (ValueError("bad luck"), "failed")):
        with pytest.raises(type(error)), recorded(folder, num_steps=20):
            raise error
        assert read_status(folder.path).health == health
    assert read_status(folder.path).reason == "ValueError: bad luck"
    assert read_status(folder.path).troubles[-1].text == "ValueError: bad luck"
    dead = DriverStatus(state="running", pid=1, host="there", began_at=0.0, at=1.0, step=7, ends_at=50.0)
    folder.status.write_text(json.dumps({name: getattr(dead, name) for name in DriverStatus.__slots__}))
    status = read_status(folder.path)
    assert (status.health, status.step, status.left_s, status.driver) == ("killed", 1, None, None)
    with recorded(folder, num_steps=20):
        report_step(2, num_steps=20, metrics=METRICS)
    assert read_status(folder.path).health == "finished"


def test_sizes_are_those_of_the_last_step_and_what_was_asked_for(tmp_path: Path) -> None:
    folder = a_run(tmp_path, steps=2)
    folder.scale.write_text('{"rollouts": 4, "simulators": 3, "request": "abc"}')
    sizes = read_status(folder.path).sizes
    assert (sizes.rollouts, sizes.engines, sizes.learners, sizes.simulators) == (2.0, 1.0, 1, 3)
    assert sizes.asked == {"rollouts": 4, "simulators": 3}


def test_a_file_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    folder = a_run(tmp_path, steps=300)
    with folder.metrics.open("a") as file:
        file.write('{"step": 301, "rollout/reward/mean": 7.0, "time/st')
    lines = last_lines(folder.metrics)
    assert [one["step"] for one in lines] == list(range(290, 301))
    assert best_step(folder.metrics) == (300, 3.0)
    folder.metrics.write_text('{"step": 1, "rollout/reward/mean": null}\n')
    assert best_step(folder.metrics) is None


def test_a_folder_of_another_version_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[grpo]\nnum_steps = 5\nunknown = 1\n")
    (tmp_path / "evaluation.json").write_text("not json")
    status = read_status(tmp_path)
    assert (status.num_steps, status.step, status.scores, status.checkpoint) == (5, 0, {}, None)
    assert "none yet" in "\n".join(status_lines(status))


def test_the_command_prints_lines_or_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "runs", steps=2)
    assert main(["status", "mine", "--json"]) == 0  # its name in runs/
    read = json.loads(capsys.readouterr().out)
    assert {"run", "is_running", "step", "num_steps", "left_s", "reward", "rates", "waits"} <= read.keys()
    assert {"sizes", "checkpoint", "troubles", "driver", "health", "scores"} <= read.keys()
    assert (read["run"], read["step"], read["rates"]["step_s"]) == ("mine", 2, 2.0)
    assert main(["status", "runs/mine"]) == 0
    assert capsys.readouterr().out.startswith("runs/mine: stopped; `userrl train runs/mine` resumes it\n")


def test_a_folder_without_a_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "no run there: give a run folder" in told.err


@pytest.mark.medium
def test_status_takes_an_instant_and_loads_nothing_heavy(tmp_path: Path) -> None:
    folder = a_run(tmp_path, steps=50)
    heavy = "('torch', 'ray', 'vllm', 'transformers', 'wandb', 'matplotlib', 'pyarrow')"
    program = (
        "import sys; from cluster.cli.main import main\n"
        f"code = main(['status', {str(folder.path)!r}])\n"
        f"loaded = [name for name in {heavy} if name in sys.modules]\n"
        "sys.exit(f'{code} {loaded}' if code or loaded else 0)"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 3
