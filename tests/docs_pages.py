"""Parser of README, CONTRIBUTING and the pages of docs/: fenced blocks, shell commands, headings."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("", "sh", "bash", "shell", "console")
PROGRAMS = (
    *("userrl", "make", "python", "pytest", "ray", "docker", "kubectl", "wandb", "cp", "export", "pip"),
    *("curl", "git", "source", "cd", "ssh", "prometheus", "grafana", "uv", "node", "npm"),
)
COMMAND = re.compile(rf"(?:\$ )?((?:[A-Z_]+=\S* )*(?:\./|\.venv/bin/)?(?:{'|'.join(PROGRAMS)})\b.*)")
"""A line that runs something; in a block that is tagged as shell, every line does."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """(where, text) of every fenced block in one of these languages; "" is a block that names none."""
    for page in PAGES:
        for number, (tag, text) in enumerate(BLOCK.findall(page.read_text())):
            if tag in languages:
                yield f"{name_of(page)}:{number}", text


def shell_commands() -> Iterator[tuple[str, str]]:
    """(page, command) of every command in a fenced block, without its comment, continued lines joined."""
    for page in PAGES:
        for tag, text in BLOCK.findall(page.read_text()):
            if tag not in SHELL:
                continue
            for line in re.sub(r"\\\n\s*", "", text).splitlines():
                found = COMMAND.fullmatch(line.strip())
                if found or (tag and line.strip() and not line.lstrip().startswith("#")):
                    command = re.sub(r"\s+#\s.*$", "", found[1] if found else line)
                    yield name_of(page), " ".join(command.split())


def anchors(page: Path) -> set[str]:
    """The anchors that a link may name after `#`, as GitHub derives them from headings."""
    text = BLOCK.sub("", page.read_text())
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
