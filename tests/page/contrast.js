// Contrast of texts and signs with what is behind them, as WCAG 2.2 computes it.

function parts(text) {
  const srgb = text.startsWith("color(srgb");
  if (!srgb && !text.startsWith("rgb")) throw new Error(text);
  const [r, g, b, a = 1] = text.match(/-?[\d.]+(e-?\d+)?/g).map(Number);
  return srgb ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
}

const over = (top, under) =>
  [0, 1, 2].map((at) => top[at] * top[3] + under[at] * (1 - top[3])).concat(1);

function behind(node) {
  const layers = [];
  for (let one = node; one; one = one.parentElement) {
    layers.push(parts(getComputedStyle(one).backgroundColor));
  }
  return layers
    .concat([[255, 255, 255, 1]])
    .reverse()
    .reduce((under, top) => over(top, under));
}

function luminance([r, g, b]) {
  const [x, y, z] = [r, g, b]
    .map((one) => one / 255)
    .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}

function contrast(a, b) {
  const [x, y] = [luminance(a), luminance(b)];
  return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
}

const nameOf = (node) => `${node.tagName}.${node.getAttribute("class") ?? ""}`;

// The least contrast of every kind of element that holds a text and is seen.
function textContrasts() {
  const found = {};
  for (const node of document.querySelectorAll("body *")) {
    if (!node.checkVisibility() || node.closest(".unseen, .point, option, script, noscript"))
      continue;
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (!own && !["SELECT", "INPUT"].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const under = behind(node);
    const ink = parts(node instanceof SVGElement ? style.fill : style.color);
    const name = `${nameOf(node)} in ${nameOf(node.parentElement)}`;
    found[name] = Math.min(found[name] ?? 99, contrast(over(ink, under), under));
  }
  return found;
}

// [name, contrast] of every bar, its pieces, points and the badges of the methods.
function signContrasts() {
  return [...document.querySelectorAll(".filled, .stack i, .point circle, .badge")].map((node) => {
    const style = getComputedStyle(node);
    const inside = node.parentElement instanceof SVGElement;
    const under = behind(inside ? document.body : node.parentElement);
    const drawn = [
      style.backgroundColor,
      style.borderTopColor,
      style.fill,
      ...(style.backgroundImage.match(/rgb\([^)]*\)/g) ?? []),
    ]
      .filter((one) => one.startsWith("rgb"))
      .map(parts);
    return [nameOf(node), Math.max(...drawn.map((one) => contrast(over(one, under), under)))];
  });
}
