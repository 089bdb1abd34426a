"""Makes `.venv` from a lock: `python requirements/install.py cpu`. Standard library only, as it runs first.

Owns the set-up's order and what a person sees of it. The locks are whole (`--no-deps`): a resolver would add
torchvision, torchaudio and torchcodec builds made for CUDA, which break `import vllm` beside a CPU torch.
Each stage can be interrupted and run again.
"""

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEEDED_GB = {"cpu": 6, "gpu": 25}
"""Free disk that a first set-up wants, the downloads included."""
TIME_LIMIT_S = 3600
"""For one stage: 5 GB over a slow line."""
SMOKE = "import torch, vllm, ray; from transformers import Qwen3ForCausalLM; print(torch.version.cuda)"


class SetupError(Exception):
    """One line for a person: what is wrong and what to do."""


@contextmanager
def only_one_setup() -> Iterator[None]:
    """Holds the folder's set-up lock; raises `SetupError` where another holds it past the time limit."""
    with (ROOT / ".setup.lock").open("w") as lock:
        for waited_s in range(TIME_LIMIT_S):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited_s == 0:
                    print("another set-up of this folder is running; waiting for it", flush=True)
                time.sleep(1)
        else:
            raise SetupError(
                f"another set-up has held {lock.name} for {TIME_LIMIT_S} s: end it and try again"
            )
        yield


def site_packages() -> Path:
    return next((VENV / "lib").glob("python3.*/site-packages"))


def show(title: str, *, done: int, total: int, seconds: float, end: bool) -> None:
    """Draws one stage's line: a moving bar on a terminal, only the finished line anywhere else."""
    if not end and not sys.stdout.isatty():
        return
    filled = min(24, 24 * done // total)
    bar = "█" * 24 if end else "█" * filled + "░" * (24 - filled)
    line = f"{title:<34} {bar} {seconds:5.0f} s"
    print(f"\r{line}" if sys.stdout.isatty() else line, end="\n" if end else "", flush=True)


def run_stage(title: str, command: list[str], *, total: int = 1, count: Callable[[], int] = lambda: 0) -> str:
    """Runs `command` into the log under a bar; returns its output, raises `SetupError` if it fails."""
    started = time.monotonic()
    with LOG.open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if time.monotonic() - started > TIME_LIMIT_S:
                    raise SetupError(f"{title}: not done after {TIME_LIMIT_S} s; see {LOG} and run it again")
                show(title, done=count(), total=total, seconds=time.monotonic() - started, end=False)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    output = LOG.read_bytes()[begin:].decode(errors="replace")
    if process.returncode != 0:
        if sys.stdout.isatty():
            print()
        lines = [line for line in output.splitlines() if line.strip()]
        said = next(
            (line for line in reversed(lines) if "error: " in line.lower()), lines[-1] if lines else ""
        )
        raise SetupError(f"{title}: {said} (whole output: {LOG})")
    show(title, done=total, total=total, seconds=time.monotonic() - started, end=True)
    return output


def make_environment(extra: str) -> None:
    """Keeps a `.venv` that fits; makes a new one where it is missing, broken, old or of the other extra."""
    kind = VENV / ".extra"
    probe = "import pip, sys; sys.exit(sys.version_info < (3, 11))"
    fits = PYTHON.exists() and subprocess.run([PYTHON, "-c", probe], capture_output=True).returncode == 0
    if fits and kind.exists() and kind.read_text() == extra:
        return
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"{sys.executable} cannot make environments (no ensurepip): install the package "
            f"python3.{sys.version_info.minor}-venv, or name another: make setup PYTHON=/path/to/python3"
        )
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < NEEDED_GB[extra]:
        raise SetupError(
            f"{free_gb:.1f} GB free in {ROOT}: the {extra} set-up needs {NEEDED_GB[extra]} GB, free some"
        )
    if VENV.exists():
        print(f"{VENV} does not fit (unfinished, older, or of the other extra): making it anew", flush=True)
        shutil.rmtree(VENV)
    VENV.mkdir()
    run_stage("Python environment", [sys.executable, "-m", "venv", str(VENV)])
    kind.write_text(extra)


def pip_install(title: str, *arguments: str, packages: int) -> None:
    """`pip install` under a bar that counts packages fetched and packages in place."""
    fetched = re.compile(rb"^(Collecting|Processing|Requirement already satisfied)", re.MULTILINE)
    begin = LOG.stat().st_size if LOG.exists() else 0
    in_place = len(list(site_packages().glob("*.dist-info")))

    def count() -> int:
        now_in_place = len(list(site_packages().glob("*.dist-info")))
        return len(fetched.findall(LOG.read_bytes()[begin:])) + now_in_place - in_place

    # Byte-compiled by `byte_compile`, on every core.
    options = ["--no-deps", "--no-compile", "--disable-pip-version-check", "--progress-bar", "off"]
    run_stage(
        title, [str(PYTHON), "-m", "pip", "install", *options, *arguments], total=2 * packages, count=count
    )


def remove_half_installed() -> None:
    """Forgets what an interrupted pip left: it writes RECORD last, yet trusts a folder without one."""
    for folder in site_packages().glob("*.dist-info"):
        if not (folder / "RECORD").exists():
            shutil.rmtree(folder)


def install_cpu_torch(pin: str) -> None:
    """Takes torch's CPU build from pip's own sources, and only where they lack it from PyTorch's index."""
    try:
        pip_install(pin, pin, packages=1)
    except SetupError as error:
        if "No matching distribution" not in str(error):
            raise
        print(f"{pin} is not in pip's sources: taking it from PyTorch's CPU index", flush=True)
        try:
            pip_install(pin, "--index-url", TORCH_CPU_INDEX, pin, packages=1)
        except SetupError as missing:
            raise SetupError(
                f"no {pin} for Python 3.{sys.version_info.minor} in pip's sources or at {TORCH_CPU_INDEX}: "
                f"check the network, or give pip a folder with the wheel (PIP_FIND_LINKS=/folder); log: {LOG}"
            ) from missing


def check_imports(extra: str) -> None:
    """Imports the heavy four; raises `SetupError` where one fails or torch is not the build asked for."""
    cuda = run_stage("check of the imports", [str(PYTHON), "-c", SMOKE]).strip().splitlines()[-1]
    if (cuda == "None") != (extra == "cpu"):
        raise SetupError(
            f"torch is built for CUDA {cuda}, which EXTRA={extra} does not want: remove {VENV}, try again"
        )


def byte_compile() -> None:
    """Compiles all that was installed, and the project. Where Python may not write (PYTHONDONTWRITEBYTECODE,
    a read-only folder), each of a run's ten processes would compile what it imports at every start, which
    makes a run's start twice as long."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = [name.removesuffix("*") for name in project["packages"]["find"]["include"]]
    folders = [str(site_packages()), *rooms]
    # Some packages ship files for other Pythons: what does not compile is left alone.
    work = "import compileall, sys; [compileall.compile_dir(it, quiet=2, workers=0) for it in sys.argv[1:]]"
    run_stage("byte code", [str(PYTHON), "-c", work, *folders])


def main(extra: str) -> None:
    """Brings `.venv` to the state that the locks name, or finds it there."""
    lock = ROOT / "requirements" / f"{extra}.txt"
    sources = [ROOT / "pyproject.toml", lock, Path(__file__)]
    wanted = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    ready = VENV / f".ready-{extra}"
    if ready.exists() and ready.read_text() == wanted:
        ready.touch()
        return
    print(
        f"userrl set-up: EXTRA={extra}, Python {sys.version.split()[0]}; a first one takes minutes",
        flush=True,
    )
    ready.unlink(missing_ok=True)
    make_environment(extra)
    remove_half_installed()
    pins = [
        line.strip() for line in lock.read_text().splitlines() if "==" in line and not line.startswith("#")
    ]
    if extra == "cpu":
        install_cpu_torch(next(pin for pin in pins if pin.startswith("torch==")))
    pip_install(f"{len(pins)} pinned packages", "-r", str(lock), packages=len(pins))
    pip_install("this project", "--no-build-isolation", "-e", str(ROOT), packages=1)
    byte_compile()
    check_imports(extra)
    ready.write_text(wanted)


if __name__ == "__main__":
    os.environ["PYTHONUNBUFFERED"] = "1"
    try:
        with only_one_setup():
            main(sys.argv[1])
    except SetupError as error:
        sys.exit(f"set-up failed: {error}")
    except KeyboardInterrupt:
        sys.exit("\nset-up stopped: run it again to go on from here")
