"""The page in a real browser: it opens from disk, complains of nothing, and is read by keyboard alone."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.report.live_server import make_server
from cluster.report.page import render
from cluster.report.run_rows import read_runs
from cluster.run_folder.paths import RunFolder
from tests.cluster.headless_chromium import PROGRAM, Tab, open_tab
from tests.cluster.sample_run_folders import add_steps, make_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine"),
]
COUNT = "document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", num_steps=12)
    file = folder.path / "report.html"
    file.write_text(render(read_runs([folder.path])).html, encoding="utf-8")
    return file


async def focus(tab: Tab, selector: str) -> None:
    await tab.value(f"document.querySelector({selector!r}).focus()")


async def test_it_looks_right_at_two_widths_and_in_two_schemes(page: Path, tmp_path: Path):
    async with open_tab(page.as_uri(), profile=tmp_path / "profile") as tab:
        await tab.wait_for(f"{COUNT} === '192 of 192 dialogues'")
        backgrounds = set()
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                await tab.look(width=width, scheme=scheme)
                assert await tab.value("document.documentElement.scrollWidth <= window.innerWidth")
                backgrounds.add(await tab.value("getComputedStyle(document.body).backgroundColor"))
                ink = "getComputedStyle(document.querySelector('.plot svg text')).fill"
                assert await tab.value(ink) == await tab.value(
                    "getComputedStyle(document.querySelector('.note')).color"
                )
                sizes = "[...document.querySelectorAll('.chart')].every((one) => one.clientWidth >= 300)"
                assert await tab.value(sizes)
                await tab.picture(tmp_path / f"{width}-{scheme}.png")
        assert len(backgrounds) == 2
        assert tab.complaints == []
        assert [one for one in tab.requests if not one.startswith("data:")] == [page.as_uri()]


async def test_it_is_filtered_searched_and_read_by_keyboard(page: Path, tmp_path: Path):
    async with open_tab(page.as_uri(), profile=tmp_path / "profile") as tab:
        await tab.look(width=1280, scheme="light")
        await tab.wait_for(f"{COUNT} === '192 of 192 dialogues'")
        await focus(tab, "#filters [name=words]")
        await tab.write('"task 31"')
        await tab.wait_for(f"{COUNT} === '4 of 192 dialogues'")
        await focus(tab, "#list")
        await tab.press("ArrowDown")
        await tab.press("Enter")
        await tab.wait_for("document.activeElement.id === 'dialogue-title'")
        assert await tab.value("document.querySelectorAll('#dialogue mark').length") == 1
        assert await tab.value("document.querySelectorAll('#dialogue .policy').length") == 2
        await focus(tab, "#dialogue .policy button")
        await tab.press("Enter")
        await tab.wait_for("document.querySelectorAll('.tokens tbody tr').length === 5")
        await tab.press("Escape")
        assert await tab.value("document.activeElement.id") == "list"
        assert tab.complaints == []


async def test_a_chart_is_read_step_by_step(page: Path, tmp_path: Path):
    async with open_tab(page.as_uri(), profile=tmp_path / "profile") as tab:
        await tab.look(width=390, scheme="dark")
        await focus(tab, "[data-chart=entropy] .plot")
        await tab.press("Home")
        await tab.press("ArrowRight")
        told = "document.querySelector('[data-chart=entropy] .plot').getAttribute('aria-valuetext')"
        await tab.wait_for(f"{told} === 'step 2: entropy 0.3333'")
        await tab.value("document.querySelector('[data-chart=entropy] details').open = true")
        await asyncio.sleep(0.2)
        rows = "document.querySelectorAll('[data-chart=entropy] tbody tr').length"
        await tab.wait_for(f"{rows} === 12")
        assert tab.complaints == []


async def test_a_screen_reader_is_told_roles_names_and_places(page: Path, tmp_path: Path):
    async with open_tab(page.as_uri(), profile=tmp_path / "profile") as tab:
        await tab.look(width=1280, scheme="light")
        await tab.wait_for("document.querySelector('#list [role=option]')")
        await tab.call("Accessibility.enable")
        tree = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
        told = {
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if "role" in node
        }
        assert ("slider", "Entropy, step by step") in told
        assert ("listbox", "Dialogues: arrow keys move, Enter opens") in told
        assert ("searchbox", "Search all that was said") in told
        assert not [name for role, name in told if role in ("button", "combobox", "option") and not name]
        assert (
            await tab.value("document.querySelector('[role=option]').getAttribute('aria-setsize')") == "192"
        )


@contextmanager
def served(folder: RunFolder) -> Iterator[str]:
    """Its address."""
    with make_server([folder.path], port=0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


TAKE_OVER = "fetch('./').then((answer) => answer.text()).then(takeOver)"
"""As the page does by itself every few seconds."""
ACTIVE = "document.querySelector('#list .row.active')"
FIRST_TOKENS = """(async () => {
  const button = document.querySelector('#dialogue .policy button');
  button.click();
  while (!document.querySelector('#dialogue .tokens')) await new Promise((done) => setTimeout(done, 20));
  const told = document.querySelector('#dialogue .tokens').textContent;
  button.click();
  return told;
})()"""


@pytest.mark.parametrize("order", ["time", "newest"])
async def test_a_reader_stays_where_they_are_when_a_step_comes(tmp_path: Path, order: str):
    folder = make_run(tmp_path / "run", num_steps=0)
    add_steps(folder, [2, 3])
    with served(folder) as address:
        async with open_tab(address, profile=tmp_path / "profile") as tab:
            await tab.look(width=1280, scheme="light")
            await tab.wait_for(f"{COUNT} === '32 of 32 dialogues'")
            await tab.value("document.documentElement.style.scrollBehavior = 'auto'")
            await tab.value(f"filters.elements.order.value = {order!r}; applyFilters()")
            await focus(tab, "#list")
            for _ in range(2):
                await tab.press("PageDown")
            await tab.press("Enter")
            await tab.wait_for("document.activeElement.id === 'dialogue-title'")
            await focus(tab, "#list")
            await tab.press("ArrowUp")  # to a row that is not open
            await focus(tab, "#filters [name=gym]")
            before, place = await tab.value(FIRST_TOKENS), await tab.value("reading.place")
            seen = [f"{ACTIVE}.textContent", f"{ACTIVE}.getBoundingClientRect().top"]
            seen += ["document.getElementById('dialogue').textContent", "document.activeElement.name"]
            told = [await tab.value(one) for one in seen]
            assert await tab.value("list.scrollTop") > 0 and told[-1] == "gym"
            add_steps(folder, [1, 4])  # before them in the page, and behind
            await tab.value(TAKE_OVER)
            assert await tab.value(COUNT) == "64 of 64 dialogues"
            assert await tab.value("reading.place") == place + 16
            assert [await tab.value(one) for one in seen] == told
            assert await tab.value(FIRST_TOKENS) == before
            assert tab.complaints == []


async def test_varied_personas_are_chosen_by_trait(tmp_path: Path):
    folder = make_run(tmp_path / "run", num_steps=1)
    file = folder.trajectories / "step-00001.parquet"
    table = pq.read_table(file)
    names = ["patience=0.31 typos=0.1", "plain", "patience=0.5", "plain"]  # a persona a group, of four each
    groups = dict(zip(dict.fromkeys(table["group_id"].to_pylist()), names, strict=True))
    persona = pa.array([groups[group] for group in table["group_id"].to_pylist()])
    at = table.schema.get_field_index("persona")
    pq.write_table(table.set_column(at, "persona", persona.cast(table.schema.field(at).type)), file)
    page = folder.path / "report.html"
    page.write_text(render(read_runs([folder.path])).html, encoding="utf-8")
    async with open_tab(page.as_uri(), profile=tmp_path / "profile") as tab:
        await tab.wait_for(f"{COUNT} === '16 of 16 dialogues'")
        options = "[...filters.elements.persona.options].map((one) => one.textContent)"
        assert await tab.value(options) == ["all", "patience (8)", "plain (8)", "typos (4)"]
        for trait, number in (("patience", 8), ("typos", 4), ("plain", 8)):
            chosen = f"filters.elements.persona.value = {trait!r}"
            await tab.value(f"{chosen}; filters.dispatchEvent(new Event('input'))")
            await tab.wait_for(f"{COUNT} === '{number} of 16 dialogues'")
        assert tab.complaints == []
