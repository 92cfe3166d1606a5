// The data, and what is counted from it.

const DATA = JSON.parse(byId("data").textContent);
const { methods: METHODS, findings: FINDINGS, metrics: METRICS, studies: STUDIES } = DATA;

const countedStudies = (count) => `${number(count, 0)} ${count === 1 ? "study" : "studies"}`;

// kinds of outcome, as they are coloured and filtered
const KINDS = ["hit", "wrong", "missed", "invented"];
const KIND_WORDS = {
  hit: "hit",
  wrong: "wrong side or severity",
  missed: "missed",
  invented: "invented",
};
const KIND_SIGNS = { hit: "✓", wrong: "≠", missed: "○", invented: "✕" };
const OUTCOME_WORDS = {
  hit: "hit",
  side: "wrong side",
  severity: "wrong severity",
  both: "wrong side and severity",
  missed: "missed",
  invented: "invented",
};
const kindOf = (outcome) => (outcome in KIND_WORDS ? outcome : "wrong");

// A, B ... Z, AA: with its colour the sign of a method
function letterOf(method) {
  const last = String.fromCharCode(65 + (method % 26));
  return method < 26 ? last : letterOf(Math.floor(method / 26) - 1) + last;
}

const COLOURS = 8;
const colourOf = (method) => `var(--method-${method % COLOURS})`;

function badge(method) {
  const node = el("span", { class: "badge", "aria-hidden": "true" }, letterOf(method));
  node.style.setProperty("--colour", colourOf(method));
  return node;
}

const methodName = (method) =>
  el(
    "span",
    { class: "named" },
    badge(method),
    isolated(METHODS[method].name, { title: shortened(nameOf(METHODS[method].name), 200) }),
  );

const plainName = (method) => `${letterOf(method)} ${nameOf(METHODS[method].name)}`;

// Reports of a study by kind of outcome; null where the method has none.
function tally(study, method) {
  const report = STUDIES[study].reports[method];
  if (!report) return null;
  const counts = { hit: 0, wrong: 0, missed: 0, invented: 0 };
  for (const one of report.found) counts[kindOf(one.outcome)] += 1;
  return counts;
}

const errorsOf = (study, method) => STUDIES[study].reports[method]?.errors ?? null;

const textOf = (report) =>
  report.pieces.map((piece) => (typeof piece === "string" ? piece : piece[0])).join("");

const allReports = (study) => [study.reference, ...study.reports.filter((one) => one)];

// Made at the first search: what is looked through, in lower case.
let texts = null;
function searchText(index) {
  texts ??= STUDIES.map((study) =>
    [study.id, study.patient ?? "", study.indication ?? "", ...allReports(study).map(textOf)]
      .join("\n")
      .toLowerCase(),
  );
  return texts[index];
}

// Whether the reference or any report states a finding as present or uncertain.
let stated = null;
function states(index, finding) {
  stated ??= STUDIES.map((study) => {
    const found = new Set();
    for (const report of allReports(study)) {
      for (const piece of report.pieces) {
        if (typeof piece !== "string" && piece[2] !== "negative") found.add(piece[1]);
      }
      for (const one of report.found) found.add(one.finding);
    }
    return found;
  });
  return stated[index].has(finding);
}

// The inside of a study's report, where it was looked at.
const insideOf = (index) => DATA.explained?.studies.find((one) => one.study === index) ?? null;

const someErrors = STUDIES.some((study) => study.reports.some((one) => one && one.errors > 0));
