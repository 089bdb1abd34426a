"""`userrl report`: writes the HTML page of one run, or of several in comparison, or serves it."""

from collections.abc import Sequence
from pathlib import Path

from cluster.config.recipe import BadInput
from cluster.console.log import info
from cluster.console.output import put
from cluster.report.page import page_of
from cluster.run_folder.atomic_files import write_whole
from cluster.run_folder.paths import find_run


def report(folders: Sequence[Path], *, output: Path | None, serve: bool, port: int) -> None:
    """Writes a file and prints its path, or serves until Ctrl-C. Raises `BadInput` where a folder is no run
    or the file cannot be written."""
    paths = [find_run(folder).path for folder in folders]
    if serve:
        from cluster.report.live_server import serve_page

        if output is not None:
            raise BadInput("--output: --serve writes no file: leave one of the two out")
        serve_page(paths, port=port)
        return
    file = output or default_output(paths)
    try:
        page = page_of(paths)
    except FileNotFoundError:
        names = ", ".join(map(str, paths))
        raise BadInput(f"{names}: files are taken away faster than they can be read: ask again") from None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, page.html)
    except OSError as error:
        raise BadInput(
            f"{file}: cannot be written ({error.strerror}): give another place with --output"
        ) from None
    megabytes = len(page.html.encode()) / 1e6
    info(
        f"{page.num_dialogues:,} of {page.num_on_disk:,} dialogues, {megabytes:.1f} MB: open it in a browser"
    )
    put(str(file))


def default_output(paths: Sequence[Path]) -> Path:
    """In the run folder; a comparison is written next to the first run's folder."""
    if len(paths) == 1:
        return paths[0] / "report.html"
    return paths[0].resolve().parent / f"compare-{'-'.join(path.resolve().name for path in paths)}.html"
