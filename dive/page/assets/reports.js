// A report's text with its findings underlined by outcome, and the list of outcomes under it.

const STATE_WORDS = { positive: "states", uncertain: "is unsure of", negative: "denies" };

// Outcomes by finding, of one method's report of a study.
function outcomesOf(report) {
  return new Map((report?.found ?? []).map((one) => [one.finding, one]));
}

// A denial is no hit. In the reference it belongs to what the report invents, in a report to what it
// misses; where a report states a finding in one place and denies it in another, the denial is neither.
const DENIED = { reference: "invented", report: "missed" };

function pieceOf(piece, outcomes, of) {
  if (typeof piece === "string") return visible(piece);
  const [words, finding, how] = piece;
  const one = outcomes.get(finding);
  const label = nameOf(FINDINGS[finding].label);
  const classes = ["said", how];
  let note = `${STATE_WORDS[how]} ${label}`;
  if (one && (how !== "negative" || one.outcome === DENIED[of])) {
    classes.push(kindOf(one.outcome));
    note += `: ${OUTCOME_WORDS[one.outcome]}`;
  }
  if (finding === state.finding) classes.push("sought");
  return el("span", { class: classes.join(" "), title: note }, visible(words));
}

// outcomes: from outcomesOf; of the reference those of the chosen method. of: "reference" or "report"
function reportText(report, outcomes, of) {
  const text = el("bdi", { class: "report", dir: "auto" });
  for (const piece of report.pieces) text.append(pieceOf(piece, outcomes, of));
  if (!report.pieces.length) text.append(el("em", { class: "faint" }, "(empty)"));
  return text;
}

function outcomeNote(one) {
  const kind = kindOf(one.outcome);
  if (kind === "wrong")
    return `truth: ${visible(one.truth) || "not given"}; stated: ${visible(one.stated) || "not given"}`;
  return visible(kind === "invented" ? one.stated : one.truth);
}

const WORST_FIRST = { invented: 0, missed: 1, wrong: 2, hit: 3 };

function outcomeList(report) {
  const order = [...report.found].sort(
    (a, b) => WORST_FIRST[kindOf(a.outcome)] - WORST_FIRST[kindOf(b.outcome)],
  );
  return el(
    "ul",
    { class: "outcomes" },
    order.map((one) => {
      const kind = kindOf(one.outcome);
      const note = outcomeNote(one);
      return el(
        "li",
        { class: kind },
        el("span", { class: `sign ${kind}`, "aria-hidden": "true" }, KIND_SIGNS[kind]),
        el(
          "span",
          {},
          button(isolated(FINDINGS[one.finding].label), () => change({ finding: one.finding }), {
            class: "link",
            title: "Show the studies with this finding",
          }),
          el(
            "span",
            { class: "faint" },
            ` ${OUTCOME_WORDS[one.outcome]}${note ? ` · ${note}` : ""}`,
          ),
        ),
      );
    }),
  );
}

function legend() {
  return el(
    "ul",
    { class: "legend", "aria-label": "Legend" },
    KINDS.map((kind) =>
      el(
        "li",
        {},
        el("span", { class: `sign ${kind}`, "aria-hidden": "true" }, KIND_SIGNS[kind]),
        el("span", { class: `said positive ${kind}` }, KIND_WORDS[kind]),
      ),
    ),
    el("li", {}, el("span", { class: "said uncertain" }, "uncertain")),
    el("li", {}, el("span", { class: "said negative" }, "denied")),
  );
}
