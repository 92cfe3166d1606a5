"""Drawn chest radiographs with known findings.

No medical image can be shipped with a package, so the demo draws its own: two dark lungs, a heart,
a diaphragm, and up to thirteen findings of severity 1 to 3. The pictures teach nothing about
medicine. They give the embedded backbone something to look at that is sometimes hard to see.
The patient's left is on the right of the picture, as on a film.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

SIZE = 64  # pixels per side

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
    """How a hospital's patients and machine differ from the backbone's training data."""

    prevalence: float = 1.0  # factor on PREVALENCE
    contrast: float = 1.0  # factor around mid grey
    noise: float = 0.0  # standard deviation added, grey levels 0 to 1


HOME = Site()
SHIFTED = Site(prevalence=0.5, contrast=0.65, noise=0.03)


def draw_labels(count: int, rng: np.random.Generator, site: Site = HOME) -> np.ndarray:
    """Draws severities, int64 [count, 13]: 0 where a finding is absent, else 1 to 3."""
    present = rng.random((count, len(FINDINGS))) < PREVALENCE * site.prevalence
    # A share of the studies are normal whatever was drawn.
    present &= (rng.random(count) >= 0.05)[:, None]
    # The air of a pneumothorax and the fluid of an effusion would hide each other.
    for fluid, air in ((1, 3), (2, 4)):
        present[:, air] &= ~present[:, fluid]
    return np.where(present, rng.integers(1, 4, present.shape), 0)


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """Returns a step from 1 (distance < 0) to 0, `width` wide."""
    return np.clip(0.5 - distance / (2 * width), 0.0, 1.0)


def _blob(x, y, cx, cy, rx, ry) -> np.ndarray:
    return np.exp(-(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2))


def draw_images(labels: np.ndarray, rng: np.random.Generator, site: Site = HOME) -> np.ndarray:
    """Draws grey pictures, uint8 [count, SIZE, SIZE], of the given severities [count, 13]."""
    batches = (labels[i : i + 256].astype(np.float32) for i in range(0, len(labels), 256))
    return np.concatenate([_Pictures(batch, rng).draw(site) for batch in batches])


class _Pictures:
    """A batch of pictures while they are drawn: float32 [count, SIZE, SIZE], grey levels 0 to 1.

    The order of the methods is part of the world: each takes its random numbers from one stream.
    """

    def __init__(self, labels: np.ndarray, rng: np.random.Generator) -> None:
        self.labels, self.rng = labels, rng
        grid = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
        x, y = grid[None, None, :], grid[None, :, None]
        dx, dy = self._jitter(0.012), self._jitter(0.012)
        self.x, self.y = x + dx, y + dy
        self.lungs: dict[str, np.ndarray] = {}

    def draw(self, site: Site) -> np.ndarray:
        self._chest()
        self._heart()
        for index, side in ((1, "left"), (2, "right")):
            self._effusion(index, side)
        for index, side in ((3, "left"), (4, "right")):
            self._pneumothorax(index, side)
        for index in range(5, 9):
            _, side, zone = FINDINGS[index]
            self._consolidation(index, side, zone)
        self._edema(9)
        for index, side in ((10, "left"), (11, "right")):
            self._nodule(index, side)
        self._line(12)
        return self._exposed(site)

    def _jitter(self, spread: float, count: int | None = None) -> np.ndarray:
        """Draws [count, 1, 1], one number per picture."""
        shape = (len(self.labels) if count is None else count, 1, 1)
        return (spread * self.rng.standard_normal(shape)).astype(np.float32)

    def _with(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pictures that have a finding, and its severities [n, 1, 1]."""
        chosen = np.flatnonzero(self.labels[:, index])
        return chosen, self.labels[chosen, index][:, None, None]

    def _chest(self) -> None:
        x, y = self.x, self.y
        trunk = _soft(((x - 0.5) / 0.47) ** 2 + ((y - 0.6) / 0.62) ** 2 - 1, 0.06)
        picture = 0.08 + 0.50 * trunk
        for side, cx in (("right", 0.29), ("left", 0.71)):
            shape = ((x - cx) / (0.17 + self._jitter(0.006))) ** 2 + (
                (y - 0.47) / (0.35 + self._jitter(0.010))
            ) ** 2
            self.lungs[side] = _soft(shape - 1, 0.15)
            picture = picture - 0.34 * self.lungs[side]
        # ribs: faint arcs over the lungs
        ribs = np.sin(2 * np.pi * 6.5 * (y + 0.25 * (x - 0.5) ** 2 + self._jitter(0.02)))
        picture = picture + 0.020 * ribs * trunk
        self.picture = picture + 0.10 * _soft(np.abs(x - 0.5) - 0.045, 0.02) * trunk  # spine

    def _heart(self) -> None:
        severity = self.labels[:, 0, None, None]
        larger = np.where(severity > 0, 0.022 + 0.026 * severity, 0)
        half_width = 0.135 + self._jitter(0.006) + larger
        half_height = 0.17 + self._jitter(0.006)
        heart = ((self.x - 0.545) / half_width) ** 2 + ((self.y - 0.66) / half_height) ** 2
        self.picture = self.picture + 0.30 * _soft(heart - 1, 0.18)

    def _effusion(self, index: int, side: str) -> None:
        chosen, severity = self._with(index)
        if not chosen.size:
            return
        outwards = 1.0 if side == "left" else -1.0
        slope = 0.18 * outwards * (self.x[chosen] - 0.5)
        level = 0.80 - 0.065 * severity - slope + self._jitter(0.008, chosen.size)
        fluid = _soft(level - self.y[chosen], 0.04)
        self.picture[chosen] += 0.28 * self.lungs[side][chosen] * fluid

    def _pneumothorax(self, index: int, side: str) -> None:
        """Draws the lung off the apex and the side wall: a darker rim and its thin white edge."""
        chosen, severity = self._with(index)
        if not chosen.size:
            return
        cx, y = (0.71 if side == "left" else 0.29), self.y[chosen]
        edge = ((self.x[chosen] - cx) / 0.17) ** 2 + ((y - 0.47) / 0.35) ** 2
        rim = edge - (0.80 - 0.14 * severity + self._jitter(0.02, chosen.size))
        upper = _soft(y - 0.50, 0.12) * self.lungs[side][chosen]
        air = -0.13 * _soft(-rim, 0.06) + 0.13 * np.exp(-((rim / 0.07) ** 2))
        self.picture[chosen] += upper * air

    def _consolidation(self, index: int, side: str, zone: str) -> None:
        chosen, severity = self._with(index)
        if not chosen.size:
            return
        cx = (0.71 if side == "left" else 0.29) + self._jitter(0.02, chosen.size)
        cy = (0.30 if zone == "upper" else 0.60) + self._jitter(0.02, chosen.size)
        blob = _blob(self.x[chosen], self.y[chosen], cx, cy, 0.10, 0.09)
        self.picture[chosen] += (0.09 + 0.055 * severity) * blob * self.lungs[side][chosen]

    def _edema(self, index: int) -> None:
        chosen, severity = self._with(index)
        if not chosen.size:
            return
        x, y = self.x[chosen], self.y[chosen]
        haze = _blob(x, y, 0.36, 0.48, 0.13, 0.20) + _blob(x, y, 0.64, 0.48, 0.13, 0.20)
        streaks = 0.5 + 0.5 * np.sin(2 * np.pi * 11 * (x + 0.6 * np.abs(y - 0.48)))
        both = self.lungs["left"][chosen] + self.lungs["right"][chosen]
        haze = (0.045 + 0.030 * severity) * haze * (0.45 + 0.9 * streaks) * both
        self.picture[chosen] += haze

    def _nodule(self, index: int, side: str) -> None:
        chosen, severity = self._with(index)
        if not chosen.size:
            return
        cx = 0.72 if side == "left" else 0.28
        away = ((self.rng.random((2, chosen.size, 1, 1)) - 0.5) * 2).astype(np.float32)
        dx = self.x[chosen] - cx - 0.08 * away[0]
        dy = self.y[chosen] - 0.44 - 0.18 * away[1]
        disc = _soft(np.hypot(dx, dy) - (0.016 + 0.011 * severity), 0.015)
        self.picture[chosen] += 0.30 * disc

    def _line(self, index: int) -> None:
        chosen, _ = self._with(index)
        if not chosen.size:
            return
        y = self.y[chosen]
        path = 0.40 + 0.10 * y + 0.03 * np.sin(5 * y + 3 * self._jitter(1.0, chosen.size))
        inside = _soft(y - 0.52, 0.02)
        self.picture[chosen] += 0.32 * inside * np.exp(-(((self.x[chosen] - path) / 0.012) ** 2))

    def _exposed(self, site: Site) -> np.ndarray:
        """Returns the pictures with the contrast and noise of a site's machine, uint8."""
        rng = self.rng
        picture = 0.5 + site.contrast * (self.picture - 0.5)
        picture = picture + np.float32(0.045) * rng.standard_normal(picture.shape, dtype=np.float32)
        if site.noise:
            picture = picture + np.float32(site.noise) * rng.standard_normal(
                picture.shape, dtype=np.float32
            )
        return (255 * np.clip(picture, 0, 1)).round().astype(np.uint8)


def to_image(grey: np.ndarray) -> Image.Image:
    """Returns one picture, uint8 [SIZE, SIZE], as the RGB image that a processor expects."""
    return Image.fromarray(grey).convert("RGB")
