// Scores by class and by tercile, and what became of each finding.

const GROUP_SCORES = {
  finding_f1: "F1",
  finding_precision: "precision",
  finding_recall: "recall",
  finding_detail_f1: "F1 with side and severity",
};
let groupScore = "finding_f1";
let findingOrder = "references";
let allFindings = false;
const FEWEST = 15;

function redraw(id, byKeys) {
  drawOverview();
  if (byKeys) byId(id)?.focus();
}

function groupCell(group) {
  const value = group?.scores?.[groupScore] ?? null;
  const cell = el(
    "td",
    { class: "heat" },
    number(value, 3),
    el("span", { class: "faint small under" }, range(group?.intervals?.[groupScore], 3)),
  );
  cell.style.setProperty(
    "--heat",
    value === null ? "0%" : `${Math.min(Math.max(value, 0), 1) * 32}%`,
  );
  return cell;
}

const firstWith = (all, name) => all.find((one) => one?.[name])?.[name];

function classRows() {
  const names = [...new Set(DATA.classes.flatMap((one) => Object.keys(one ?? {})))];
  const references = (name) => firstWith(DATA.classes, name)?.references ?? 0;
  return names
    .sort((a, b) => references(b) - references(a))
    .map((name) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, isolated(name)),
        el("td", {}, number(references(name), 0)),
        state.shown.map((method) => groupCell(DATA.classes[method]?.[name])),
      ),
    );
}

const labelOfFinding = (name) => FINDINGS.find((one) => one.name === name)?.label ?? name;

function tercileRows() {
  return ["rare", "middle", "common"]
    .filter((name) => firstWith(DATA.terciles, name))
    .map((name) => {
      const one = firstWith(DATA.terciles, name);
      const labels = (one.findings ?? [])
        .map((finding) => nameOf(labelOfFinding(finding)))
        .join(", ");
      const between =
        one.references?.[0] === undefined
          ? "–"
          : one.references[0] === one.references[1]
            ? number(one.references[0], 0)
            : `${number(one.references[0], 0)} to ${number(one.references[1], 0)}`;
      return el(
        "tr",
        {},
        el(
          "th",
          { scope: "row" },
          el("details", {}, el("summary", {}, `${name} findings`), el("p", {}, labels)),
        ),
        el("td", {}, between),
        state.shown.map((method) => groupCell(DATA.terciles[method]?.[name])),
      );
    });
}

// Findings that were predicted and stand in no reference: they are in no tercile.
function unreferencedRow() {
  if (!firstWith(DATA.terciles, "unreferenced")) return null;
  return el(
    "tr",
    {},
    el(
      "th",
      { scope: "row" },
      "in no reference",
      el("span", { class: "faint small under" }, "times predicted"),
    ),
    el("td", {}, "0"),
    state.shown.map((method) =>
      el("td", {}, number(DATA.terciles[method]?.unreferenced?.predicted, 0)),
    ),
  );
}

function groupsPart() {
  const [classes, terciles] = [classRows(), tercileRows()];
  if (!classes.length && !terciles.length) return null;
  const heads = (what) => [what, "References", ...state.shown.map(methodName)];
  const pick = (value, byKeys) => {
    groupScore = value;
    redraw("group-score", byKeys);
  };
  return part(
    "By class and by how common a finding is",
    "The stronger the colour, the higher the score. References: how many state it.",
    chooser("Score", Object.entries(GROUP_SCORES), groupScore, pick, { id: "group-score" }),
    el(
      "div",
      { class: state.shown.length > 2 ? "stacked" : "two" },
      classes.length ? table("Scores by class", heads("Class"), classes) : null,
      terciles.length
        ? table("Scores by tercile", heads("Tercile of findings"), [terciles, unreferencedRow()])
        : null,
    ),
  );
}

function kindCounts(counts) {
  const found = { hit: 0, wrong: 0, missed: 0, invented: 0 };
  for (const [outcome, count] of Object.entries(counts)) found[kindOf(outcome)] += count;
  return found;
}

const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);

function outcomeCell(finding, method, most) {
  const counts = FINDINGS[finding].counts[method];
  if (!counts) return el("td", { class: "faint" }, "–");
  const found = kindCounts(counts);
  const bar = el(
    "span",
    { class: "stack", "aria-hidden": "true" },
    KINDS.filter((kind) => found[kind]).map((kind) => {
      const piece = el("i", { class: kind });
      piece.style.setProperty("flex-grow", found[kind]);
      return piece;
    }),
  );
  bar.style.setProperty("width", `${(sum(counts) / most) * 100}%`);
  // The mouse's way; by keys the filters of the studies lead to the same.
  const parts = KINDS.filter((kind) => found[kind]).map((kind) =>
    button(
      [
        el("span", { "aria-hidden": "true" }, KIND_SIGNS[kind]),
        `${found[kind]}`,
        el("span", { class: "unseen" }, ` ${KIND_WORDS[kind]}`),
      ],
      () => change({ finding, method, outcome: kind, view: "studies" }),
      {
        class: `link count ${kind}`,
        tabindex: "-1",
        title: `${found[kind]} ${KIND_WORDS[kind]}: show the studies`,
      },
    ),
  );
  return el(
    "td",
    { class: "outcome" },
    bar,
    el("span", { class: "counts" }, parts.length ? parts : el("span", { class: "faint" }, "none")),
  );
}

const FINDING_ORDERS = {
  references: "most frequent",
  missed: "most missed",
  invented: "most invented",
  wrong: "most wrong",
};

function findingRow(finding) {
  const one = FINDINGS[finding];
  const most = Math.max(
    1,
    ...state.shown.map((method) => (one.counts[method] ? sum(one.counts[method]) : 0)),
  );
  return el(
    "tr",
    {},
    el(
      "th",
      { scope: "row" },
      button(isolated(one.label), () => change({ finding, outcome: "", view: "studies" }), {
        class: "link",
        title: "Show the studies with this finding",
      }),
      el("span", { class: "faint small under" }, isolated(one.cls)),
    ),
    el("td", {}, number(one.references, 0)),
    state.shown.map((method) => outcomeCell(finding, method, most)),
  );
}

function findingsPart() {
  if (!FINDINGS.length || !METHODS.length) return null;
  const order = FINDINGS.map((_, at) => at);
  if (findingOrder !== "references") {
    const key = order.map((at) =>
      FINDINGS[at].counts[state.method]
        ? kindCounts(FINDINGS[at].counts[state.method])[findingOrder]
        : -1,
    );
    order.sort((a, b) => key[b] - key[a] || a - b);
  }
  const listedHere = allFindings ? order : order.slice(0, FEWEST);
  const pick = (value, byKeys) => {
    findingOrder = value;
    redraw("finding-order", byKeys);
  };
  const more =
    FINDINGS.length > FEWEST
      ? button(
          allFindings ? `Show ${FEWEST}` : `Show all ${FINDINGS.length}`,
          () => {
            allFindings = !allFindings;
            redraw("more-findings", true);
          },
          { id: "more-findings" },
        )
      : null;
  return part(
    "Findings",
    "A finding or a number leads to its studies. Each bar's length is the number of reports, by the longest of its line.",
    chooser("Order", Object.entries(FINDING_ORDERS), findingOrder, pick, { id: "finding-order" }),
    el(
      "ul",
      { class: "legend" },
      KINDS.map((kind) =>
        el(
          "li",
          {},
          el("span", { class: "stack key-stack" }, el("i", { class: kind })),
          `${KIND_SIGNS[kind]} ${KIND_WORDS[kind]}`,
        ),
      ),
    ),
    table(
      "Findings",
      ["Finding", "References", ...state.shown.map(methodName)],
      listedHere.map(findingRow),
      "findings",
    ),
    more,
  );
}
