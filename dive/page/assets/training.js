// Curves of the trainings' logs, one chart for each kind of quantity.

function curveGroup(name) {
  if (/^(train_)?loss$/.test(name)) return "Loss";
  if (/^loss_/.test(name)) return "Loss by class of token";
  if (/^eval_/.test(name)) return "Validation";
  return name; // of a scale of its own
}

function curveChart(title, curves) {
  const series = curves.map(({ name, curve }) => ({
    name,
    points: new Map(curve.steps.map((step, at) => [step, curve.values[at]])),
  }));
  const xs = [...new Set(curves.flatMap(({ curve }) => curve.steps))].sort((a, b) => a - b);
  return el(
    "article",
    { class: "card" },
    el("h3", {}, isolated(title)),
    xs.length
      ? lineChart({ series, xs, xLabel: "step", xName: (step) => `step ${number(step, 0)}` }).node
      : el("p", { class: "faint" }, "No values."),
  );
}

function trainingPart() {
  const groups = new Map();
  for (const training of DATA.training) {
    for (const curve of training.curves) {
      const title = curveGroup(curve.name);
      const name = DATA.training.length > 1 ? `${training.name}: ${curve.name}` : curve.name;
      groups.set(title, [...(groups.get(title) ?? []), { name, curve }]);
    }
  }
  if (!groups.size) return null;
  return part(
    "Training",
    DATA.training.map((one) => nameOf(one.name)).join(", "),
    el(
      "div",
      { class: "cards" },
      [...groups].map(([title, curves]) => curveChart(title, curves)),
    ),
  );
}
