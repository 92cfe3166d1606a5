// One study: its films, and the reference beside the reports of the methods that are shown.

const RASTER = /^data:image\/(png|jpeg|webp|gif|avif);base64,[A-Za-z0-9+/=]*$/;

// A film's address: embedded, or a file beside the page; null for anything else.
function imageSource(source) {
  if (source === null || RASTER.test(source)) return source;
  return /^[a-z][a-z0-9+.-]*:|^[/\\]|[\0-\x1f]/i.test(source.trim()) ? null : source;
}

function film(study, at) {
  const image = study.images[at];
  const view = image.view ? `, ${nameOf(image.view)}` : "";
  const words = `Film ${at + 1} of ${study.images.length}${view}`;
  const source = imageSource(image.src);
  if (source === null) {
    return el(
      "div",
      { class: "film gone" },
      `${words}: ${image.src === null ? "missing" : "not opened, as it is neither embedded nor beside this page"}`,
    );
  }
  const attributes = {
    src: source,
    alt: `${words}, of study ${shortened(nameOf(study.id), 80)}`,
    width: image.width || null,
    height: image.height || null,
    decoding: "async",
  };
  const picture = el("img", attributes);
  const frame = button(picture, () => enlarge(attributes, words), {
    class: "film",
    "aria-label": `Enlarge: ${attributes.alt}`,
  });
  picture.addEventListener("error", () =>
    frame.replaceWith(el("div", { class: "film gone" }, `${words}: cannot be read`)),
  );
  return frame;
}

function enlarge(attributes, words) {
  const dialog = byId("film");
  const close = button("Close", () => dialog.close(), { class: "quiet" });
  dialog.replaceChildren(
    el("div", { class: "bar" }, el("span", {}, words), close),
    el("img", attributes),
  );
  dialog.showModal();
}

function scoresOf(report) {
  const known = Object.entries(report.scores);
  if (!known.length) return null;
  const label = (key) => METRICS.find((one) => one.key === key)?.label ?? key;
  return el(
    "dl",
    { class: "scores" },
    known.map(([key, value]) =>
      el("div", {}, el("dt", {}, isolated(label(key))), el("dd", {}, number(value, 3))),
    ),
  );
}

function methodColumn(study, method) {
  const report = study.reports[method];
  const chosen = method === state.method;
  const head = el(
    "h3",
    {},
    button(methodName(method), () => change({ method }), {
      class: "choose",
      "aria-pressed": chosen,
      title: "Colour the truth by this method",
    }),
  );
  if (!report) {
    return el(
      "article",
      { class: "column none", "data-method": method },
      head,
      el("p", { class: "faint" }, "No report for this study."),
    );
  }
  const flags = [];
  if (report.ended === false) flags.push(el("span", { class: "flag" }, "did not end"));
  const node = el(
    "article",
    { class: chosen ? "column chosen" : "column", "data-method": method },
    head,
    flags.length ? el("p", { class: "flags" }, flags) : null,
    reportText(report, outcomesOf(report), "report"),
    outcomeList(report),
    scoresOf(report),
  );
  node.style.setProperty("--colour", colourOf(method));
  return node;
}

// The chosen method stands beside the truth, the others after it in their own order.
function chosenFirst() {
  const rest = state.shown.filter((method) => method !== state.method);
  return rest.length < state.shown.length ? [state.method, ...rest] : rest;
}

function truthColumn(study) {
  const report = study.reports[state.method];
  const note = report
    ? el(
        "span",
        { class: "faint small", title: plainName(state.method) },
        "coloured by ",
        badge(state.method),
      )
    : null;
  return el(
    "article",
    { class: "column truth" },
    el("h3", {}, el("span", {}, "Truth"), note),
    reportText(study.reference, outcomesOf(report), "reference"),
  );
}

// What had the focus in the study has it again: a method's button, or else the study as a whole.
function drawStudyAndFocus(another) {
  const box = byId("study");
  const focused = box.contains(document.activeElement) && document.activeElement !== box;
  const method =
    document.activeElement?.closest?.(".choose") &&
    document.activeElement.closest("[data-method]")?.dataset.method;
  drawStudy();
  if (another) box.scrollTop = 0;
  if (focused)
    (box.querySelector(`[data-method="${method}"] .choose`) ?? box).focus({ preventScroll: true });
}

function drawStudy() {
  const box = byId("study");
  const study = STUDIES[state.study];
  if (!study) {
    box.replaceChildren(el("p", { class: "faint" }, "There are no studies."));
    return;
  }
  const at = listed.indexOf(state.study);
  byId("drawer").textContent =
    at < 0 ? "Choose a study" : `Study ${number(at + 1, 0)} of ${number(listed.length, 0)} ▾`;
  const head = el(
    "header",
    { class: "study-head" },
    el("h2", {}, isolated(study.id)),
    study.patient === null
      ? null
      : el("span", { class: "faint" }, "patient ", isolated(study.patient)),
    at < 0
      ? el("span", { class: "flag" }, "not in the filtered list")
      : el("span", { class: "faint" }, `${number(at + 1, 0)} of ${number(listed.length, 0)}`),
    insideOf(state.study)
      ? button("Inside the adapter", () => change({ view: "explained" }), { class: "quiet" })
      : null,
  );
  const films = el(
    "div",
    { class: "films" },
    study.images.map((_, one) => film(study, one)),
    study.images.length ? null : el("p", { class: "faint" }, "No film."),
  );
  const indication =
    study.indication === null
      ? null
      : el(
          "p",
          { class: "indication" },
          el("span", { class: "faint" }, "Indication "),
          el("bdi", {}, visible(study.indication)),
        );
  const columns = el(
    "div",
    { class: "columns" },
    truthColumn(study),
    chosenFirst().map((method) => methodColumn(study, method)),
  );
  columns.style.setProperty("--columns", state.shown.length + 1);
  box.replaceChildren(
    head,
    el(
      "div",
      { class: "body" },
      el("div", { class: "aside" }, films, indication),
      el("div", { class: "reading" }, legend(), columns),
    ),
  );
}

function buildStudies() {
  byId("studies").append(
    buildList(),
    el("div", { id: "study", tabindex: "0", "aria-label": "Study", role: "region" }),
  );
  document.body.append(el("dialog", { id: "film", "aria-label": "Film" }));
  byId("film").addEventListener("click", (event) => {
    if (event.target === event.currentTarget) event.currentTarget.close();
  });
  showFilters();
  drawLines();
  drawStudy();
  watch((changed) => {
    const again = ["study", "method", "shown", "finding", "query", "outcome", "order", "other"];
    if (again.some((name) => changed.has(name))) drawStudyAndFocus(changed.has("study"));
  });
}
