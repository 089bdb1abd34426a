"""A run that is nothing but its tracker, for tests that kill it or take W&B away:
`python -m tests.cluster.tracking.wandb.tracked_run FOLDER RESUME_STEP FIRST LAST TIMEOUT_S SECONDS_A_STEP`.

It tells steps FIRST to LAST, a line on stdout for each, and then how long the telling and the closing took.
Steps up to RESUME_STEP stand from before.
"""

import sys
import time
from pathlib import Path

from cluster.config.run_config import load
from cluster.run_folder.paths import RunFolder
from cluster.tracking.tracker import Tracker
from cluster.tracking.wandb import run
from tests.cluster.sample_run_folders import GYMS, make_group, write_step

METRICS = {
    "time/step_s": 4.21,
    "time/wait_s": 1.0,
    "rollout/reward/mean": 0.414,
    "rollout/turns/mean": 5.2,
    "rollout/tokens_per_s": 8123.0,
    "buffer/age/max": 0.0,
    "learner/entropy": 0.5,
    "learner/idle/share": 0.064,
    "engine/idle/share": 0.02,
    "ledger/issued": 640.0,
    "ledger/trained": 512.0,
    "ledger/dropped/flat": 112.0,
    "ledger/dropped/failed": 0.0,
    "ledger/in_flight": 16.0,
}


def main(path: Path, *, resume_step: int, first: int, last: int, timeout_s: float, step_s: float) -> None:
    run.INIT_TIMEOUT_S = run.FINISH_TIMEOUT_S = timeout_s
    run.CLOSE_TIMEOUT_S = timeout_s + 7
    folder, config = RunFolder(path), load(path / "config.toml")
    longest_s = 0.0
    tracker = Tracker(folder, config=config, resume_step=resume_step)
    for step in range(first, last + 1):
        tables = [make_group(step, number, text="hello")[0] for number in range(len(GYMS))]
        write_step(folder.trajectories / f"step-{step:05d}.parquet", tables, step=step)
        began = time.perf_counter()
        tracker.log_step(step, metrics=METRICS)
        longest_s = max(longest_s, time.perf_counter() - began)
        print(f"logged {step}", flush=True)
        time.sleep(step_s)
    began = time.perf_counter()
    tracker.close()
    print(f"longest {longest_s:.3f} close {time.perf_counter() - began:.3f}", flush=True)


if __name__ == "__main__":
    words = sys.argv[2:]
    main(
        Path(sys.argv[1]),
        resume_step=int(words[0]),
        first=int(words[1]),
        last=int(words[2]),
        timeout_s=float(words[3]),
        step_s=float(words[4]),
    )
