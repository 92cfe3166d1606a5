// What the keyboard does, and the dialog that lists it.

const KEYS = [
  ["j / k", "next, previous study"],
  ["n / p, → / ←", "next, previous method"],
  ["/", "search"],
  ["f", "choose a finding"],
  ["w", "worst first"],
  ["o", "overview"],
  ["s", "studies"],
  ["e", "inside the adapter"],
  ["t", "light, dark or automatic"],
  ["?", "this list"],
  ["Esc", "close, or leave the search"],
];

function stepMethod(by) {
  if (!state.shown.length) return;
  const at = state.shown.indexOf(state.method);
  choose(state.shown[(Math.max(at, 0) + by + state.shown.length) % state.shown.length]);
  say(plainName(state.method));
}

function toFilter(id) {
  change({ view: "studies" });
  openDrawer(true);
  byId(id).focus();
}

function stepStudy(by) {
  if (state.view === "explained") stepExplained(by);
  else step(by);
  if (STUDIES[state.study]) say(nameOf(STUDIES[state.study].id));
}

function worstFirst() {
  change({ view: "studies", order: "worst" });
  if (listed.length) change({ study: listed[0] });
  lines.scrollTop = 0;
}

const PRESSES = {
  j: () => stepStudy(1),
  k: () => stepStudy(-1),
  n: () => stepMethod(1),
  p: () => stepMethod(-1),
  ArrowRight: () => stepMethod(1),
  ArrowLeft: () => stepMethod(-1),
  "/": () => toFilter("search"),
  f: () => toFilter("finding"),
  w: worstFirst,
  o: () => change({ view: "overview" }),
  s: () => change({ view: "studies" }),
  e: () =>
    DATA.explained
      ? change({ view: "explained" })
      : notice("This page holds no inside of an adapter."),
  t: () => byId("theme").click(),
  "?": () => byId("keys").showModal(),
};

function press(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]")) return; // Esc is the dialog's own
  const typing = event.target.closest?.("input:not([type=checkbox]), select, textarea");
  if (event.key === "Escape") {
    if (typing) {
      if (typing.id === "search") {
        typing.value = "";
        change({ query: "" });
      }
      typing.blur();
    }
    openDrawer(false);
    return;
  }
  if (typing || !Object.hasOwn(PRESSES, event.key)) return;
  if (event.key.startsWith("Arrow") && event.target.closest?.(".scroller")) return;
  event.preventDefault();
  PRESSES[event.key]();
}

function buildKeys() {
  const dialog = el("dialog", { id: "keys", "aria-labelledby": "keys-title" });
  dialog.append(
    el(
      "div",
      { class: "bar" },
      el("h2", { id: "keys-title" }, "Keys"),
      button("Close", () => dialog.close(), { class: "quiet" }),
    ),
    el(
      "dl",
      { class: "keys" },
      KEYS.map(([key, what]) =>
        el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)),
      ),
    ),
  );
  document.body.append(dialog);
  byId("help").addEventListener("click", () => dialog.showModal());
  document.addEventListener("keydown", press);
}
