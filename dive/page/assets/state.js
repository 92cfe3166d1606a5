// What is being looked at: kept in the address, so that a case can be linked to.

const VIEWS = { overview: "Overview", studies: "Studies", explained: "Inside" };
const ORDERS = ["given", "worst", "difference"];
const FILTERS = ["", ...KINDS, "errors", "open", "none"];
const THEMES = { "": "Auto", light: "Light", dark: "Dark" };

const initial = () => ({
  view: "overview",
  study: 0,
  // the first is the baseline, the last one usually what the page is about
  method: METHODS.length - 1,
  other: 0,
  shown: METHODS.map((_, at) => at),
  query: "",
  finding: -1,
  outcome: "",
  order: someErrors ? "worst" : "given",
  score: METRICS.length ? METRICS[0].key : "",
  theme: "",
});

let state = initial();
const watchers = [];

// Browsers refuse an address that changes with every repetition of a key that is held down.
let late = 0;

function writeAddress() {
  if (!late) return;
  clearTimeout(late);
  late = 0;
  history.replaceState(null, "", "#" + written());
}

// call(changed, quiet): after every change, with the names of what is another now; quiet: it came
// from the address.
const watch = (call) => watchers.push(call);

function change(patch, quiet) {
  const changed = new Set();
  for (const [name, value] of Object.entries(patch)) {
    if (state[name] !== value) changed.add(name);
  }
  if (!changed.size) return;
  if (!quiet && changed.has("view")) {
    writeAddress(); // where one comes back to
    state = { ...state, ...patch };
    history.pushState(null, "", "#" + written());
  } else {
    state = { ...state, ...patch };
    if (!quiet) late ||= setTimeout(writeAddress, 100);
  }
  for (const call of watchers) call(changed, quiet);
}

// An element of a list in the address: by its name, or by its number where names do not tell.
const LONE = /[\ud800-\udfff]/u;
function keyIn(names, at) {
  const name = names[at];
  const clear = name && !LONE.test(name) && name[0] !== "@" && name.length <= 200;
  return clear && names.indexOf(name) === names.lastIndexOf(name) ? name : `@${at + 1}`;
}

function indexIn(names, key) {
  const at = /^@\d{1,9}$/.test(key) ? Number(key.slice(1)) - 1 : names.indexOf(key);
  return at >= 0 && at < names.length ? at : -1;
}

const ids = STUDIES.map((one) => one.id);
const methodNames = METHODS.map((one) => one.name);
const findingNames = FINDINGS.map((one) => one.name);

function written() {
  const start = initial();
  const words = new URLSearchParams();
  if (state.view !== "overview") words.set("view", state.view);
  if (state.view !== "overview" && STUDIES.length) words.set("study", keyIn(ids, state.study));
  if (state.method !== start.method) words.set("method", keyIn(methodNames, state.method));
  if (state.order !== start.order) words.set("order", state.order);
  if (state.order === "difference") words.set("than", keyIn(methodNames, state.other));
  if (state.shown.length !== METHODS.length)
    words.set("show", state.shown.map((one) => one + 1).join("."));
  if (state.query) words.set("q", state.query);
  if (state.finding >= 0) words.set("finding", keyIn(findingNames, state.finding));
  if (state.outcome) words.set("outcome", state.outcome);
  if (state.score !== start.score) words.set("score", state.score);
  if (state.theme) words.set("theme", state.theme);
  return words.toString();
}

// The state that an address names; [state, what in it is not known here].
function parsed(hash) {
  const found = initial();
  const unknown = [];
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const take = (name, read) => {
    const value = words.get(name);
    if (value !== null && value !== "" && !read(value))
      unknown.push(`${name} ${shortened(nameOf(value), 60)}`);
  };
  const pick = (name, known) => (value) => known.includes(value) && ((found[name] = value), true);
  const index = (name, names) => (value) => {
    const at = indexIn(names, value);
    if (at >= 0) found[name] = at;
    return at >= 0;
  };
  take("study", (value) => {
    found.view = "studies";
    return index("study", ids)(value);
  });
  take("view", pick("view", Object.keys(VIEWS)));
  take("method", index("method", methodNames));
  take("than", index("other", methodNames));
  take("order", pick("order", ORDERS));
  take("finding", index("finding", findingNames));
  take("outcome", pick("outcome", FILTERS));
  take(
    "score",
    pick(
      "score",
      METRICS.map((one) => one.key),
    ),
  );
  take("theme", pick("theme", Object.keys(THEMES)));
  take("q", (value) => ((found.query = value.slice(0, 500)), true));
  take("show", (value) => {
    const all = value
      .split(".")
      .map(Number)
      .filter((one) => METHODS[one - 1]);
    if (all.length) found.shown = [...new Set(all)].map((one) => one - 1).sort((a, b) => a - b);
    return all.length > 0;
  });
  // whose outcomes colour the truth is shown, too
  if (found.method >= 0 && !found.shown.includes(found.method)) {
    if (words.has("method")) found.shown = [...found.shown, found.method].sort((a, b) => a - b);
    else found.method = found.shown[0] ?? found.method;
  }
  if (found.view === "explained" && !DATA.explained) found.view = "overview";
  return [found, unknown];
}

function readAddress() {
  clearTimeout(late);
  late = 0;
  const [found, unknown] = parsed(location.hash);
  // equal lists are one list, or everything would seem to have changed
  if (String(found.shown) === String(state.shown)) found.shown = state.shown;
  change(found, true);
  return unknown;
}
