// Charts: their axes, bars with intervals, and points.

// Round numbers between two limits, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = power * [1, 2, 5, 10].find((one) => one * power >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / size - 1e-9); at * size <= high + size * 1e-9; at += 1)
    found.push(at * size);
  return found;
}

// 1, 2, 5, 10, 20 ... between two limits, for a logarithmic axis.
function logTicks(low, high) {
  const found = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
    for (const one of [1, 2, 5])
      if (one * power >= low && one * power <= high) found.push(one * power);
  }
  return found;
}

function shortNumber(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e5 || size < 1e-4) return value.toExponential(0).replace("-", MINUS);
  return number(value, Math.min(Math.max(2 - Math.floor(Math.log10(size)), 0), 5))
    .replace(/(\.\d*?)0+$/, "$1")
    .replace(/\.$/, "");
}

// One bar per method on a common scale, whose ends are written under it, as each score has its own;
// `line` is where a value would be right.
function bars(rows, digits, best, line) {
  const ends = rows
    .flatMap((row) => [row.value, ...(row.interval ?? [])])
    .filter((one) => one !== null);
  const low = Math.min(0, ...ends);
  const high = Math.max(line ?? 0, ...ends, low + 1e-9);
  const at = (value) => `${((value - low) / (high - low)) * 100}%`;
  const placed = (name, from, to) => {
    const node = el("i", { class: name });
    node.style.setProperty("left", at(Math.min(from, to)));
    node.style.setProperty("width", `${(Math.abs(to - from) / (high - low)) * 100}%`);
    return node;
  };
  const scale = el(
    "li",
    { class: "scale faint", "aria-hidden": "true" },
    el(
      "span",
      { class: "ends" },
      [low, high].map((end) => el("span", {}, shortNumber(end))),
    ),
  );
  const each = rows.map((row) => {
    const known = row.value !== null;
    const track = el(
      "span",
      { class: "track", "aria-hidden": "true" },
      known ? placed("filled", 0, row.value) : null,
      row.interval ? placed("whisker", row.interval[0], row.interval[1]) : null,
      line === null ? null : placed("right", line, line),
    );
    const node = el(
      "li",
      { class: best.includes(row.method) ? "best" : null },
      methodName(row.method),
      track,
      el("span", { class: "value" }, number(row.value, digits)),
      el(
        "span",
        { class: "interval faint" },
        row.interval ? `[${row.interval.map((one) => number(one, digits)).join(", ")}]` : "",
      ),
    );
    node.style.setProperty("--colour", colourOf(row.method));
    return node;
  });
  return el("ul", { class: "bars" }, each, scale);
}

// The frame of a chart: its grid, its numbers, and how a value becomes a coordinate.
function frame({ width, height, xs, ys, xTicks, yTicks, log, xLabel, yLabel }) {
  const edge = { left: 52, right: 14, top: 12, bottom: 40 };
  const scale = log ? Math.log : (value) => value;
  const [x0, x1, y0, y1] = [scale(xs[0]), scale(xs[1]), ys[0], ys[1]];
  const x = (value) =>
    edge.left + ((scale(value) - x0) / (x1 - x0 || 1)) * (width - edge.left - edge.right);
  const y = (value) =>
    height - edge.bottom - ((value - y0) / (y1 - y0 || 1)) * (height - edge.top - edge.bottom);
  const marks = [
    yTicks.map((value) => [
      shape("line", {
        class: "grid",
        x1: edge.left,
        x2: width - edge.right,
        y1: y(value),
        y2: y(value),
      }),
      shape(
        "text",
        { x: edge.left - 6, y: y(value) + 4, "text-anchor": "end" },
        shortNumber(value),
      ),
    ]),
    xTicks.map((value) => [
      shape("line", {
        class: "grid",
        x1: x(value),
        x2: x(value),
        y1: height - edge.bottom,
        y2: height - edge.bottom + 4,
      }),
      shape(
        "text",
        { x: x(value), y: height - edge.bottom + 17, "text-anchor": "middle" },
        shortNumber(value),
      ),
    ]),
    shape(
      "text",
      {
        class: "axis",
        x: (edge.left + width - edge.right) / 2,
        y: height - 5,
        "text-anchor": "middle",
      },
      xLabel,
    ),
    yLabel
      ? shape(
          "text",
          {
            class: "axis",
            x: 12,
            y: (edge.top + height - edge.bottom) / 2,
            "text-anchor": "middle",
            transform: `rotate(-90 12 ${(edge.top + height - edge.bottom) / 2})`,
          },
          yLabel,
        )
      : null,
  ];
  return { x, y, marks, edge };
}

// Where points are drawn: at their x, or, where another point is there, as near to it as there is
// room. Returns the coordinate of each row.
function apartBy(rows, x, y, size, low, high) {
  const where = new Map();
  const free = (row, at) =>
    [...where].every(
      ([other, there]) =>
        Math.abs(there - at) >= size || Math.abs(y(other.value) - y(row.value)) >= size,
    );
  for (const row of [...rows].sort((a, b) => a.x - b.x)) {
    const at = [0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5]
      .map((one) => x(row.x) + one * size)
      .find((one) => one >= low && one <= high && free(row, one));
    where.set(row, at ?? x(row.x));
  }
  return where;
}

// Points with intervals: rows of {method, x, value, interval}.
function scatter(rows, { xLabel, yLabel }) {
  return drawn(el("div", { class: "chart" }), (width) => {
    const height = 300;
    const known = rows.flatMap((row) => [row.value, ...(row.interval ?? [])]);
    const [least, most] = [Math.min(...known), Math.max(...known)];
    const room = (most - least) * 0.12 || 0.05;
    const ys = [Math.max(least - 2 * room, Math.min(least, 0)), most + room];
    const all = rows.map((row) => row.x);
    const log = Math.min(...all) > 0 && Math.max(...all) > 20 * Math.min(...all);
    // from 0, so that prompts of nearly one length are seen to be that
    const xs = log
      ? [Math.min(...all) / 1.5, Math.max(...all) * 1.5]
      : [0, Math.max(...all) * 1.15 || 1];
    const xTicks = log ? logTicks(...xs) : ticks(...xs, width / 110);
    const { x, y, marks, edge } = frame({
      width,
      height,
      xs,
      ys,
      log,
      xTicks,
      yTicks: ticks(...ys, 5),
      xLabel,
      yLabel,
    });
    const where = apartBy(rows, x, y, 22, edge.left + 12, width - edge.right - 12);
    const label = rows
      .map((row) => `${plainName(row.method)}: ${number(row.x, 0)} tokens, ${number(row.value, 3)}`)
      .join("; ");
    return shape(
      "svg",
      {
        width,
        height,
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": shortened(label, 600),
      },
      marks,
      rows
        .filter((row) => where.get(row) !== x(row.x))
        .map((row) =>
          shape("path", { class: "moved", d: `M${where.get(row)} ${y(row.value)}H${x(row.x)}` }),
        ),
      rows.map((row) => {
        const across = where.get(row);
        const node = shape(
          "g",
          { class: "point" },
          row.interval
            ? shape("path", {
                class: "whisker",
                d: `M${across} ${y(row.interval[0])}V${y(row.interval[1])}m-4 0h8M${across - 4} ${y(row.interval[0])}h8`,
              })
            : null,
          shape("circle", { cx: across, cy: y(row.value), r: 10 }),
          shape(
            "text",
            { x: across, y: y(row.value) + 4, "text-anchor": "middle" },
            letterOf(row.method),
          ),
        );
        node.style.setProperty("--colour", colourOf(row.method));
        return node;
      }),
    );
  });
}
