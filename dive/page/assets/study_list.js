// The list of studies: filters, order, and as many of its lines as the window shows.

const LINE = 52; // px, as in page.css
const BEYOND = 6; // lines drawn above and below the window
let listed = []; // indices of the studies that pass the filters, in order
let lines = null;

function passes(index) {
  const report = STUDIES[index].reports[state.method];
  if (state.finding >= 0 && !states(index, state.finding)) return false;
  if (state.outcome === "none") {
    if (report) return false;
  } else if (state.outcome === "open") {
    if (report?.ended !== false) return false;
  } else if (state.outcome) {
    const meant = (one) =>
      (state.finding < 0 || one.finding === state.finding) &&
      (state.outcome === "errors" ? one.outcome !== "hit" : kindOf(one.outcome) === state.outcome);
    if (!report?.found.some(meant)) return false;
  }
  return !state.query || searchText(index).includes(state.query.toLowerCase());
}

const worst = (index) => errorsOf(index, state.method) ?? -1;

function apart(index) {
  const [one, other] = [errorsOf(index, state.method), errorsOf(index, state.other)];
  return one === null || other === null ? -1 : Math.abs(one - other);
}

function relist() {
  listed = [];
  for (let index = 0; index < STUDIES.length; index += 1) if (passes(index)) listed.push(index);
  const key = { worst, difference: apart }[state.order];
  if (key) {
    const keys = new Map(listed.map((index) => [index, key(index)]));
    listed.sort((a, b) => keys.get(b) - keys.get(a) || a - b);
  }
}

// The study `step` further in the list; the first one where the chosen one is not in it.
function step(by) {
  if (!listed.length) return;
  const at = listed.indexOf(state.study);
  const to = at < 0 ? 0 : Math.min(Math.max(at + by, 0), listed.length - 1);
  change({ study: listed[to], view: "studies" });
}

function counts(index) {
  const found = tally(index, state.method);
  if (!found) return el("span", { class: "faint" }, "no report");
  const kinds = KINDS.filter((kind) => found[kind]);
  const words = kinds.map((kind) => `${found[kind]} ${KIND_WORDS[kind]}`).join(", ");
  return el(
    "span",
    { class: "counts", role: "img", "aria-label": words || "no finding" },
    kinds.map((kind) =>
      el("span", { class: `count ${kind}` }, `${KIND_SIGNS[kind]}${found[kind]}`),
    ),
  );
}

function line(at) {
  const index = listed[at];
  const study = STUDIES[index];
  const chosen = index === state.study;
  const node = el(
    "div",
    {
      class: "line",
      role: "option",
      "aria-selected": chosen,
      tabindex: chosen ? 0 : -1,
      "aria-posinset": at + 1,
      "aria-setsize": listed.length,
      "data-at": at,
    },
    el("span", { class: "id" }, isolated(shortened(study.id, 200))),
    el(
      "span",
      { class: "patient faint", hidden: study.patient === null },
      isolated(shortened(study.patient ?? "", 80)),
    ),
    counts(index),
  );
  node.style.setProperty("top", `${at * LINE}px`);
  return node;
}

function drawLines() {
  const height = lines.clientHeight || 600;
  const first = Math.max(Math.floor(lines.scrollTop / LINE) - BEYOND, 0);
  const last = Math.min(Math.ceil((lines.scrollTop + height) / LINE) + BEYOND, listed.length);
  const focused = lines.contains(document.activeElement);
  const inner = lines.firstChild;
  inner.style.setProperty("height", `${listed.length * LINE}px`);
  const wanted = new Set();
  for (let at = first; at < last; at += 1) wanted.add(at);
  const chosen = listed.indexOf(state.study);
  if (chosen >= 0)
    wanted.add(chosen); // keeps the focus, and is where Tab leads
  else if (listed.length) wanted.add(0);
  const nodes = [...wanted].sort((a, b) => a - b).map(line);
  if (chosen < 0 && nodes.length) nodes[0].setAttribute("tabindex", 0);
  inner.replaceChildren(...nodes);
  if (!listed.length)
    inner.append(el("p", { class: "faint none" }, "No study passes these filters."));
  if (focused) inner.querySelector('[tabindex="0"]')?.focus({ preventScroll: true });
}

function reveal() {
  const at = listed.indexOf(state.study);
  if (at < 0) return;
  const [top, height] = [at * LINE, lines.clientHeight];
  if (top < lines.scrollTop) lines.scrollTop = top;
  else if (top + LINE > lines.scrollTop + height) lines.scrollTop = top + LINE - height;
}

function listKey(event) {
  const page = Math.max(Math.floor(lines.clientHeight / LINE) - 1, 1);
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 };
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key in steps) {
    event.preventDefault();
    event.stopPropagation();
    step(steps[event.key]);
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    openDrawer(false);
    byId("study").focus();
  }
}

function filters() {
  const search = el("input", {
    type: "search",
    id: "search",
    placeholder: "id, patient or words",
    "aria-label": "Search",
    autocomplete: "off",
    spellcheck: "false",
  });
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => change({ query: search.value.slice(0, 500) }), 120);
  });
  const findings = [
    ["-1", "any"],
    ...FINDINGS.map((one, at) => [at, `${nameOf(one.label)} (${one.references})`]),
  ];
  const outcomes = [
    ["", "any"],
    ["errors", "any error"],
    ...KINDS.map((kind) => [kind, KIND_WORDS[kind]]),
    ["open", "did not end"],
    ["none", "no report"],
  ];
  const methods = METHODS.map((_, at) => [at, plainName(at)]);
  return el(
    "div",
    { class: "filters" },
    search,
    chooser("Finding", findings, state.finding, (value) => change({ finding: Number(value) }), {
      id: "finding",
    }),
    chooser("Outcome", outcomes, state.outcome, (value) => change({ outcome: value }), {
      id: "outcome",
    }),
    chooser("Method", methods, state.method, (value) => choose(Number(value)), {
      id: "method",
    }),
    chooser(
      "Order",
      [
        ["given", "as given"],
        ["worst", "worst first"],
        ["difference", "largest difference"],
      ],
      state.order,
      (value) => change({ order: value }),
      { id: "order" },
    ),
    chooser("from", methods, state.other, (value) => change({ other: Number(value) }), {
      id: "other",
    }),
    el(
      "p",
      { class: "faint shown-count" },
      el("span", { id: "how-many" }),
      " ",
      button("Clear filters", () => change({ query: "", finding: -1, outcome: "" }), {
        class: "link",
        id: "clear",
      }),
    ),
  );
}

// On a narrow screen the list lies under a button.
function openDrawer(open) {
  byId("side").classList.toggle("open", open);
  byId("drawer").setAttribute("aria-expanded", open);
}

function showFilters() {
  const search = byId("search");
  if (search.value !== state.query && document.activeElement !== search) search.value = state.query;
  for (const name of ["finding", "outcome", "method", "order", "other"])
    byId(name).value = state[name];
  byId("other").closest("label").hidden = state.order !== "difference";
  byId("how-many").textContent =
    listed.length === STUDIES.length
      ? countedStudies(STUDIES.length)
      : `${number(listed.length, 0)} of ${countedStudies(STUDIES.length)}`;
  byId("clear").hidden = !(state.query || state.outcome || state.finding >= 0);
}

function buildList() {
  lines = el(
    "div",
    { class: "lines", role: "listbox", "aria-label": "Studies" },
    el("div", { class: "inner", role: "presentation" }),
  );
  let asked = false;
  lines.addEventListener(
    "scroll",
    () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        drawLines();
      });
    },
    { passive: true },
  );
  lines.addEventListener("keydown", listKey);
  lines.addEventListener("click", (event) => {
    const chosen = event.target.closest(".line");
    if (!chosen) return;
    change({ study: listed[Number(chosen.dataset.at)] });
    openDrawer(false);
  });
  new ResizeObserver(() => requestAnimationFrame(drawLines)).observe(lines);
  relist();
  watch((changed, quiet) => {
    const again = ["query", "finding", "outcome", "method", "order", "other"].some((name) =>
      changed.has(name),
    );
    if (again) {
      relist();
      const same = !["query", "finding", "outcome", "order"].some((name) => changed.has(name));
      if (!quiet && !same && listed.length && !changed.has("study")) {
        lines.scrollTop = 0;
        change({ study: listed[0] });
      }
      showFilters();
    }
    if (again || changed.has("study") || changed.has("view")) {
      drawLines();
      reveal();
    }
  });
  return el(
    "div",
    { id: "side" },
    el(
      "div",
      { class: "drawer-bar" },
      button("◂", () => step(-1), { "aria-label": "Previous study" }),
      button("Choose a study", () => openDrawer(!byId("side").classList.contains("open")), {
        id: "drawer",
        "aria-expanded": "false",
        "aria-controls": "drawn-out",
      }),
      button("▸", () => step(1), { "aria-label": "Next study" }),
    ),
    el("div", { id: "drawn-out" }, filters(), lines),
  );
}
