// The page's data: blocks of gzipped JSON, unpacked once, when they are first asked for.
"use strict";

const blocks = new Map();

/** The document of a block, null where the page has no such block. */
function unpack(name) {
  if (!blocks.has(name)) blocks.set(name, readBlock(name));
  return blocks.get(name);
}

async function readBlock(name, page = document) {
  const element = page.getElementById(`block-${name}`);
  if (!element) return null;
  const bytes = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** An element. Texts become text nodes, so that nothing that was said is ever read as HTML. */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A number for people, "–" where there is none. */
function shown(value, { share = false, signed = false } = {}) {
  if (value === null || value === undefined) return "–";
  const text = share
    ? `${(100 * value).toFixed(1)} %`
    : Math.abs(value) >= 1000
      ? Math.round(value).toLocaleString("en")
      : String(Number(value.toPrecision(4)));
  return (signed && value > 0 ? `+${text}` : text).replace("-", "−");
}
