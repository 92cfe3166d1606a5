"""The visible contrast of a film, by measures that ignore single bright pixels and markers."""

import numpy as np

FLAT = 2  # grey levels of 255 that nobody can distinguish
# A chest film has tens of grey levels over at least a tenth of its pixels, however much black
# surrounds it, which is far above these limits.
EDGES = 0.02  # share of the darkest and of the brightest pixels to ignore: markers, hot pixels
LOW_CONTRAST = 20  # grey levels of 255 of the others, below which a film looks uniform
LEAST_LEVELS = 24  # least grey levels shown of a file with several times as many values
LEAST_GREYS = 0.05  # least share of pixels that are neither black nor white
_RARE = 1e-4  # share of the pixels below which a grey level does not count


def spread(histogram: np.ndarray) -> tuple[int, int]:
    """(darkest, brightest) grey level of 256 without `EDGES` of the pixels at either end."""
    below = np.cumsum(histogram)
    cut = EDGES * below[-1]
    low = int(np.searchsorted(below, cut, side="right"))
    high = int(np.searchsorted(below, below[-1] - cut))
    return low, max(low, high)


def low_contrast(histograms: np.ndarray) -> str:
    """What is wrong with the contrast of an image, as text; "" if nothing is.

    histograms: int [C, 256], one per channel; the channel with the most contrast counts.
    """
    used = [np.flatnonzero(one) for one in histograms]
    if max(int(one[-1] - one[0]) for one in used) <= FLAT:
        return "has no contrast: it is one colour all over"
    low, high = max((spread(one) for one in histograms), key=lambda ends: ends[1] - ends[0])
    share = f"{100 * (1 - 2 * EDGES):.0f}% of its pixels"
    if high - low <= FLAT:
        return f"has no contrast: {share} are one colour"
    if high - low <= LOW_CONTRAST:
        return f"has hardly any contrast: {share} lie between {low} and {high} of 255"
    return ""


def lost_greys(counts: np.ndarray, held: int) -> str:
    """What a window or table left of the values of a film, as text; "" if that is enough.

    Args:
        counts: int [256], number of pixels per grey level shown.
        held: number of distinct values in the film, of about 65,536 of its pixels.
    """
    whole = int(counts.sum())
    levels = int((counts >= max(1.0, _RARE * whole)).sum())
    greys = float(counts[1:255].sum() / whole)
    if held > 2 * LEAST_LEVELS and greys < LEAST_GREYS:
        return f"{100 * (1 - greys):.1f}% of the pixels black or white"
    if held > max(2 * LEAST_LEVELS, 4 * levels) and levels < LEAST_LEVELS:
        return f"{levels} grey levels of {held:,} values or more"
    return ""
