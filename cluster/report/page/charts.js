// Reads charts: by pointer or arrow keys step by step, and as tables. The pictures need none of this.

const readers = new Map();

/** A chart's series and the sorted places of all their points. */
async function readerOf(key) {
  if (!readers.has(key)) {
    const chart = (await unpack("charts"))[key];
    const places = [...new Set(chart.series.flatMap((series) => series.x))].sort((a, b) => a - b);
    const at = chart.series.map((series) => new Map(series.x.map((x, index) => [x, index])));
    readers.set(key, { chart, places, at });
  }
  return readers.get(key);
}

function placeName(reader, x) {
  for (const [number, series] of reader.chart.series.entries()) {
    const index = reader.at[number].get(x);
    if (index !== undefined && series.labels.length) return series.labels[index];
  }
  return `step ${x}`;
}

function wordsAt(reader, x) {
  const parts = [];
  for (const [number, series] of reader.chart.series.entries()) {
    const index = reader.at[number].get(x);
    if (index === undefined || series.y[index] === null) continue;
    const form = { share: reader.chart.share };
    const interval = series.low.length && series.low[index] !== null
      ? ` [${shown(series.low[index], form)}, ${shown(series.high[index], form)}]`
      : "";
    parts.push(`${series.name} ${shown(series.y[index], form)}${interval}`);
  }
  return `${placeName(reader, x)}: ${parts.join(" · ") || "nothing"}`;
}

function show(plot, reader, x) {
  const svg = [...plot.querySelectorAll("svg")].find((one) => one.getClientRects().length) ?? plot.querySelector("svg");
  const [low, high] = svg.dataset.x.split(" ").map(Number);
  const [left, width] = svg.dataset.box.split(" ").map(Number);
  const cursor = plot.querySelector(".cursor");
  cursor.hidden = false;
  cursor.style.left = `${100 * (left + (width * (x - low)) / (high - low))}%`;
  const words = wordsAt(reader, x);
  plot.setAttribute("aria-valuenow", x);
  plot.setAttribute("aria-valuetext", words);
  plot.closest("figure").querySelector(".readout").textContent = words;
}

function nearest(places, x) {
  return places.reduce((best, place) => (Math.abs(place - x) < Math.abs(best - x) ? place : best), places[0]);
}

async function pointAt(plot, clientX) {
  const reader = await readerOf(plot.closest("figure").dataset.chart);
  const svg = [...plot.querySelectorAll("svg")].find((one) => one.getClientRects().length);
  if (!svg) return;
  const [low, high] = svg.dataset.x.split(" ").map(Number);
  const [left, width] = svg.dataset.box.split(" ").map(Number);
  const frame = svg.getBoundingClientRect();
  show(plot, reader, nearest(reader.places, low + ((high - low) * ((clientX - frame.left) / frame.width - left)) / width));
}

async function stepBy(plot, key) {
  const reader = await readerOf(plot.closest("figure").dataset.chart);
  const last = reader.places.length - 1;
  const now = reader.places.indexOf(nearest(reader.places, Number(plot.getAttribute("aria-valuenow"))));
  const to = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, PageDown: now - 10, PageUp: now + 10, Home: 0, End: last }[key];
  show(plot, reader, reader.places[Math.max(0, Math.min(last, to))]);
}

const READ_KEYS = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End"]);

document.addEventListener("keydown", (event) => {
  const plot = event.target.closest?.(".plot");
  if (!plot || !READ_KEYS.has(event.key)) return;
  event.preventDefault();
  stepBy(plot, event.key);
});
document.addEventListener("pointermove", (event) => {
  const plot = event.target.closest?.(".plot");
  if (plot) pointAt(plot, event.clientX);
});
document.addEventListener("pointerdown", (event) => {
  const plot = event.target.closest?.(".plot");
  if (plot) pointAt(plot, event.clientX);
});

/** A chart's numbers as they stand in the files, to the last digit. */
async function fillNumbers(details) {
  const reader = await readerOf(details.closest("figure").dataset.chart);
  const names = ["step"];
  for (const series of reader.chart.series) {
    names.push(series.name);
    if (series.low.length) names.push(`${series.name}, low`, `${series.name}, high`);
  }
  const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
  const rows = reader.places.map((x) => {
    const cells = [make("th", { scope: "row" }, placeName(reader, x).replace(/^step /, ""))];
    for (const [number, series] of reader.chart.series.entries()) {
      const index = reader.at[number].get(x);
      const columns = series.low.length ? [series.y, series.low, series.high] : [series.y];
      cells.push(...columns.map((values) => make("td", {}, index === undefined || values[index] === null ? "" : String(values[index]))));
    }
    return make("tr", {}, ...cells);
  });
  details.querySelector(".scroll").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

document.addEventListener(
  "toggle",
  (event) => {
    if (event.target.matches?.("details.numbers") && event.target.open) fillNumbers(event.target);
  },
  true,
);
