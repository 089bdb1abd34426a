"""Chaos takes no run that is there already."""

from pathlib import Path

import pytest

from cluster.chaos.run import _refuse_old
from cluster.config.recipe import BadInput


@pytest.mark.parametrize("old", ["tiny-chaos-7", "tiny-chaos-7-2", "tiny-chaos-7-13"])
def test_a_run_of_a_name_that_chaos_may_take_is_refused_before_anything_begins(
    tmp_path: Path, old: str
) -> None:
    (tmp_path / old).mkdir()
    _refuse_old(tmp_path / "tiny-chaos-7")  # a folder alone is no run
    (tmp_path / old / "config.toml").touch()
    with pytest.raises(BadInput, match=f"{old}: is there already: give another --seed"):
        _refuse_old(tmp_path / "tiny-chaos-7")


def test_runs_of_other_seeds_and_names_are_no_hindrance(tmp_path: Path) -> None:
    for other in ("tiny-chaos-71", "tiny-chaos-8-2", "tiny-calm", "tiny-chaos-7-copy"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "config.toml").touch()
    _refuse_old(tmp_path / "tiny-chaos-7")
