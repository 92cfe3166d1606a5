// Lines over a common axis, read by mouse or arrow keys.

const DASHES = ["", "7 4", "2 4", "10 4 2 4"];
const seriesColour = (at) => `var(--method-${(at + 2) % COLOURS})`;

// Four digits that count, for quantities of any size.
function significant(value) {
  const size = Math.floor(Math.log10(Math.abs(value) || 1));
  return size < -4 || size > 6
    ? value.toExponential(3).replaceAll("-", MINUS)
    : number(value, Math.max(3 - size, 0));
}

function pathOf(points, x, y) {
  return points
    .map(([at, value], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`)
    .join("");
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
  const readout = el(
    "div",
    { class: "readout" },
    where,
    series.map((one, at) =>
      el("span", { class: "key" }, swatch(one, at), isolated(one.name), " ", cells[at]),
    ),
  );
  const show = () => {
    if (!coordinates) return;
    const { x, edge } = coordinates;
    fill(
      line,
      { x1: x(xs[cursor]), x2: x(xs[cursor]), y1: edge.top, y2: height - edge.bottom },
      [],
    );
    where.textContent = xName(xs[cursor]);
    series.forEach((one, at) => {
      cells[at].textContent = one.points.has(xs[cursor])
        ? (digits === undefined ? significant : (value) => number(value, digits))(
            one.points.get(xs[cursor]),
          )
        : "–";
    });
  };
  const move = (index) => {
    cursor = Math.min(Math.max(index, 0), xs.length - 1);
    show();
  };
  const go = (index) => {
    move(index);
    moved?.(cursor);
  };
  const box = el("div", {
    class: "chart",
    tabindex: "0",
    role: "group",
    "aria-label": `Chart: ${shortened(series.map((one) => nameOf(one.name)).join(", "), 300)}. Arrow keys move the cursor.`,
    on: {
      keydown: (event) => {
        const to = { ArrowLeft: cursor - 1, ArrowRight: cursor + 1, Home: 0, End: xs.length - 1 }[
          event.key
        ];
        if (to === undefined) return;
        event.preventDefault();
        event.stopPropagation();
        go(to);
        say(readout.textContent);
      },
      pointermove: (event) => {
        const at = event.clientX - box.getBoundingClientRect().left;
        let near = 0;
        xs.forEach((one, index) => {
          if (Math.abs(coordinates.x(one) - at) < Math.abs(coordinates.x(xs[near]) - at))
            near = index;
        });
        if (near !== cursor) go(near);
      },
    },
  });
  drawn(box, (width) => {
    coordinates = frame({
      width,
      height,
      xs: [xs[0], xs.at(-1)],
      ys,
      xTicks: ticks(xs[0], xs.at(-1), width / 90),
      yTicks: ticks(...ys, 4),
      xLabel,
    });
    const { x, y, marks } = coordinates;
    show();
    return shape(
      "svg",
      { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
      marks,
      line,
      series.map((one, at) =>
        shape("path", {
          class: "curve",
          d: pathOf([...one.points], x, y),
          stroke: one.colour ?? seriesColour(at),
          "stroke-dasharray": (one.dash ?? DASHES[at % DASHES.length]) || null,
        }),
      ),
    );
  });
  return { node: el("div", {}, readout, box), move };
}

function swatch(one, at) {
  return shape(
    "svg",
    { class: "swatch", width: 26, height: 10, "aria-hidden": "true" },
    shape("path", {
      class: "curve",
      d: "M0 5H26",
      stroke: one.colour ?? seriesColour(at),
      "stroke-dasharray": (one.dash ?? DASHES[at % DASHES.length]) || null,
    }),
  );
}
