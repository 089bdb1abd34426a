"""Runs the slow tests, two files at a time: `python -m tests.run_slow_files [MARKS]`.

They start Ray, Serve and vLLM. Each file has a pytest process of its own, so that nothing it leaves behind,
and no crash, reaches the next file. Two run at a time, so that the processors have work while a
file waits for a timeout. The output of a file is printed if it fails.
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

MARKS = sys.argv[1] if len(sys.argv) > 1 else "(slow or gpu) and not soak"
PYTEST = [sys.executable, "-m", "pytest", "-m", MARKS]
AT_A_TIME = 2
LIMIT_S = 3600
"""For one file. Each test has a limit of its own, which does not end a process that hangs outside Python."""


def files() -> list[str]:
    """Files that have slow tests, in pytest's order. Raises RuntimeError if pytest finds none."""
    found = subprocess.run([*PYTEST, "--collect-only", "-q"], stdout=subprocess.PIPE, text=True, check=False)
    names = [line.partition("::")[0] for line in found.stdout.splitlines() if "::" in line]
    if found.returncode or not names:
        raise RuntimeError(f"no slow tests were found (exit code {found.returncode}):\n{found.stdout}")
    return list(dict.fromkeys(names))


def run(file: str) -> tuple[Counter[str], str]:
    """Numbers of tests that passed, failed and were skipped, and what is printed about the file."""
    started = time.monotonic()
    with tempfile.NamedTemporaryFile(suffix=".xml") as report, tempfile.TemporaryFile("w+") as output:
        try:
            command = [*PYTEST, "-q", f"--junit-xml={report.name}", file]
            done = subprocess.run(
                command, timeout=LIMIT_S, check=False, stdout=output, stderr=subprocess.STDOUT
            )
            code: int | str = done.returncode
        except subprocess.TimeoutExpired:
            code = f"no end after {LIMIT_S} s"
        output.seek(0)
        text = output.read()
        if Path(report.name).stat().st_size:
            (suite,) = ElementTree.parse(report.name).getroot()
            number = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        else:
            text += f"{file}: pytest ended without a report ({code})\n"
            number = {"tests": 1, "failures": 1, "errors": 0, "skipped": 0}
    failed = number["failures"] + number["errors"]
    passed = max(number["tests"] - failed - number["skipped"], 0)
    if code and not failed:
        text += f"{file}: pytest failed after its last test ({code})\n"
        failed = 1
    line = f"{time.monotonic() - started:6.0f} s  {file}{'  FAILED' if failed else ''}"
    print(f"{text if failed else ''}{line}", flush=True)
    return Counter(passed=passed, failed=failed, skipped=number["skipped"]), line


def main() -> int:
    """Exit code of the process: 1 if a test failed."""
    total: Counter[str] = Counter()
    with ThreadPoolExecutor(AT_A_TIME) as executor:
        results = list(executor.map(run, files()))
    for numbers, _ in results:
        total += numbers
    print("\n".join(["", *(line for _, line in results)]))
    print(", ".join(f"{total[name]} {name}" for name in ("passed", "failed", "skipped")))
    return int(total["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
