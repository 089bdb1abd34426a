"""Command line of the benchmarks, `make bench`: every part in a process of its own, one after the other.
`make bench ONLY=buffer,engine_limit` runs some."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.result_rows import LATEST, MARKDOWN, ROOT, Row, keep

PARTS = (
    "rollout",
    "engine_limit",
    "asynchrony",
    "buffer",
    "write_ahead_log",
    "memory",
    "weight_sync",
    "learner",
    "scaling",
)
TIME_LIMIT_S = 2400


def run_part(name: str, *, quick: bool) -> list[Row]:
    """The part's rows. Raises RuntimeError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"bench.{name}", "--out", str(out), *(["--quick"] if quick else [])]
        done = subprocess.run(command, cwd=ROOT.parent, timeout=TIME_LIMIT_S)
        if done.returncode:
            raise RuntimeError(f"bench {name} ended with {done.returncode}")
        return [Row(**row) for row in json.loads(out.read_text())]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures this system beside its peers.")
    parser.add_argument("--only", default="", help=f"parts, joined by commas: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small and short; nothing is written")
    arguments = parser.parse_args()
    names = [name for name in arguments.only.split(",") if name] or list(PARTS)
    for name in names:
        if name not in PARTS:
            parser.error(f"--only {name}: unknown part: the known ones are {', '.join(PARTS)}")
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        try:
            rows = run_part(name, quick=arguments.quick)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(error, file=sys.stderr)
            failed.append(name)
            continue
        if not arguments.quick:
            keep(rows, benches=[name])
    if not arguments.quick:
        print(f"written: {LATEST} and {MARKDOWN}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
