// The list of dialogues: filters, search, and rows of which only those in sight are in the page.

const ROW_HEIGHT = 62;
const CHOICES = { run: "Run", stage: "Stage", gym: "Gym", simulator: "Simulator", persona: "Persona", stop: "Stop reason", outcome: "Outcome" };
const list = document.getElementById("list");
const filters = document.getElementById("filters");
const browser = { index: null, view: [], active: 0, texts: null, asked: 0, marks: "" };

function searchedWords() {
  const found = filters.elements.words.value.toLowerCase().match(/"[^"]+"|\S+/g) ?? [];
  return found.map((word) => word.replace(/^"(.+)"$/, "$1"));
}

/** Takes the page's index; filters stay as they are, and so does the reader's place in the list if it `stays`. */
async function startBrowser({ stays = false } = {}) {
  if (!("DecompressionStream" in window)) {
    document.getElementById("count").textContent = "This browser is too old to unpack the dialogues.";
    return;
  }
  browser.index = await unpack("index");
  browser.texts = null;
  const has = Boolean(browser.index?.score.length);
  filters.hidden = !has;
  document.querySelector(".browser").hidden = !has;
  if (!has) return;
  const before = new FormData(filters);
  const focused = document.activeElement?.closest("#choices select")?.name;
  document.getElementById("choices").replaceChildren(
    ...Object.entries(CHOICES)
      .filter(([name]) => browser.index[name].values.length > 1)
      .map(([name, label]) => choiceOf(name, label, before.get(name) ?? "")),
  );
  if (focused) filters.elements[focused]?.focus({ preventScroll: true });
  await applyFilters({ stays });
}

/** What a value is chosen by: a persona by each of its traits, whatever their strength. */
function optionsOf(name, value) {
  return name === "persona" ? value.split(" ").map((trait) => trait.split("=")[0]) : [value];
}

function choiceOf(name, label, chosen) {
  const { values, codes } = browser.index[name];
  const counts = new Map(values.flatMap((value) => optionsOf(name, value)).map((option) => [option, 0]));
  for (const code of codes) {
    for (const option of optionsOf(name, values[code])) counts.set(option, counts.get(option) + 1);
  }
  const known = [...counts.keys()];
  if (name !== "stage") known.sort();
  const options = known.map((value) => make("option", { value, selected: value === chosen ? "" : null }, `${value || "none"} (${counts.get(value)})`));
  return make("label", {}, label, make("select", { name }, make("option", { value: "" }, "all"), ...options));
}

/** For each dialogue all that was said in it, in small letters; read once, a block at a time. */
async function allTexts() {
  if (browser.texts) return browser.texts;
  const { perBlock, score, task } = browser.index;
  const texts = [];
  for (let block = 0; block * perBlock < score.length; block += 1) {
    const { dialogues } = await unpack(`texts-${block}`);
    for (const one of dialogues) {
      const said = one.turns.flatMap((turn) => [turn.text, turn.feedback]);
      texts.push([task[texts.length], one.opening, ...said].join("\n").toLowerCase());
    }
  }
  browser.texts = texts;
  return texts;
}

async function applyFilters({ stays = false } = {}) {
  const asked = (browser.asked += 1);
  const { index } = browser;
  const values = Object.fromEntries(new FormData(filters));
  const tests = [];
  for (const name of Object.keys(CHOICES)) {
    if (!values[name]) continue;
    const fits = index[name].values.map((value) => optionsOf(name, value).includes(values[name]));
    tests.push((place) => fits[index[name].codes[place]]);
  }
  for (const [name, column] of [["step", index.step], ["score", index.score]]) {
    const [from, to] = [values[`${name}From`], values[`${name}To`]];
    if (from !== "") tests.push((place) => column[place] !== null && column[place] >= Number(from));
    if (to !== "") tests.push((place) => column[place] !== null && column[place] <= Number(to));
  }
  if (values.stepFrom !== "" || values.stepTo !== "") tests.push((place) => valueOf(index, "stage", place) === "training");
  const words = searchedWords();
  if (words.length) {
    if (!browser.texts) document.getElementById("count").textContent = "Searching…";
    const texts = await allTexts();
    if (asked !== browser.asked) return;
    tests.push((place) => words.every((word) => texts[place].includes(word)));
  }
  const view = [];
  for (let place = 0; place < index.score.length; place += 1) {
    if (tests.every((test) => test(place))) view.push(place);
  }
  sortView(view, values.order, index);
  const kept = reading.place === null ? -1 : view.indexOf(reading.place);
  if (stays) {
    showView(view, whereInList());
  } else {
    browser.view = view;
    browser.active = Math.max(0, kept);
    renderList(); // gives the list its height
    list.scrollTop = browser.active * ROW_HEIGHT - list.clientHeight / 2;
  }
  document.getElementById("count").textContent = `${view.length.toLocaleString("en")} of ${index.score.length.toLocaleString("en")} dialogues`;
  renderList();
  if (kept >= 0 && browser.marks !== words.join(" ")) await openDialogue(reading.place, { quietly: true });
  browser.marks = words.join(" ");
}

/** Where the reader is in the list: its row, the first one in sight, and how far that one is scrolled away. */
function whereInList() {
  const first = Math.floor(list.scrollTop / ROW_HEIGHT);
  const top = list.scrollTop;
  return { active: browser.view[browser.active], first: browser.view[first], into: top - first * ROW_HEIGHT, top };
}

/** Shows another view at the same place: who has not scrolled sees what comes first, others the rows that they saw. */
function showView(view, { active, first, into, top }) {
  browser.view = view;
  browser.active = Math.max(0, view.indexOf(active));
  renderList();
  const found = view.indexOf(first);
  list.scrollTop = top === 0 || found < 0 ? top : found * ROW_HEIGHT + into;
  renderList();
}

function sortView(view, order, index) {
  const score = (place) => index.score[place] ?? Number.NEGATIVE_INFINITY;
  const worst = (place) => index.score[place] ?? Number.POSITIVE_INFINITY;
  if (order === "newest") view.reverse();
  if (order === "best") view.sort((a, b) => score(b) - score(a) || a - b);
  if (order === "worst") view.sort((a, b) => worst(a) - worst(b) || a - b);
  if (order === "longest") view.sort((a, b) => index.turns[b] - index.turns[a] || a - b);
}

function renderList() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 4);
  const last = Math.min(browser.view.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + 4);
  const rows = [];
  for (let at = first; at < last; at += 1) rows.push(rowAt(at));
  const spacer = make("div", { "aria-hidden": "true" });
  spacer.style.height = `${browser.view.length * ROW_HEIGHT}px`;
  list.replaceChildren(spacer, ...rows);
  if (browser.view.length) list.setAttribute("aria-activedescendant", `row-${browser.active}`);
  else list.removeAttribute("aria-activedescendant");
}

function rowAt(at) {
  const { index, view, active } = browser;
  const place = view[at];
  const turns = index.turns[place];
  const details = [whenOf(index, place), valueOf(index, "stop", place), `${turns} turn${turns === 1 ? "" : "s"}`];
  if (index.runs.length > 1) details.unshift(valueOf(index, "run", place));
  const row = make(
    "div",
    {
      class: at === active ? "row active" : "row", role: "option", id: `row-${at}`, "data-at": at,
      "aria-selected": String(at === active), "aria-setsize": view.length, "aria-posinset": at + 1,
    },
    make(
      "p",
      { class: "head" },
      make("span", {}, `${valueOf(index, "gym", place)} · ${details.join(" · ")}`),
      make("span", { class: "score" }, make("span", { class: "sr" }, "score "), shown(index.score[place])),
    ),
    make("p", {}, index.opening[place]),
  );
  row.style.top = `${at * ROW_HEIGHT}px`;
  return row;
}

function setActive(at) {
  browser.active = Math.max(0, Math.min(browser.view.length - 1, at));
  const top = browser.active * ROW_HEIGHT;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
  renderList();
}

/** The neighbour in the list is opened. */
async function moveActive(by) {
  if (!browser.view.length) return;
  setActive(browser.active + by);
  await openDialogue(browser.view[browser.active]);
}

list.addEventListener("scroll", () => requestAnimationFrame(renderList), { passive: true });
window.addEventListener("resize", () => browser.index && renderList());
list.addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (!row) return;
  setActive(Number(row.dataset.at));
  openDialogue(browser.view[browser.active]);
});
list.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(list.clientHeight / ROW_HEIGHT) - 1);
  const to = {
    ArrowDown: browser.active + 1, ArrowUp: browser.active - 1, PageDown: browser.active + page,
    PageUp: browser.active - page, Home: 0, End: browser.view.length - 1,
  }[event.key];
  if (to !== undefined && browser.view.length) {
    event.preventDefault();
    setActive(to);
  } else if ((event.key === "Enter" || event.key === " ") && browser.view.length) {
    event.preventDefault();
    openDialogue(browser.view[browser.active]);
  }
});
document.getElementById("dialogue").addEventListener("keydown", (event) => {
  if (event.key === "Escape") list.focus();
});

let typing = 0;
filters.addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => applyFilters(), event.target.name === "words" ? 250 : 0);
});
filters.addEventListener("reset", () => setTimeout(() => applyFilters()));
filters.addEventListener("submit", (event) => event.preventDefault());
startBrowser();
