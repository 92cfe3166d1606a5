"""Drawn chest radiographs with known findings.

No medical image can be shipped with a package, so the demo draws its own: two dark lungs, a heart,
a diaphragm, and up to thirteen findings of severity 1 to 3. The pictures teach nothing about
medicine. They give the embedded backbone something to look at that is sometimes hard to see.
The patient's left is on the right of the picture, as on a film.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

SIZE = 64  # pixels a side

# (concept, side, zone): the thirteen findings, in the order of a label vector
FINDINGS: tuple[tuple[str, str, str], ...] = (
    ("cardiomegaly", "", ""),
    ("effusion", "left", ""),
    ("effusion", "right", ""),
    ("pneumothorax", "left", ""),
    ("pneumothorax", "right", ""),
    ("consolidation", "left", "upper"),
    ("consolidation", "left", "lower"),
    ("consolidation", "right", "upper"),
    ("consolidation", "right", "lower"),
    ("edema", "", ""),
    ("nodule", "left", ""),
    ("nodule", "right", ""),
    ("line", "", ""),
)
PREVALENCE = np.array(
    [0.30, 0.20, 0.20, 0.10, 0.10, 0.15, 0.15, 0.15, 0.15, 0.20, 0.12, 0.12, 0.25]
)


@dataclass(frozen=True)
class Site:
    """How a hospital's patients and machine differ from what the backbone was trained on."""

    prevalence: float = 1.0  # factor on PREVALENCE
    contrast: float = 1.0  # gain around mid grey
    noise: float = 0.0  # standard deviation added, grey levels 0 to 1


HOME = Site()
SHIFTED = Site(prevalence=0.5, contrast=0.65, noise=0.03)


def draw_labels(count: int, rng: np.random.Generator, site: Site = HOME) -> np.ndarray:
    """Severities, int64 [count, 13]: 0 where a finding is absent, else 1 to 3."""
    present = rng.random((count, len(FINDINGS))) < PREVALENCE * site.prevalence
    # A tenth of the studies at home are normal whatever the dice said.
    present &= (rng.random(count) >= 0.05)[:, None]
    # The air of a pneumothorax and the fluid of an effusion would hide each other.
    for fluid, air in ((1, 3), (2, 4)):
        present[:, air] &= ~present[:, fluid]
    return np.where(present, rng.integers(1, 4, present.shape), 0)


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """A step from 1 (distance < 0) to 0, `width` wide."""
    return np.clip(0.5 - distance / (2 * width), 0.0, 1.0)


def _blob(x, y, cx, cy, rx, ry) -> np.ndarray:
    return np.exp(-(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2))


def draw_images(labels: np.ndarray, rng: np.random.Generator, site: Site = HOME) -> np.ndarray:
    """Grey pictures, uint8 [count, SIZE, SIZE], of the given severities [count, 13]."""
    return np.concatenate(
        [
            _draw_batch(labels[i : i + 256].astype(np.float32), rng, site)
            for i in range(0, len(labels), 256)
        ]
    )


def _draw_batch(labels: np.ndarray, rng: np.random.Generator, site: Site) -> np.ndarray:
    count = len(labels)
    grid = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    x, y = grid[None, None, :], grid[None, :, None]

    def jitter(spread: float) -> np.ndarray:
        return (spread * rng.standard_normal((count, 1, 1))).astype(np.float32)

    dx, dy = jitter(0.012), jitter(0.012)
    x, y = x + dx, y + dy
    trunk = _soft(((x - 0.5) / 0.47) ** 2 + ((y - 0.6) / 0.62) ** 2 - 1, 0.06)
    picture = 0.08 + 0.50 * trunk
    lungs = {}
    for side, cx in (("right", 0.29), ("left", 0.71)):
        shape = ((x - cx) / (0.17 + jitter(0.006))) ** 2 + (
            (y - 0.47) / (0.35 + jitter(0.010))
        ) ** 2
        lungs[side] = _soft(shape - 1, 0.15)
        picture = picture - 0.34 * lungs[side]
    # ribs: faint arcs over the lungs
    ribs = np.sin(2 * np.pi * 6.5 * (y + 0.25 * (x - 0.5) ** 2 + jitter(0.02)))
    picture = picture + 0.020 * ribs * trunk
    picture = picture + 0.10 * _soft(np.abs(x - 0.5) - 0.045, 0.02) * trunk  # spine

    severity = labels[:, :, None, None]
    half_width = (
        0.135 + jitter(0.006) + np.where(severity[:, 0] > 0, 0.022 + 0.026 * severity[:, 0], 0)
    )
    heart = ((x - 0.545) / half_width) ** 2 + ((y - 0.66) / (0.17 + jitter(0.006))) ** 2
    picture = picture + 0.30 * _soft(heart - 1, 0.18)

    def add(index: int, field) -> None:
        """Add `field(rows)` to the pictures that have the finding, and only to those."""
        nonlocal picture
        rows = np.flatnonzero(labels[:, index])
        if rows.size:
            picture[rows] += field(rows, labels[rows, index][:, None, None])

    def local(rows, spread: float) -> np.ndarray:
        return (spread * rng.standard_normal((rows.size, 1, 1))).astype(np.float32)

    for index, side in ((1, "left"), (2, "right")):
        outwards = 1.0 if side == "left" else -1.0

        def effusion(rows, s, side=side, outwards=outwards):
            level = 0.80 - 0.065 * s - 0.18 * outwards * (x[rows] - 0.5) + local(rows, 0.008)
            return 0.28 * lungs[side][rows] * _soft(level - y[rows], 0.04)

        add(index, effusion)
    for index, side in ((3, "left"), (4, "right")):
        cx = 0.71 if side == "left" else 0.29

        def pneumothorax(rows, s, side=side, cx=cx):
            # the lung falls away from apex and side wall: a darker rim, and its thin white edge
            edge = ((x[rows] - cx) / 0.17) ** 2 + ((y[rows] - 0.47) / 0.35) ** 2
            rim = edge - (0.80 - 0.14 * s + local(rows, 0.02))
            upper = _soft(y[rows] - 0.50, 0.12) * lungs[side][rows]
            return upper * (-0.13 * _soft(-rim, 0.06) + 0.13 * np.exp(-((rim / 0.07) ** 2)))

        add(index, pneumothorax)
    for index in range(5, 9):
        _, side, zone = FINDINGS[index]
        cx, cy = (0.71 if side == "left" else 0.29), (0.30 if zone == "upper" else 0.60)

        def consolidation(rows, s, side=side, cx=cx, cy=cy):
            blob = _blob(
                x[rows], y[rows], cx + local(rows, 0.02), cy + local(rows, 0.02), 0.10, 0.09
            )
            return (0.09 + 0.055 * s) * blob * lungs[side][rows]

        add(index, consolidation)

    def edema(rows, s):
        haze = _blob(x[rows], y[rows], 0.36, 0.48, 0.13, 0.20) + _blob(
            x[rows], y[rows], 0.64, 0.48, 0.13, 0.20
        )
        streaks = 0.5 + 0.5 * np.sin(2 * np.pi * 11 * (x[rows] + 0.6 * np.abs(y[rows] - 0.48)))
        both = lungs["left"][rows] + lungs["right"][rows]
        return (0.045 + 0.030 * s) * haze * (0.45 + 0.9 * streaks) * both

    add(9, edema)
    for index, side in ((10, "left"), (11, "right")):
        cx = 0.72 if side == "left" else 0.28

        def nodule(rows, s, cx=cx):
            away = ((rng.random((2, rows.size, 1, 1)) - 0.5) * 2).astype(np.float32)
            distance = np.hypot(x[rows] - cx - 0.08 * away[0], y[rows] - 0.44 - 0.18 * away[1])
            return 0.30 * _soft(distance - (0.016 + 0.011 * s), 0.015)

        add(index, nodule)

    def line(rows, s):
        path = 0.40 + 0.10 * y[rows] + 0.03 * np.sin(5 * y[rows] + 3 * local(rows, 1.0))
        inside = _soft(y[rows] - 0.52, 0.02)
        return 0.32 * inside * np.exp(-(((x[rows] - path) / 0.012) ** 2))

    add(12, line)

    picture = 0.5 + site.contrast * (picture - 0.5)
    picture = picture + np.float32(0.045) * rng.standard_normal(picture.shape, dtype=np.float32)
    if site.noise:
        picture = picture + np.float32(site.noise) * rng.standard_normal(
            picture.shape, dtype=np.float32
        )
    return (255 * np.clip(picture, 0, 1)).round().astype(np.uint8)


def to_image(grey: np.ndarray) -> Image.Image:
    """One drawn picture, uint8 [SIZE, SIZE], as the RGB image a processor expects."""
    return Image.fromarray(grey).convert("RGB")
