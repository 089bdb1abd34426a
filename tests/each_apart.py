"""Runs the slow tests, each file in a pytest of its own, one after the other:
`python -m tests.each_apart [what pytest is to be told, too]`.

They start Ray, Serve and vLLM: what one file leaves in its process, or a crash of it, is nothing to the next.
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

SLOW = ["-m", "slow or gpu"]
LIMIT_S = 1500
"""For one file. Each test has a limit of its own, which does not end a process that hangs outside Python."""
NO_TESTS = 5
"""What pytest returns where it has run none."""


def files(words: Sequence[str]) -> list[str]:
    """Those that have slow tests, in pytest's order. Raises CalledProcessError where one cannot be read."""
    listing = [sys.executable, "-m", "pytest", "--collect-only", "-q", *SLOW, *words]
    found = subprocess.run(listing, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode not in (0, NO_TESTS):
        print(found.stdout)
        raise subprocess.CalledProcessError(found.returncode, listing)
    return list(dict.fromkeys(line.partition("::")[0] for line in found.stdout.splitlines() if "::" in line))


def run(file: str, words: Sequence[str]) -> Counter[str]:
    """How many of its tests passed, failed and were skipped."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", *SLOW, f"--junit-xml={report.name}", *words, file]
        try:
            code = subprocess.run(command, timeout=LIMIT_S, check=False).returncode
        except subprocess.TimeoutExpired:
            code = f"no end after {LIMIT_S} s"
        if not Path(report.name).stat().st_size:
            print(f"{file}: pytest ended without a word ({code})")
            return Counter(failed=1)
        (suite,) = ElementTree.parse(report.name).getroot()
    number = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    passed = max(number["tests"] - failed - number["skipped"], 0)
    if code not in (0, 1, NO_TESTS) and not failed:
        failed = 1  # it broke after its last test
    return Counter(passed=passed, failed=failed, skipped=number["skipped"])


def main(words: Sequence[str]) -> int:
    """The exit code: 1 where a test failed."""
    total: Counter[str] = Counter()
    lines: list[str] = []
    for file in files(words):
        began = time.monotonic()
        found = run(file, words)
        total += found
        lines.append(f"{time.monotonic() - began:6.0f} s  {file}{'  FAILED' if found['failed'] else ''}")
    print("\n".join(["", *lines]))
    print(", ".join(f"{total[name]} {name}" for name in ("passed", "failed", "skipped")))
    return int(total["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
