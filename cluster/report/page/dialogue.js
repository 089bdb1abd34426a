// One dialogue, or its group side by side: who said what, what each turn earned, and on demand its tokens.

const reading = { place: null, places: [], said: "", tint: "advantage", beside: false };
const STAGES = ["policy", "queue", "user", "tool", "reward"];
const TINTS = ["advantage", "credit", "reward"];

async function textOf(place) {
  const { perBlock } = await unpack("index");
  const block = await unpack(`texts-${Math.floor(place / perBlock)}`);
  const dialogue = block.dialogues[place % perBlock];
  return { ...dialogue, system: block.systems[dialogue.system] };
}

/** All that dialogues say, to tell whether it has changed. */
async function saidIn(places) {
  return JSON.stringify(await Promise.all(places.map(textOf)));
}

/** Shows a dialogue; the reader's place goes to its heading unless `quietly`. */
async function openDialogue(place, { quietly = false } = {}) {
  const index = await unpack("index");
  const article = document.getElementById("dialogue");
  reading.place = place;
  const group = siblings(index, place);
  const places = reading.beside ? group : [place];
  const texts = await Promise.all(places.map(textOf));
  if (reading.place !== place) return;
  Object.assign(reading, { places, said: JSON.stringify(texts) });
  const columns = places.map((one, number) => columnOf(index, one, texts[number], places.length > 1));
  const body = places.length > 1
    ? make("div", { class: "columns", tabindex: "0", role: "region", "aria-label": "The group side by side" }, ...columns)
    : columns[0];
  article.replaceChildren(
    make("h3", { id: "dialogue-title", tabindex: "-1" }, `${valueOf(index, "gym", place)}: ${index.task[place]}`),
    factsOf(index, place, texts[places.indexOf(place)]),
    toolsOf(index, place, group),
    body,
  );
  if (!quietly) {
    article.querySelector("h3").focus({ preventScroll: true });
    if (window.matchMedia("(max-width: 759px)").matches) article.scrollIntoView();
  }
}

function valueOf(index, name, place) {
  return index[name].values[index[name].codes[place]];
}

/** The dialogues of the same group, which stand together in the index. */
function siblings(index, place) {
  const found = [];
  let first = place;
  while (index.group[first - 1] === index.group[place]) first -= 1;
  for (let one = first; index.group[one] === index.group[place]; one += 1) found.push(one);
  return found;
}

function whenOf(index, place) {
  const stage = valueOf(index, "stage", place);
  return stage === "training" ? `step ${index.step[place]}` : `evaluation ${stage}`;
}

function factsOf(index, place, text) {
  const facts = [
    index.runs.length > 1 ? `run ${valueOf(index, "run", place)}` : null,
    whenOf(index, place),
    `score ${shown(index.score[place])}`,
    `reward ${shown(index.reward[place])}`,
    `simulator ${valueOf(index, "simulator", place)}`,
    `persona ${valueOf(index, "persona", place) || "none"}`,
    `ended: ${valueOf(index, "stop", place)}`,
    valueOf(index, "outcome", place),
    `from ${text.source}`,
  ];
  return make("ul", { class: "facts" }, ...facts.filter(Boolean).map((fact) => make("li", {}, fact)));
}

function toolsOf(index, place, group) {
  const tint = (value) => {
    const input = make("input", { type: "radio", name: "tint", value, checked: reading.tint === value ? "" : null });
    input.addEventListener("change", () => {
      reading.tint = value;
      again(`input[value="${value}"]`);
    });
    return make("label", {}, input, value);
  };
  const tools = make(
    "div",
    { class: "tools" },
    moveButton("Previous", -1),
    moveButton("Next", 1),
    make("fieldset", {}, make("legend", {}, "Colour turns by"), ...TINTS.map(tint)),
  );
  if (group.length > 1) {
    const box = make("input", { type: "checkbox", name: "beside", checked: reading.beside ? "" : null });
    box.addEventListener("change", () => {
      reading.beside = box.checked;
      again('input[name="beside"]');
    });
    tools.append(make("label", {}, box, `All ${group.length} of its group side by side`));
  }
  return tools;
}

async function again(focused) {
  if (reading.place === null) return;
  await openDialogue(reading.place, { quietly: true });
  document.querySelector(`#dialogue ${focused}`)?.focus();
}

function moveButton(label, by) {
  const button = make("button", { type: "button", "data-move": by }, label);
  button.addEventListener("click", async () => {
    await moveActive(by);
    document.querySelector(`#dialogue [data-move="${by}"]`)?.focus();
  });
  return button;
}

function columnOf(index, place, text, isOneOfSeveral) {
  const parts = [];
  if (isOneOfSeveral) {
    const words = `${index.trajectory[place] + 1}: score ${shown(index.score[place])}, ${valueOf(index, "stop", place)}, ${valueOf(index, "outcome", place)}`;
    parts.push(make("h4", {}, words));
  }
  parts.push(make("details", {}, make("summary", {}, "System prompt"), messageOf("system", "system", text.system)));
  if (text.gold) parts.push(make("details", {}, make("summary", {}, "Gold calls"), messageOf("system", "gold", text.gold)));
  parts.push(messageOf("user", "user", text.opening));
  parts.push(make("ol", { class: "turns" }, ...text.turns.map((turn, number) => turnOf(place, turn, number))));
  if (text.error) parts.push(messageOf("system", "error", text.error));
  return make("section", { "aria-label": `Dialogue ${place + 1}` }, ...parts);
}

function turnOf(place, turn, number) {
  const worth = `reward ${shown(turn.reward, { signed: true })}` +
    (turn.env === turn.reward ? "" : `, environment ${shown(turn.env, { signed: true })}`);
  const made = ["credit", "gain", "value", "advantage"]
    .filter((name) => name === "advantage" || turn[name] !== undefined)
    .map((name) => `${name} ${shown(turn[name], { signed: true })}`)
    .join(", ");
  const who = make(
    "p",
    { class: "who" },
    `turn ${number + 1}: policy`,
    make("span", { class: "worth" }, worth),
    make("span", { class: "worth" }, made),
    make("span", {}, secondsOf(turn.seconds)),
  );
  const said = turn.choice === null
    ? make("p", { class: "said" }, ...marked(turn.text || "(nothing)"))
    : make("p", { class: "said" }, make("strong", {}, turn.choice), " ", make("span", { class: "call" }, ...marked(turn.content ?? "")));
  const policy = make("div", { class: "message policy" }, who, said);
  if (turn.choice !== null) {
    policy.append(make("details", {}, make("summary", {}, "As sampled"), make("p", { class: "said call" }, ...marked(turn.text))));
  }
  tinge(policy, turn[reading.tint] ?? null, reading.tint === "advantage" ? 2 : 1);
  policy.append(tokensButton(place, number, policy));
  const parts = [policy];
  if (turn.feedback) {
    const meant = turn.facts ? [make("span", {}, `meant ${turn.facts}`)] : [];
    parts.push(messageOf("user", turn.model ? `user (${turn.model})` : "feedback", turn.feedback, ...meant));
  }
  return make("li", {}, ...parts);
}

function secondsOf(seconds) {
  const told = seconds.map((value, number) => (value >= 0.0005 ? `${STAGES[number]} ${value.toFixed(3)} s` : null));
  return told.filter(Boolean).join(", ");
}

function messageOf(kind, name, text, ...more) {
  return make("div", { class: `message ${kind}` }, make("p", { class: "who" }, name, ...more), make("p", { class: "said" }, ...marked(text)));
}

/** Blue above zero, orange below, deeper the further away; the number itself stands beside it. */
function tinge(element, value, scale) {
  if (value === null || value === 0) return;
  const far = Math.min(1, Math.abs(value) / scale);
  element.style.setProperty("--tone", `var(${value > 0 ? "--good" : "--bad"})`);
  element.style.setProperty("--deep", 0.45 + 0.55 * far);
  element.style.setProperty("--pale", 0.05 + 0.2 * far);
}

/** The text with what is searched for in marks. */
function marked(text) {
  const words = searchedWords();
  if (!words.length) return [text];
  const pattern = new RegExp(`(${words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
  return text.split(pattern).map((part, number) => (number % 2 ? make("mark", {}, part) : part));
}

function tokensButton(place, number, message) {
  const mark = markOf(browser.index, place); // another page may have it at another place
  const button = make("button", { type: "button", "aria-expanded": "false" }, "Tokens");
  button.addEventListener("click", async () => {
    const open = button.getAttribute("aria-expanded") === "true";
    message.querySelector(".tokens")?.remove();
    button.setAttribute("aria-expanded", String(!open));
    if (!open) message.append(await tokensOf(mark, number));
  });
  return button;
}

async function tokensOf(mark, number) {
  const index = await unpack("index");
  const place = index.task.findIndex((_, one) => markOf(index, one) === mark);
  const block = await unpack(`tokens-${Math.floor(place / index.perBlock)}`);
  const turn = block?.[place % index.perBlock]?.[number];
  if (!turn) return make("p", { class: "tokens" }, "The tokens of this dialogue had no room here; they are in the Parquet file.");
  const words = (await unpack("words"))[index.run.codes[place]] ?? {};
  const strip = make("p", { class: "strip", "aria-hidden": "true" });
  const rows = turn.ids.map((id, at) => {
    const logprob = turn.logprobs[at] === null ? null : turn.logprobs[at] / 1000;
    const word = words[id] ?? `#${id}`;
    const version = Array.isArray(turn.versions) ? turn.versions[at] : turn.versions;
    const piece = make("span", { title: `${id}: logprob ${logprob}, version ${version}` }, word);
    piece.style.setProperty("--doubt", logprob === null ? 0 : 0.6 * (1 - Math.exp(logprob)));
    strip.append(piece);
    const cells = [id, JSON.stringify(word), logprob, logprob === null ? "" : shown(Math.exp(logprob), { share: true }), version];
    return make("tr", {}, make("th", { scope: "row" }, String(at + 1)), ...cells.map((cell) => make("td", {}, String(cell ?? "–"))));
  });
  const head = ["", "id", "token", "logprob", "probability", "version"].map((name) => make("th", { scope: "col" }, name));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  return make(
    "div",
    { class: "tokens" },
    make("p", { class: "note" }, "Orange: sampled against the odds."),
    strip,
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Sampled tokens" }, table),
  );
}
