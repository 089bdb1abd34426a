"""`python -m tests.run_slow_files` runs every slow file; one that fails or crashes spoils no other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MARK = "import os\nimport pytest\npytestmark = pytest.mark.slow\n"
FILES = {
    "test_a_crashes.py": MARK + "def test_it():\n    os._exit(3)\n",
    "test_b_fails.py": MARK + "def test_it():\n    assert False\ndef test_other():\n    pass\n",
    "test_c_fast.py": "def test_it():\n    assert False, 'it is not slow'\n",
    "test_d_passes.py": MARK + "def test_it():\n    pass\ndef test_other():\n    pytest.skip('not here')\n",
}


def run_slow_files(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.run_slow_files"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_each_file_has_a_line_and_all_are_counted(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    done = run_slow_files(tmp_path)
    assert done.returncode == 1
    assert "test_a_crashes.py: pytest ended without a report (3)" in done.stdout
    *_, first, second, third, last = done.stdout.splitlines()
    assert [line.split(" s  ")[1] for line in (first, second, third)] == [
        "test_a_crashes.py  FAILED",
        "test_b_fails.py  FAILED",
        "test_d_passes.py",
    ]
    assert last == "2 passed, 2 failed, 1 skipped"


@pytest.mark.slow
def test_slow_tests_that_are_not_found_are_no_success(tmp_path: Path) -> None:
    (tmp_path / "test_fast.py").write_text(FILES["test_c_fast.py"])
    done = run_slow_files(tmp_path)
    assert done.returncode != 0
    assert "no slow tests were found" in done.stdout
