// Matrices of one byte per number, and heat maps of them.

function decoded(grid) {
  const bytes = atob(grid.data);
  const values = new Float32Array(grid.rows * grid.columns);
  for (let at = 0; at < values.length; at += 1) {
    const byte = bytes.charCodeAt(at);
    values[at] = (grid.signed ? (byte - 128) / 127 : byte / 255) * grid.maximum;
  }
  return values;
}

const isDark = () =>
  state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

// Stops from one end to the other, [r, g, b]; told apart by lightness, whatever colours one sees.
const RISING = {
  light: [
    [245, 247, 250],
    [158, 196, 232],
    [62, 130, 196],
    [20, 70, 140],
    [10, 25, 60],
  ],
  dark: [
    [28, 31, 37],
    [32, 70, 120],
    [52, 120, 190],
    [140, 190, 235],
    [240, 247, 255],
  ],
};
const DIVERGING = {
  light: [
    [166, 82, 0],
    [236, 170, 100],
    [247, 247, 247],
    [120, 170, 225],
    [20, 80, 160],
  ],
  dark: [
    [255, 190, 110],
    [170, 100, 30],
    [34, 37, 43],
    [40, 95, 165],
    [150, 200, 255],
  ],
};

// share: 0 to 1
function mixed(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((one, channel) => one + (stops[low + 1][channel] - one) * (at - low));
}

function paint(canvas, grid, values) {
  const stops = (grid.signed ? DIVERGING : RISING)[isDark() ? "dark" : "light"];
  const context = canvas.getContext("2d");
  const image = context.createImageData(grid.columns, grid.rows);
  values.forEach((value, at) => {
    const share = grid.maximum ? value / grid.maximum : 0;
    image.data.set([...mixed(stops, grid.signed ? (share + 1) / 2 : share), 255], at * 4);
  });
  context.putImageData(image, 0, 0);
}

function paintKey(canvas, grid) {
  const steps = Float32Array.from(
    { length: 64 },
    (_, at) => (grid.signed ? at / 31.5 - 1 : at / 63) * grid.maximum,
  );
  paint(canvas, { ...grid, rows: 1, columns: 64 }, steps);
}

// Rows are drawn as `rowNames` has them, the last one on top. Returns {node, move}: move(column)
// sets the cursor without a call of `moved`.
function heatMap({ grid, label, rowNames, columnName, moved, digits, cell = 10 }) {
  const values = decoded(grid);
  const turned = new Float32Array(values.length);
  for (let row = 0; row < grid.rows; row += 1) {
    turned.set(
      values.subarray(row * grid.columns, (row + 1) * grid.columns),
      (grid.rows - 1 - row) * grid.columns,
    );
  }
  const canvas = el("canvas", {
    width: Math.max(grid.columns, 1),
    height: Math.max(grid.rows, 1),
    "aria-hidden": "true",
  });
  const key = el("canvas", { class: "key-canvas", width: 64, height: 1, "aria-hidden": "true" });
  const cursor = el("i", { class: "cell" });
  const readout = el("p", { class: "readout" });
  let [row, column] = [grid.rows - 1, 0];
  const show = () => {
    const set = (name, value) => cursor.style.setProperty(name, `${value * 100}%`);
    set("left", column / grid.columns);
    set("width", 1 / grid.columns);
    set("top", (grid.rows - 1 - row) / grid.rows);
    set("height", 1 / grid.rows);
    const value = number(values[row * grid.columns + column], digits);
    readout.replaceChildren(
      el("span", { class: "faint" }, `${rowNames[row]} · `, columnName(column), " "),
      el("b", {}, value),
    );
  };
  const move = (to) => {
    column = Math.min(Math.max(to, 0), grid.columns - 1);
    show();
  };
  const go = (toRow, toColumn) => {
    row = Math.min(Math.max(toRow, 0), grid.rows - 1);
    move(toColumn);
    moved?.(column);
  };
  const map = el(
    "div",
    {
      class: "map",
      tabindex: "0",
      role: "group",
      "aria-label": `${label}. Arrow keys move the cursor.`,
      on: {
        keydown: (event) => {
          const to = {
            ArrowUp: [row + 1, column],
            ArrowDown: [row - 1, column],
            ArrowLeft: [row, column - 1],
            ArrowRight: [row, column + 1],
            Home: [row, 0],
            End: [row, grid.columns - 1],
          }[event.key];
          if (!to) return;
          event.preventDefault();
          event.stopPropagation();
          go(...to);
          say(readout.textContent);
        },
        pointermove: (event) => {
          const box = map.getBoundingClientRect();
          const at = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
          const to = [
            grid.rows - 1 - at((event.clientY - box.top) / box.height, grid.rows),
            at((event.clientX - box.left) / box.width, grid.columns),
          ];
          if (to[0] !== row || to[1] !== column) go(...to);
        },
      },
    },
    canvas,
    cursor,
  );
  canvas.style.setProperty("height", `${Math.min(Math.max(grid.rows * cell, 48), 420)}px`);
  const repaint = () => {
    paint(canvas, grid, turned);
    paintKey(key, grid);
  };
  if (values.length) {
    repaint();
    show();
  }
  const least = grid.signed ? number(-grid.maximum, digits) : "0";
  return {
    move,
    repaint,
    node: el(
      "div",
      { class: "heat-map" },
      readout,
      map,
      el("p", { class: "key faint small" }, least, key, number(grid.maximum, digits)),
    ),
  };
}
