"""How much of a film is seen: measures that one bright pixel, or a marker, does not switch off."""

import numpy as np

FLAT = 2  # grey levels of 255 that no reader can tell apart
# A chest film has tens of grey levels over at least a tenth of its pixels, whatever black surrounds
# it; what is left of these measures by 2 pixels of 100 at either end is still far below that.
EDGES = 0.02  # share of the pixels, at either end, that do not count: markers, hot pixels
LOW_CONTRAST = 20  # grey levels of 255 between those ends: below, a film is one shade to the eye
LEAST_LEVELS = 24  # shown of a file that has several times as many values
LEAST_GREYS = 0.05  # share of the pixels that are neither black nor white
_RARE = 1e-4  # share of the pixels below which a grey level does not count as shown


def spread(histogram: np.ndarray) -> tuple[int, int]:
    """(darkest, brightest) of 256 grey levels between which all but `EDGES` of the pixels lie."""
    below = np.cumsum(histogram)
    cut = EDGES * below[-1]
    low = int(np.searchsorted(below, cut, side="right"))
    high = int(np.searchsorted(below, below[-1] - cut))
    return low, max(low, high)


def low_contrast(histograms: np.ndarray) -> str:
    """What is wrong with an image of one or several channels, int [C, 256]; "" where nothing is.

    The channel with the most contrast counts. A whole image of one colour is said to be that.
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
    """What a window or table left of the many values of a film, in words; "" where enough is.

    Args:
        counts: int [256], how many pixels have each grey level that was made of them.
        held: how many values the film holds, of some 65,536 of its pixels.
    """
    whole = int(counts.sum())
    levels = int((counts >= max(1.0, _RARE * whole)).sum())
    greys = float(counts[1:255].sum() / whole)
    if held > 2 * LEAST_LEVELS and greys < LEAST_GREYS:
        return f"{100 * (1 - greys):.1f}% of the pixels black or white"
    if held > max(2 * LEAST_LEVELS, 4 * levels) and levels < LEAST_LEVELS:
        return f"{levels} grey levels of {held:,} values or more"
    return ""
