// Elements and the texts in them. A text becomes a text node, here and everywhere: no HTML is made.

const SVG = "http://www.w3.org/2000/svg";

// Children are elements, texts, lists of them, or null. `on` holds listeners by the event's name.
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined) continue;
    if (value === false && !name.startsWith("aria-")) continue;
    if (name === "on") {
      for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
    } else
      node.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

const el = (name, attributes, ...children) =>
  fill(document.createElement(name), attributes, children);

const shape = (name, attributes, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

const byId = (id) => document.getElementById(id);

// As dive.errors.visible writes them: controls, direction marks, lone surrogates.
const OBEYED =
  /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]/gu;

function escaped(letter) {
  const code = letter.codePointAt(0);
  return code < 0x100
    ? "\\x" + code.toString(16).padStart(2, "0")
    : "\\u" + code.toString(16).padStart(4, "0");
}

const visible = (text) => String(text).replace(OBEYED, escaped);

// A name on one line: line ends and tabs are seen, too.
const nameOf = (text) => visible(text).replace(/[\t\n]/g, escaped) || "(empty)";

// A name from a file, which keeps its direction to itself.
const isolated = (text, attributes) => el("bdi", attributes, nameOf(text));

const shortened = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

const button = (label, press, attributes) =>
  el("button", { type: "button", on: { click: press }, ...attributes }, label);

// A labelled select; options are [value, label] pairs.
function chooser(label, options, value, pick, attributes) {
  const select = el("select", { ...attributes });
  for (const [key, text] of options)
    select.append(el("option", { value: key }, shortened(text, 80)));
  select.value = value;
  // After a choice by mouse the page's keys work again; by keys one goes on choosing.
  let byKeys = true;
  select.addEventListener("pointerdown", () => {
    byKeys = false;
  });
  select.addEventListener("keydown", () => {
    byKeys = true;
  });
  select.addEventListener("change", () => {
    if (!byKeys) select.blur();
    pick(select.value, byKeys);
  });
  return el("label", { class: "chooser" }, el("span", {}, label), select);
}

const MINUS = "\u2212";
const DIGITS = { fraction: 3, ratio: 2, tokens: 0 };

const formats = new Map(); // a format is slow to make

function formatOf(digits) {
  if (!formats.has(digits)) {
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    formats.set(digits, new Intl.NumberFormat("en-GB", options));
  }
  return formats.get(digits);
}

function number(value, digits) {
  if (value === null || value === undefined) return "–";
  const text = formatOf(digits).format(Math.abs(value));
  return value < 0 && /[1-9]/.test(text) ? MINUS + text : text;
}

const signed = (value, digits) => (value > 0 ? "+" : "") + number(value, digits);

const range = (interval, digits) =>
  interval ? `${number(interval[0], digits)} to ${number(interval[1], digits)}` : "";

// Whole, or with one decimal: 99.6 % is not all.
function percent(value) {
  if (value === null || value === undefined) return "–";
  const tenths = Math.round(value * 1000);
  return `${number(tenths / 10, tenths % 10 ? 1 : 0)} %`;
}

// Said to a screen reader, and to nobody else.
function say(text) {
  byId("said").textContent = text;
}

// Draws into `box`, again whenever its width changes; draw(width) returns its nodes.
function drawn(box, draw) {
  let width = 0;
  const again = () => {
    const now = Math.round(box.clientWidth) || 640;
    if (now === width) return;
    width = now;
    box.replaceChildren(...[draw(width)].flat());
  };
  again();
  new ResizeObserver(() => requestAnimationFrame(again)).observe(box);
  return box;
}
