// Follows a run: asks its server whether there is news, and puts the new page's parts in place of the old ones.
// Filters, the open dialogue and the reader's place stay.

const EVERY_MS = 5000;
let version = document.documentElement.dataset.version;

async function lookForNews() {
  const news = document.getElementById("news");
  try {
    const answer = await (await fetch("version", { cache: "no-store" })).text();
    if (answer !== version) await takeOver(await (await fetch("./", { cache: "no-store" })).text());
    if (news.textContent) news.textContent = "";
  } catch {
    news.textContent = "No answer from the server of this page: what is shown stays as it is.";
  }
  setTimeout(lookForNews, EVERY_MS);
}

async function takeOver(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  version = fresh.documentElement.dataset.version;
  const open = [...document.querySelectorAll("#numbers details[open]")].map(nameOf);
  const focused = document.activeElement?.closest("[data-chart]")?.dataset.chart;
  const [old, index] = [await unpack("index"), await readBlock("index", fresh)];
  document.getElementById("blocks").replaceWith(fresh.getElementById("blocks"));
  readers.clear();
  blocks.clear();
  blocks.set("index", index); // at once with what is carried over: no click finds the places of one page in the other
  carryOver(old, index);
  for (const part of document.querySelectorAll("[data-live]")) part.replaceWith(fresh.getElementById(part.id));
  for (const details of document.querySelectorAll("#numbers details")) {
    if (open.includes(nameOf(details))) details.open = true;
  }
  if (focused) document.querySelector(`[data-chart="${focused}"] .plot`)?.focus({ preventScroll: true });
  await startBrowser({ stays: true });
  if (reading.place !== null && (await saidIn(reading.places)) !== reading.said) await openDialogue(reading.place, { quietly: true });
}

/** The reader's places are those of the new index from here on. */
function carryOver(old, index) {
  const known = new Map(index?.task.map((_, place) => [markOf(index, place), place]));
  const moved = (place) => (place === undefined || place === null ? null : known.get(markOf(old, place)) ?? null);
  const here = whereInList();
  reading.place = moved(reading.place);
  reading.places = reading.places.map(moved).filter((place) => place !== null);
  browser.index = index;
  const view = browser.view.map(moved).filter((place) => place !== null);
  showView(view, { ...here, active: moved(here.active), first: moved(here.first) });
}

/** What tells a dialogue from all others, in every version of the page. */
function markOf(index, place) {
  const named = ["run", "stage"].map((name) => valueOf(index, name, place));
  return [...named, index.step[place], index.task[place], index.trajectory[place]].join("|");
}

function nameOf(details) {
  return details.closest("[data-chart]")?.dataset.chart ?? details.querySelector("summary").textContent;
}

if (version) setTimeout(lookForNews, EVERY_MS);
