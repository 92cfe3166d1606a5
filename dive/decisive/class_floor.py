"""A floor on each finding class's share of the weight of decisive tokens."""

from collections.abc import Mapping

from dive.errors import DiveError


def raised(counts: Mapping[str, float], floor: float, weight: float) -> dict[str, float]:
    """The weight of a decisive token of each class, at least `weight`.

    The classes' total weights, count times weight, are as they would be with `weight` alone, but
    for the rarest, which are raised to the share `floor` of the new total; those that then fall
    below it are raised with them.

    Args:
        counts: decisive tokens of each class in the training reports. Classes without one get none.

    Raises:
        DiveError: so many classes cannot all have that share, or there is no class.
    """
    present = {name: count for name, count in counts.items() if count > 0}
    if not present:
        raise DiveError(
            f"class_floor is {floor}, and the training reports have no decisive token: want "
            "reports that state a finding, or class_floor 0"
        )
    if floor * len(present) > 1:
        raise DiveError(
            f"class_floor is {floor}, and the decisive tokens of the training reports are of "
            f"{len(present)} finding classes ({', '.join(sorted(present))}): want at most "
            f"1/{len(present)}, so that every class can have its share"
        )
    rarest = sorted(present, key=lambda name: (present[name], name))
    kept = sum(present.values()) * weight
    total, low = kept, 0
    # from the rarest up, as long as the next one lies below its share of what the total then is
    while low < len(rarest) - 1 and present[rarest[low]] * weight < floor * total:
        kept -= present[rarest[low]] * weight
        low += 1
        total = kept / (1 - floor * low)
    return {
        name: floor * total / present[name] if index < low else weight
        for index, name in enumerate(rarest)
    }
