// Charts: bars with intervals, points, and lines that are read by mouse or arrow keys.

const DASHES = ["", "7 4", "2 4", "10 4 2 4"];
const seriesColour = (at) => `var(--method-${(at + 2) % COLOURS})`;

// Round numbers between two limits, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = power * [1, 2, 5, 10].find((one) => one * power >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / size - 1e-9); at * size <= high + size * 1e-9; at += 1) found.push(at * size);
  return found;
}

// 1, 2, 5, 10, 20 ... between two limits, for a logarithmic axis.
function logTicks(low, high) {
  const found = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
    for (const one of [1, 2, 5]) if (one * power >= low && one * power <= high) found.push(one * power);
  }
  return found;
}

function shortNumber(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e5 || size < 1e-4) return value.toExponential(0).replace("-", MINUS);
  return number(value, Math.min(Math.max(2 - Math.floor(Math.log10(size)), 0), 5)).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

// Four digits that count, for quantities of any size.
function significant(value) {
  const size = Math.floor(Math.log10(Math.abs(value) || 1));
  return size < -4 || size > 6 ? value.toExponential(3).replaceAll("-", MINUS) : number(value, Math.max(3 - size, 0));
}

// One bar per method on a common scale; `line` is where a value would be right.
function bars(rows, digits, best, line) {
  const ends = rows.flatMap((row) => [row.value, ...(row.interval ?? [])]).filter((one) => one !== null);
  const low = Math.min(0, ...ends);
  const high = Math.max(line ?? 0, ...ends, low + 1e-9);
  const at = (value) => `${((value - low) / (high - low)) * 100}%`;
  const placed = (name, from, to) => {
    const node = el("i", { class: name });
    node.style.setProperty("left", at(Math.min(from, to)));
    node.style.setProperty("width", `${(Math.abs(to - from) / (high - low)) * 100}%`);
    return node;
  };
  return el("ul", { class: "bars" }, rows.map((row) => {
    const known = row.value !== null;
    const track = el("span", { class: "track", "aria-hidden": "true" },
      known ? placed("filled", 0, row.value) : null,
      row.interval ? placed("whisker", row.interval[0], row.interval[1]) : null,
      line === null ? null : placed("right", line, line));
    const node = el("li", { class: row.method === best ? "best" : null }, methodName(row.method), track,
      el("span", { class: "value" }, number(row.value, digits)),
      el("span", { class: "interval faint" }, row.interval ? `[${row.interval.map((one) => number(one, digits)).join(", ")}]` : ""));
    node.style.setProperty("--colour", colourOf(row.method));
    return node;
  }));
}

// The frame of a chart: its grid, its numbers, and how a value becomes a coordinate.
function frame({ width, height, xs, ys, xTicks, yTicks, log, xLabel, yLabel }) {
  const edge = { left: 52, right: 14, top: 12, bottom: 40 };
  const scale = log ? Math.log : (value) => value;
  const [x0, x1, y0, y1] = [scale(xs[0]), scale(xs[1]), ys[0], ys[1]];
  const x = (value) => edge.left + ((scale(value) - x0) / (x1 - x0 || 1)) * (width - edge.left - edge.right);
  const y = (value) => height - edge.bottom - ((value - y0) / (y1 - y0 || 1)) * (height - edge.top - edge.bottom);
  const marks = [
    yTicks.map((value) => [
      shape("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value) }),
      shape("text", { x: edge.left - 6, y: y(value) + 4, "text-anchor": "end" }, shortNumber(value))]),
    xTicks.map((value) => [
      shape("line", { class: "grid", x1: x(value), x2: x(value), y1: height - edge.bottom, y2: height - edge.bottom + 4 }),
      shape("text", { x: x(value), y: height - edge.bottom + 17, "text-anchor": "middle" }, shortNumber(value))]),
    shape("text", { class: "axis", x: (edge.left + width - edge.right) / 2, y: height - 5, "text-anchor": "middle" }, xLabel),
    yLabel ? shape("text", { class: "axis", x: 12, y: (edge.top + height - edge.bottom) / 2, "text-anchor": "middle",
      transform: `rotate(-90 12 ${(edge.top + height - edge.bottom) / 2})` }, yLabel) : null,
  ];
  return { x, y, marks, edge };
}

// Points with intervals: rows of {method, x, value, interval}.
function scatter(rows, { xLabel, yLabel }) {
  return drawn(el("div", { class: "chart" }), (width) => {
    const height = 300;
    const known = rows.flatMap((row) => [row.value, ...(row.interval ?? [])]);
    const [least, most] = [Math.min(...known), Math.max(...known)];
    const room = (most - least) * 0.12 || 0.05;
    const ys = [Math.max(least - room, Math.min(least, 0)), most + room];
    const all = rows.map((row) => row.x);
    const log = Math.min(...all) > 0 && Math.max(...all) > 20 * Math.min(...all);
    const spread = (Math.max(...all) - Math.min(...all)) * 0.08 || Math.max(Math.max(...all) * 0.2, 1);
    const xs = log ? [Math.min(...all) / 1.5, Math.max(...all) * 1.5]
      : [Math.max(Math.min(...all) - spread, 0), Math.max(...all) + spread];
    const xTicks = log ? logTicks(...xs) : ticks(...xs, width / 110);
    const { x, y, marks } = frame({ width, height, xs, ys, log, xTicks, yTicks: ticks(...ys, 5), xLabel, yLabel });
    const label = rows.map((row) => `${plainName(row.method)}: ${number(row.x, 0)} tokens, ${number(row.value, 3)}`).join("; ");
    return shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": shortened(label, 600) }, marks,
      rows.map((row) => {
        const node = shape("g", { class: "point" },
          row.interval ? shape("path", { class: "whisker", d: `M${x(row.x)} ${y(row.interval[0])}V${y(row.interval[1])}m-4 0h8M${x(row.x) - 4} ${y(row.interval[0])}h8` }) : null,
          shape("circle", { cx: x(row.x), cy: y(row.value), r: 10 }),
          shape("text", { x: x(row.x), y: y(row.value) + 4, "text-anchor": "middle" }, letterOf(row.method)));
        node.style.setProperty("--colour", colourOf(row.method));
        return node;
      }));
  });
}

function pathOf(points, x, y) {
  return points.map(([at, value], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
}

// Lines over common numbers `xs`: series of {name, points: Map of x to value, colour}.
// Returns {node, move}: move(index) sets the cursor without a call of `moved`.
function lineChart({ series, xs, xLabel, xName, limits, digits, moved, height = 230 }) {
  let cursor = xs.length - 1;
  let coordinates = null;
  const values = series.flatMap((one) => [...one.points.values()]);
  const [least, most] = limits ?? [Math.min(...values), Math.max(...values)];
  const room = limits ? 0 : (most - least) * 0.06 || Math.abs(most) * 0.1 || 1;
  const ys = [least >= 0 ? Math.max(least - room, 0) : least - room, most + room];
  const line = shape("line", { class: "cursor" });
  const cells = series.map(() => el("b", {}));
  const where = el("span", { class: "faint" });
  const readout = el("div", { class: "readout" }, where, series.map((one, at) => el("span", { class: "key" },
    swatch(one, at), isolated(one.name), " ", cells[at])));
  const show = () => {
    if (!coordinates) return;
    const { x, edge } = coordinates;
    fill(line, { x1: x(xs[cursor]), x2: x(xs[cursor]), y1: edge.top, y2: height - edge.bottom }, []);
    where.textContent = xName(xs[cursor]);
    series.forEach((one, at) => { cells[at].textContent = one.points.has(xs[cursor]) ? (digits === undefined ? significant : (value) => number(value, digits))(one.points.get(xs[cursor])) : "–"; });
  };
  const move = (index) => { cursor = Math.min(Math.max(index, 0), xs.length - 1); show(); };
  const go = (index) => { move(index); moved?.(cursor); };
  const box = el("div", { class: "chart", tabindex: "0", role: "group", "aria-label": `Chart: ${shortened(series.map((one) => nameOf(one.name)).join(", "), 300)}. Arrow keys move the cursor.`,
    on: {
      keydown: (event) => {
        const to = { ArrowLeft: cursor - 1, ArrowRight: cursor + 1, Home: 0, End: xs.length - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        event.stopPropagation();
        go(to);
        say(readout.textContent);
      },
      pointermove: (event) => {
        const at = event.clientX - box.getBoundingClientRect().left;
        let near = 0;
        xs.forEach((one, index) => { if (Math.abs(coordinates.x(one) - at) < Math.abs(coordinates.x(xs[near]) - at)) near = index; });
        if (near !== cursor) go(near);
      },
    } });
  drawn(box, (width) => {
    coordinates = frame({ width, height, xs: [xs[0], xs.at(-1)], ys, xTicks: ticks(xs[0], xs.at(-1), width / 90), yTicks: ticks(...ys, 4), xLabel });
    const { x, y, marks } = coordinates;
    show();
    return shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, marks, line,
      series.map((one, at) => shape("path", { class: "curve", d: pathOf([...one.points], x, y), stroke: one.colour ?? seriesColour(at),
        "stroke-dasharray": (one.dash ?? DASHES[at % DASHES.length]) || null })));
  });
  return { node: el("div", {}, readout, box), move };
}

function swatch(one, at) {
  return shape("svg", { class: "swatch", width: 26, height: 10, "aria-hidden": "true" },
    shape("path", { class: "curve", d: "M0 5H26", stroke: one.colour ?? seriesColour(at), "stroke-dasharray": (one.dash ?? DASHES[at % DASHES.length]) || null }));
}
