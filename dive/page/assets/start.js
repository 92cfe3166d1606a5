// The head of the page, its views, and the start.

function buildHead() {
  byId("title").append(isolated(DATA.title));
  byId("views").append(
    ...Object.entries(VIEWS)
      .filter(([view]) => view !== "explained" || DATA.explained)
      .map(([view, label]) => button(label, () => change({ view }), { "data-view": view })),
  );
  byId("methods").append(
    ...METHODS.map((method, at) => {
      const box = el("input", {
        type: "checkbox",
        "data-method": at,
        "aria-label": `Show ${plainName(at)}`,
      });
      box.addEventListener("change", () => {
        const shown = METHODS.map((_, one) => one).filter((one) =>
          one === at ? box.checked : state.shown.includes(one),
        );
        const left = shown.includes(state.method) ? state.method : (shown[0] ?? state.method);
        change({ shown, method: left });
      });
      const chip = el(
        "span",
        { class: "chip", "data-method": at },
        box,
        button(methodName(at), () => choose(at), {
          class: "choose",
          title: "Its outcomes colour the truth (n, p)",
        }),
      );
      chip.style.setProperty("--colour", colourOf(at));
      return chip;
    }),
  );
  byId("theme").addEventListener("click", () => {
    const order = Object.keys(THEMES);
    change({ theme: order[(order.indexOf(state.theme) + 1) % order.length] });
  });
  window.addEventListener("beforeprint", () => {
    if (byId("all-notes")) byId("all-notes").open = true;
  });
  if (DATA.notes.length) {
    const [first, ...more] = DATA.notes.map((note) => el("bdi", {}, visible(note)));
    byId("notes").append(
      el(
        "details",
        { class: "notes", id: "all-notes" },
        el(
          "summary",
          {},
          first,
          more.length ? el("span", { class: "more faint" }, ` (${more.length} more)`) : null,
        ),
        el(
          "ul",
          {},
          more.map((note) => el("li", {}, note)),
        ),
      ),
    );
  }
  byId("foot").append(
    el(
      "p",
      {},
      `Written by dive report ${visible(DATA.version)}. Research only: nothing here says that a report is safe to use.`,
    ),
    el(
      "dl",
      {},
      (DATA.facts ?? []).map(([what, value]) =>
        el("div", {}, el("dt", {}, isolated(what)), el("dd", {}, el("bdi", {}, visible(value)))),
      ),
    ),
  );
}

// The method whose outcomes colour the truth; it is shown, too.
function choose(method) {
  const shown = state.shown.includes(method)
    ? state.shown
    : [...state.shown, method].sort((a, b) => a - b);
  change({ method, shown });
}

const scrolled = {}; // how far down each view was left
let lastView = null;

function showHead(changed) {
  for (const node of byId("views").children) {
    if (node.dataset.view === state.view) node.setAttribute("aria-current", "page");
    else node.removeAttribute("aria-current");
  }
  for (const chip of byId("methods").children) {
    const at = Number(chip.dataset.method);
    chip.querySelector("input").checked = state.shown.includes(at);
    chip.querySelector("button").setAttribute("aria-pressed", at === state.method);
  }
  if (lastView !== state.view) {
    scrolled[lastView] = window.scrollY;
    for (const view of Object.keys(VIEWS)) byId(view).hidden = view !== state.view;
    document.body.dataset.view = state.view;
    window.scrollTo(0, scrolled[state.view] ?? 0);
    lastView = state.view;
  }
  if (changed?.has("view") !== false && byId("all-notes"))
    byId("all-notes").open = state.view === "overview";
  byId("theme").textContent = `◐ ${THEMES[state.theme]}`;
  byId("theme").setAttribute("aria-label", `Colours: ${THEMES[state.theme]}`);
  const root = document.documentElement;
  if (state.theme) root.dataset.theme = state.theme;
  else delete root.dataset.theme;
}

function start() {
  const unknown = readAddress();
  buildHead();
  showHead();
  watch(showHead);
  buildOverview();
  buildStudies();
  if (DATA.explained) buildExplained();
  buildKeys();
  if (!new URLSearchParams(location.hash.slice(1)).get("study") && listed.length) {
    const inside = state.view === "explained" ? DATA.explained.studies[0]?.study : undefined;
    change({ study: inside ?? listed[0] }, true);
  }
  reveal();
  const report = (names) =>
    names.length && notice(`The address names what is not on this page: ${names.join(", ")}.`);
  report(unknown);
  window.addEventListener("popstate", () => report(readAddress()));
}

// A line that is seen and said, until the next one.
function notice(text) {
  byId("notice")?.remove();
  byId("notes").append(el("p", { id: "notice", class: "notes" }, text));
  say(text);
}

start();
