// The inside of a report: what the adapter changes, token by token.

let token = 0;
let layerAt = 0; // of the mixing weights
let links = []; // move(token) of every chart that is drawn
let repaints = [];

function linkTo(at) {
  if (at === token) return;
  token = at;
  for (const move of links) move(at);
}

const stepTo = (one) => change({ study: one.study });

function stepExplained(by) {
  const all = DATA.explained.studies;
  if (!all.length) return;
  const at = all.findIndex((one) => one.study === state.study);
  stepTo(all[at < 0 ? 0 : Math.min(Math.max(at + by, 0), all.length - 1)]);
}

// A token as text: spaces and line ends are seen.
const tokenText = (text) =>
  visible(text).replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";

const LEAST = 1e-9;
const changeOf = (inside, at) =>
  Math.log(
    Math.max(inside.probability[at], LEAST) / Math.max(inside.probability_without[at], LEAST),
  );
const AT_MOST = 4; // nats; beyond, the colour stays the same

function tokenBox(inside, at) {
  const node = el(
    "span",
    {
      class: "token",
      role: "option",
      tabindex: at === token ? 0 : -1,
      "data-at": at,
      "aria-selected": at === token,
    },
    el("bdi", {}, shortened(tokenText(inside.tokens[at]), 60)),
  );
  const by = changeOf(inside, at);
  node.style.setProperty("--by", by > 0 ? "var(--more)" : "var(--less)");
  node.style.setProperty("--share", `${Math.min(Math.abs(by) / AT_MOST, 1) * 55}%`);
  return node;
}

function tokensPart(inside) {
  const readout = el("dl", { class: "readout token-readout" });
  const boxes = inside.tokens.map((_, at) => tokenBox(inside, at));
  const list = el(
    "div",
    { class: "tokens", role: "listbox", "aria-label": "Tokens", "aria-orientation": "horizontal" },
    boxes,
  );
  let drawnAt = token;
  const move = (at) => {
    fill(boxes[drawnAt], { tabindex: -1, "aria-selected": "false" }, []);
    fill(boxes[at], { tabindex: 0, "aria-selected": "true" }, []);
    drawnAt = at;
    const item = (what, value) => el("div", {}, el("dt", {}, what), el("dd", {}, value));
    readout.replaceChildren(
      item("token", [
        `${at + 1} of ${inside.tokens.length} `,
        el("bdi", {}, el("b", {}, shortened(tokenText(inside.tokens[at]), 60))),
      ]),
      item("with", number(inside.probability[at], 4)),
      item("without", number(inside.probability_without[at], 4)),
      item("times", number(Math.exp(changeOf(inside, at)), 2)),
      item("end of turn, with", number(inside.end[at], 5)),
      item("without", number(inside.end_without[at], 5)),
    );
  };
  const chosen = (event) => event.target.closest(".token");
  list.addEventListener("pointerover", (event) => {
    if (chosen(event)) linkTo(Number(chosen(event).dataset.at));
  });
  list.addEventListener("focusin", (event) => {
    if (chosen(event)) linkTo(Number(chosen(event).dataset.at));
  });
  list.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: token - 1, ArrowRight: token + 1, Home: 0, End: boxes.length - 1 }[
      event.key
    ];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    boxes[Math.min(Math.max(to, 0), boxes.length - 1)].focus();
  });
  links.push(move);
  move(token);
  const key = el(
    "p",
    { class: "token-key faint small" },
    el("span", { class: "less" }, "less likely with the adapter"),
    el("span", { class: "more" }, "more likely with it"),
    `full colour: ${AT_MOST} nats, ${number(Math.exp(AT_MOST), 0)} times`,
  );
  return part("Tokens", null, key, list, readout);
}

function curvesPart(inside) {
  const xs = inside.tokens.map((_, at) => at + 1);
  const line = (name, values, colour, dash) => ({
    name,
    colour,
    dash,
    points: new Map(values.map((value, at) => [at + 1, value])),
  });
  const pair = (on, off, colour, limits, digits) => {
    const made = lineChart({
      xs,
      limits,
      digits,
      xLabel: "token",
      height: 200,
      series: [
        line("with the adapter", on, colour, ""),
        line("without", off, "var(--faint)", "5 4"),
      ],
      xName: (at) => `${at} ${shortened(tokenText(inside.tokens[at - 1]), 24)}`,
      moved: linkTo,
    });
    links.push(made.move);
    made.move(token);
    return made.node;
  };
  return [
    part(
      "Probability of each token",
      null,
      pair(inside.probability, inside.probability_without, "var(--method-2)", [0, 1], 4),
    ),
    part(
      "Probability that the turn ends there",
      "The last token is the end of the turn.",
      pair(inside.end, inside.end_without, "var(--method-1)", null, 5),
    ),
  ];
}

const columnName = (inside) => (at) =>
  el("bdi", {}, `${at + 1} ${shortened(tokenText(inside.tokens[at]), 24)}`);

function mapPart(title, note, options, ...before) {
  const made = heatMap({ ...options, moved: linkTo });
  links.push(made.move);
  made.move(token);
  repaints.push(made.repaint);
  return part(title, note, before, made.node);
}

function mixingPart(inside) {
  if (!inside.mixing.length) return null;
  layerAt = Math.min(layerAt, inside.mixing.length - 1);
  const one = inside.mixing[layerAt];
  const pick = (value, byKeys) => {
    layerAt = Number(value);
    drawExplained();
    if (byKeys) byId("layer").focus();
  };
  return mapPart(
    "Mixing weights",
    "Rows are the layer's strongest vectors.",
    {
      grid: one.weights,
      label: "Mixing weights",
      rowNames: one.vectors.map((vector) => `vector ${vector}`),
      columnName: columnName(inside),
      digits: 3,
      cell: 16,
    },
    chooser(
      "Layer",
      inside.mixing.map((each, at) => [at, `layer ${each.layer}`]),
      layerAt,
      pick,
      { id: "layer" },
    ),
  );
}

function insideHead(explained, inside) {
  const options = explained.studies.map((one) => [one.study, nameOf(STUDIES[one.study].id)]);
  if (!inside) options.unshift(["", "choose a study"]);
  return el(
    "header",
    { class: "study-head" },
    el("h2", {}, inside ? isolated(STUDIES[state.study].id) : "Inside the adapter"),
    el(
      "span",
      { class: "faint" },
      "what ",
      methodName(explained.method),
      " wrote; adapter ",
      isolated(explained.adapter),
    ),
    chooser(
      "Study",
      options,
      inside ? state.study : "",
      (value) => value !== "" && change({ study: Number(value) }),
      { id: "inside-study" },
    ),
    inside ? button("Its reports", () => change({ view: "studies" }), { class: "quiet" }) : null,
  );
}

function drawExplained() {
  const { explained } = DATA;
  const inside = insideOf(state.study);
  links = [];
  repaints = [];
  const parts = [insideHead(explained, inside)];
  if (!inside)
    parts.push(
      el(
        "p",
        { class: "faint part" },
        `The inside of this study was not looked at; it is there for ${explained.studies.length} studies.`,
      ),
    );
  else {
    token = Math.min(token, inside.tokens.length - 1);
    const layers = explained.layers.map((layer) => `layer ${layer}`);
    parts.push(
      tokensPart(inside),
      el("div", { class: "two" }, curvesPart(inside)),
      el(
        "div",
        { class: "two" },
        mapPart(
          "Steering strength",
          "The edit's norm over the hidden state's norm; layers from below.",
          {
            grid: inside.strength,
            label: "Steering strength, layer by token",
            rowNames: layers,
            columnName: columnName(inside),
            digits: 3,
          },
        ),
        mixingPart(inside),
      ),
    );
  }
  byId("explained").replaceChildren(...parts);
}

function buildExplained() {
  const ready = () => state.view === "explained" && drawExplained();
  ready();
  watch((changed) => {
    if (changed.has("study")) token = 0;
    if (
      changed.has("view") &&
      state.view === "explained" &&
      !insideOf(state.study) &&
      DATA.explained.studies.length
    ) {
      stepTo(DATA.explained.studies[0]); // draws, as the study changes
    } else if (changed.has("study") || changed.has("view")) ready();
    if (changed.has("theme")) for (const one of repaints) one();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    repaints.forEach((one) => one()),
  );
}
