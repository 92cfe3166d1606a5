// The overview: scores, prompt length beside quality, the methods, and differences.

const BETTER = {
  higher: "higher is better",
  lower: "lower is better",
  "near 1": "near 1 is best",
  none: "",
};

// How far a value is from the best one: the smaller, the better.
const FAR = {
  higher: (value) => -value,
  lower: (value) => value,
  "near 1": (value) => Math.abs(value - 1),
};

// The best methods, by the digits that are shown; none where there is nothing to compare.
function bestOf(metric, rows) {
  const far = FAR[metric.better];
  const known = rows.filter((row) => row.value !== null);
  if (known.length < 2 || !far) return [];
  const least = known.reduce((a, b) => (far(b.value) < far(a.value) ? b : a)).value;
  const shown = (value) => number(far(value), DIGITS[metric.unit]);
  return known.filter((row) => shown(row.value) === shown(least)).map((row) => row.method);
}

function scoreRows(key) {
  return state.shown.map((method) => {
    const score = DATA.scores[method]?.[key];
    return { method, value: score?.value ?? null, interval: score?.interval ?? null };
  });
}

function scoreCard(metric) {
  const rows = scoreRows(metric.key);
  return el(
    "article",
    { class: "card" },
    el(
      "h3",
      {},
      isolated(metric.label),
      " ",
      el("span", { class: "faint small" }, BETTER[metric.better]),
    ),
    bars(rows, DIGITS[metric.unit], bestOf(metric, rows), metric.better === "near 1" ? 1 : null),
    variant(metric),
  );
}

const variant = (metric) =>
  el("details", {}, el("summary", {}, "How it is computed"), el("p", {}, visible(metric.variant)));

// A table that scrolls by itself: heads and rows of cells.
function table(label, heads, rows, kind) {
  return el(
    "div",
    {
      class: kind ? `scroller ${kind}` : "scroller",
      tabindex: "0",
      role: "region",
      "aria-label": label,
    },
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          heads.map((head) =>
            el("th", { scope: "col", class: head === "File" ? "words" : null }, head),
          ),
        ),
      ),
      el("tbody", {}, rows),
    ),
  );
}

function scoresPart() {
  const bootstrap = DATA.bootstrap;
  const note = bootstrap
    ? `Whiskers and ranges: ${percent(bootstrap.confidence)} of ${number(bootstrap.samples, 0)} bootstrap samples, resampled by ${visible(bootstrap.unit ?? "report")}.`
    : "No intervals: no bootstrap was asked for.";
  return part("Scores", note, el("div", { class: "cards" }, METRICS.map(scoreCard)));
}

function part(title, note, ...children) {
  return el(
    "section",
    { class: "part", "aria-label": title },
    el("h2", {}, title),
    note ? el("p", { class: "faint part-note" }, note) : null,
    children,
  );
}

function promptPart() {
  const metric = METRICS.find((one) => one.key === state.score);
  if (!metric || !METHODS.some((one) => one.prompt_tokens !== null)) return null;
  const rows = scoreRows(state.score)
    .map((row) => ({ ...row, x: METHODS[row.method].prompt_tokens }))
    .filter((row) => row.x !== null && row.value !== null);
  const options = METRICS.map((one) => [one.key, nameOf(one.label)]);
  const left = state.shown.length - rows.length;
  return part(
    "Prompt length beside quality",
    null,
    chooser("Score", options, state.score, (score) => change({ score }), { id: "score" }),
    rows.length
      ? scatter(rows, {
          xLabel: "tokens of the prompt, mean per report",
          yLabel: shortened(nameOf(metric.label), 40),
        })
      : el("p", { class: "faint" }, "No shown method has both."),
    el(
      "p",
      { class: "faint small" },
      "A point beside its place, where another one is, has a line to it.",
    ),
    left && rows.length
      ? el(
          "p",
          { class: "faint small" },
          `${left} shown without: its file has no number of prompt tokens, or it has no such score.`,
        )
      : null,
  );
}

function methodsPart() {
  const heads = ["Method", "File", "Reports", "Prompt tokens", "Seconds", "Ended"];
  const files = METHODS.some((method) => method.file);
  if (!files) heads.splice(1, 1);
  const rows = METHODS.map((method, at) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, methodName(at)),
      files ? el("td", { class: "words" }, isolated(method.file)) : null,
      [
        number(method.reports, 0),
        number(method.prompt_tokens, 0),
        number(method.seconds, 2),
        percent(method.ended),
      ].map((text) => el("td", {}, text)),
    ),
  );
  return part(
    "Methods",
    `${countedStudies(STUDIES.length)}; compared: ${visible(DATA.target)}. Prompt tokens and seconds are means per report; ended: by the model itself.`,
    table("Methods", heads, rows),
  );
}

const chance = (p) =>
  p === null || p === undefined ? "" : p < 0.001 ? "p < 0.001" : `p = ${number(p, 3)}`;

// Better or worse than the baseline, where the interval does not hold 0.
function verdict(metric, method, baseline) {
  const far = FAR[metric.better];
  const [here, there] = [method, baseline].map((one) => DATA.scores[one]?.[metric.key]?.value);
  if (!far || here === undefined || there === undefined || far(here) === far(there)) return null;
  return far(here) < far(there) ? "better" : "worse";
}

function differenceCell({ method, baseline, scores }, metric) {
  const found = scores[metric.key];
  if (!found) return el("td", {}, "–");
  const digits = DIGITS[metric.unit];
  const clear = found.interval && (found.interval[0] > 0 || found.interval[1] < 0);
  return el(
    "td",
    {},
    el("span", { class: clear ? "clear" : null }, signed(found.difference, digits)),
    el(
      "span",
      { class: "faint small under" },
      [clear && verdict(metric, method, baseline), range(found.interval, digits), chance(found.p)]
        .filter(Boolean)
        .join("; "),
    ),
  );
}

function differencesPart() {
  const baselines = [...new Set(DATA.differences.map((one) => one.baseline))];
  const parts = baselines
    .map((baseline) => {
      const all = DATA.differences.filter(
        (one) => one.baseline === baseline && state.shown.includes(one.method),
      );
      if (!all.length) return null;
      const rows = METRICS.filter((metric) => all.some((one) => one.scores[metric.key])).map(
        (metric) =>
          el(
            "tr",
            {},
            el(
              "th",
              { scope: "row" },
              isolated(metric.label),
              el("span", { class: "faint small under" }, BETTER[metric.better]),
            ),
            all.map((one) => differenceCell(one, metric)),
          ),
      );
      return [
        el("h3", {}, "Minus ", methodName(baseline)),
        table(
          `Differences from ${plainName(baseline)}`,
          ["", ...all.map((one) => methodName(one.method))],
          rows,
        ),
      ];
    })
    .filter(Boolean);
  if (!parts.length) return null;
  const compared = sum(
    DATA.differences.map(
      (one) => Object.values(one.scores).filter((each) => each.p !== undefined).length,
    ),
  );
  return part(
    "Differences",
    `Paired, on the same studies. Bold: the interval does not hold 0. Each p is of one score of one method alone: it is not corrected for the ${number(compared, 0)} that are compared here.`,
    parts,
  );
}

let stale = false; // drawn again when it is looked at, or printed

function drawOverview() {
  stale = false;
  const open = new Set(
    [...document.querySelectorAll("#overview details[open]")].map((one) => one.dataset.key),
  );
  // more columns than half a wide screen holds go one below the other
  const [outer, inner] = state.shown.length > 4 ? [null, "two"] : ["two", null];
  const parts = [
    scoresPart(),
    el(
      "div",
      { class: outer },
      el("div", { class: inner }, methodsPart(), promptPart()),
      differencesPart(),
    ),
    groupsPart(),
    findingsPart(),
  ];
  byId("overview-parts").replaceChildren(...parts.filter(Boolean));
  document.querySelectorAll("#overview details").forEach((one, at) => {
    one.dataset.key = at;
    one.open = open.has(String(at));
  });
}

function buildOverview() {
  byId("overview").append(el("div", { id: "overview-parts" }));
  drawOverview();
  const training = trainingPart();
  if (training) byId("overview").append(training);
  window.addEventListener("beforeprint", () => stale && drawOverview());
  watch((changed) => {
    stale ||= ["shown", "method", "score"].some((name) => changed.has(name));
    if (!stale || state.view !== "overview") return;
    const focus = document.activeElement?.id;
    drawOverview();
    if (focus === "score" || focus === "finding-order" || focus === "group-score")
      byId(focus)?.focus();
  });
}
