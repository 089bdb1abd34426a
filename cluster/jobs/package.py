"""Working directory of a job as a ZIP archive: the five rooms, the recipe, local gym modules, and files that
the recipe names by relative path.

Nothing else leaves this machine: no run, no data, no .git, no .env. Large files belong on a disk that all
nodes see and are named by absolute path.
"""

import os
from pathlib import Path

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.preflight.policy import is_hub_name
from cluster.run_folder.code_snapshot import ROOMS, files_below, write_archive
from simulators.gym_plugins import module_path

RECIPE = "recipe.toml"
"""The recipe's name in the package, and so in the job's working folder."""
MOST_MIB = 100
"""Ray's dashboard takes no more (DASHBOARD_CLIENT_MAX_SIZE)."""


def pack(config: RunConfig, *, recipe: Path, target: Path) -> dict[str, int]:
    """Writes the package to `target`; bytes by where they come from (a room, or a key of the recipe). Raises
    `BadInput` where a named file is missing or all of it together is too large."""
    files, sizes = _files(config, recipe=recipe)
    total_mib, largest = sum(sizes.values()) / 2**20, max(sizes, key=lambda source: sizes[source])
    if total_mib > MOST_MIB:
        raise BadInput(
            f"{largest}: the job's files would be {total_mib:,.0f} MiB, {sizes[largest] / 2**20:,.0f} of "
            f"them from there, and a cluster takes {MOST_MIB}: put it on a disk that all nodes see, and give "
            "its absolute path"
        )
    write_archive(target, files)
    return sizes


def _files(config: RunConfig, *, recipe: Path) -> tuple[dict[str, Path], dict[str, int]]:
    """Files by their names in the package, and bytes by source."""
    root, here = Path(__file__).resolve().parent.parent.parent, Path.cwd()
    files: dict[str, Path] = {RECIPE: recipe}
    sizes = {str(recipe): recipe.stat().st_size}
    sources: list[tuple[str, Path, Path]] = [(room, root / room, root) for room in ROOMS]
    sources += [(key, here / path, here) for key, path in _named(config).items()]
    for source, place, base in sources:
        found = {path.relative_to(base).as_posix(): path for path in files_below(place)}
        files |= found
        sizes[source] = sum(path.stat().st_size for path in found.values())
    return files, sizes


def _named(config: RunConfig) -> dict[str, str]:
    """Files and folders here that the recipe names, relative to this folder, by key. Absolute paths are the
    cluster's own; paths that the config has made absolute count as relative if they are inside this
    folder."""
    here = Path.cwd()
    written = {f"gyms.data.{gym}": str(path) for gym, path in config.gyms.data.items()}
    for key, path in (
        ("policy.path", config.policy.path),
        ("learner.kl.reference", config.learner.reference),
    ):
        if path and not is_hub_name(path):
            written[key] = path
    made = {"sft.files": config.sft.files, "sft.runs": config.sft.runs}
    places = {f"{key}[{i}]": path for key, paths in made.items() for i, path in enumerate(paths)}
    places |= {f"simulator {u.name}": Path(u.path) for u in config.simulator.users if u.type == "replay"}
    named = {key: path for key, path in written.items() if not Path(path).expanduser().is_absolute()}
    named |= {key: os.path.relpath(path, here) for key, path in places.items() if path.is_relative_to(here)}
    sources = {key: module_path(name) for key, name in config.plug_in_modules.items()}
    # Only what `import` finds in the working folder itself; what is installed here must be installed there.
    named |= {key: path.name for key, path in sources.items() if path.parent == here.resolve()}
    for key, name in named.items():
        if os.path.normpath(name).startswith("..") or not (here / name).exists():
            raise BadInput(
                f"{key}={name}: a job's files are sent from this folder, and this is not in it: correct it, "
                "or give an absolute path on a disk that all nodes see"
            )
    return {key: os.path.normpath(name) for key, name in named.items()}
