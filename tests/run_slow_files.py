"""Runs the slow tests, each file in a pytest of its own: `python -m tests.run_slow_files [MARKS]`.

They start Ray, Serve and vLLM: what one file leaves in its process, or a crash of it, is nothing to the next.
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

MARKS = sys.argv[1] if len(sys.argv) > 1 else "(slow or gpu) and not soak"
PYTEST = [sys.executable, "-m", "pytest", "-m", MARKS]
LIMIT_S = 3600
"""For one file. Each test has a limit of its own, which does not end a process that hangs outside Python."""


def files() -> list[str]:
    """Those that have slow tests, in pytest's order. Raises RuntimeError where pytest finds none."""
    found = subprocess.run([*PYTEST, "--collect-only", "-q"], stdout=subprocess.PIPE, text=True, check=False)
    names = [line.partition("::")[0] for line in found.stdout.splitlines() if "::" in line]
    if found.returncode or not names:
        raise RuntimeError(f"no slow tests were found (exit code {found.returncode}):\n{found.stdout}")
    return list(dict.fromkeys(names))


def run(file: str) -> Counter[str]:
    """How many of its tests passed, failed and were skipped."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        try:
            command = [*PYTEST, f"--junit-xml={report.name}", file]
            code = subprocess.run(command, timeout=LIMIT_S, check=False).returncode
        except subprocess.TimeoutExpired:
            code = f"no end after {LIMIT_S} s"
        if not Path(report.name).stat().st_size:
            print(f"{file}: pytest ended without a word ({code})", flush=True)
            return Counter(failed=1)
        (suite,) = ElementTree.parse(report.name).getroot()
    number = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    passed = max(number["tests"] - failed - number["skipped"], 0)
    if code and not failed:
        print(f"{file}: pytest broke after its last test ({code})", flush=True)
        failed = 1
    return Counter(passed=passed, failed=failed, skipped=number["skipped"])


def main() -> int:
    """The exit code: 1 where a test failed."""
    total: Counter[str] = Counter()
    lines: list[str] = []
    for file in files():
        began = time.monotonic()
        found = run(file)
        total += found
        lines.append(f"{time.monotonic() - began:6.0f} s  {file}{'  FAILED' if found['failed'] else ''}")
    print("\n".join(["", *lines]))
    print(", ".join(f"{total[name]} {name}" for name in ("passed", "failed", "skipped")))
    return int(total["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
