"""What the units of quantities measure, and times of day."""

import math
import re
from collections.abc import Sequence

from .quantities import BEHIND, Quantity, find_whole, is_close


Unit = tuple[str, float]  # what it measures, and how many of its base unit it is

MINUTES_OF_HALF_A_DAY = 720

LENGTHS = {
    **{"km": 1000.0, "m": 1.0, "dm": 0.1, "cm": 0.01, "mm": 0.001, "μm": 1e-6, "µm": 1e-6, "nm": 1e-9},
    **{"千米": 1000.0, "公里": 1000.0, "米": 1.0, "分米": 0.1, "厘米": 0.01, "毫米": 0.001},
    **{"in": 0.0254, "inch": 0.0254, "inche": 0.0254, "ft": 0.3048, "foot": 0.3048, "feet": 0.3048},
    **{"yd": 0.9144, "yard": 0.9144, "mi": 1609.344, "mile": 1609.344},
}
PREFIXES = {"kilo": 1000.0, "deci": 0.1, "centi": 0.01, "milli": 0.001, "": 1.0}
POWERS = {"square": 2, "sq": 2, "平方": 2, "cubic": 3, "cu": 3, "立方": 3}
# Name without the "s" of the plural or the point at its end -> what it measures, and how many of its base unit it is
OTHERS = {
    name: (measure, size)
    for measure, sizes in {
        "angle": {"° °C ℃ degree deg 度": 1.0, "′": 1 / 60, "″": 1 / 3600, "radian rad": 180 / math.pi},
        "fahrenheit": {"°F ℉": 1.0},
        "time": {"millisecond ms": 0.001, "second sec s 秒": 1, "minute min 分钟": 60, "hour hr h 小时": 3600}
        | {"day 天": 86400, "week": 604800},
        "months": {"month": 1.0, "year": 12.0},
        "morning": {"am a.m AM A.M": 1.0},
        "afternoon": {"pm p.m PM P.M": 1.0},
        "mass": {"gram g 克": 0.001, "kilogram kg 千克": 1.0, "mg 毫克": 1e-6, "ton tonne 吨": 1000.0}
        | {"pound lb": 0.45359237, "ounce oz": 0.028349523125},
        "length 2": {"hectare ha 公顷": 1e4, "acre": 4046.8564224},
        "length 3": {"liter litre l L 升": 1e-3, "dl": 1e-4, "cl": 1e-5, "ml mL 毫升": 1e-6},
        "speed": {"mph": 0.44704, "kph": 1 / 3.6},
        "dollars": {"dollar": 1.0, "cent": 0.01},
        "yuan": {"元": 1.0, "角": 0.1},
        "percent": {"% percent": 1.0, "‰": 0.1},
    }.items()
    for names, size in sizes.items()
    for name in names.split()
}
JOINT = re.compile(r"\s*(?:,|and\b|零|又)?\s*", re.IGNORECASE)  # of the parts of "1 hour and 30 minutes"
CLOCK = re.compile(r"(\d{1,2})(?:[:：.](\d\d))?\s?(?:([ap])\.?\s?m\b\.?)?", re.IGNORECASE)


def read_measured(text: str) -> tuple[float, Unit | None] | None:
    """
    Returns the value of a text that is one quantity, behind a name or not, and its unit; of "1 h 30 min" the sum, in
    the first unit.
    """
    text, found = find_whole(text)
    if not found or find_parts(text, found, found[-1]) != found:
        return None
    units = [unit_behind(text, each) for each in found]
    if len(found) == 1:
        return found[0].value, units[0]
    total = sum(each.value * unit[1] for each, unit in zip(found, units, strict=True))
    return total / units[0][1], units[0]


def find_parts(text: str, quantities: Sequence[Quantity], last: Quantity) -> list[Quantity]:
    """Returns the quantities of which one is the last part, itself among them: those of "1 h 30 min" or "30°15′"."""
    parts = [last]
    for each in reversed([each for each in quantities if each.end <= last.start]):
        unit, smaller = unit_behind(text, each), unit_behind(text, parts[0])
        if unit is None or smaller is None or unit[0] != smaller[0] or unit[1] <= smaller[1]:
            break
        if not JOINT.fullmatch(text, BEHIND.match(text, each.end).end(), parts[0].start):
            break
        parts.insert(0, each)
    return parts


def unit_behind(text: str, quantity: Quantity) -> Unit | None:
    """
    Returns what the unit behind a quantity of a text measures, and how many of its base unit it is; `None` without a
    unit of which that is known.
    """
    unit = BEHIND.match(text, quantity.end)
    if unit is None:
        return None
    above, _, below = " ".join(unit.group().split()).partition("/")
    first = _measure(above)
    if not below or first is None:
        return first
    second = _measure(below)
    if second is None:
        return None
    measure = "speed" if (first[0], second[0]) == ("length 1", "time") else f"{first[0]} per {second[0]}"
    return measure, first[1] / second[1]


def in_unit(value: float | None, unit: Unit | None, other: Unit | None) -> float | None:
    """Returns a value in another unit, `None` if that measures something else; without a unit it may have any."""
    if value is None or unit is None or other is None:
        return value
    return value * unit[1] / other[1] if unit[0] == other[0] else None


def same_measure(values: tuple[float, float], units: tuple[Unit | None, ...]) -> bool:
    """
    Returns whether two quantities are the same.

    One without a unit may have that of the other, and be a share or the percentage: "50%" is "0.5" and "50".
    """
    if None not in units:
        # in the first unit: in metres all nanometres are close
        second = in_unit(values[1], units[1], units[0])
        return second is not None and is_close(values[0], second)
    shares = [
        value * unit[1] / 100 if unit and unit[0] == "percent" else value
        for value, unit in zip(values, units, strict=True)
    ]
    return is_close(*values) or is_close(*shares)


def same_time(first: str, second: str) -> bool | None:
    """
    Returns whether two texts are the same time of day, `None` where they are no times, or neither says which half.

    "3:15 pm" is "15:15" and "3:15 p.m.", not "3:15 am"; without a half of the day "3:15" may be either.
    """
    times = [CLOCK.fullmatch(text.strip(" \t\n.。$")) for text in (first, second)]
    if None in times or not any(time[3] for time in times):
        return None
    minutes = [int(time[1]) % (12 if time[3] else 24) * 60 + int(time[2] or 0) for time in times]
    halves = [(time[3] or "").lower() for time in times]
    shifted = [at + MINUTES_OF_HALF_A_DAY * (half == "p") for at, half in zip(minutes, halves, strict=True)]
    if "" in halves and minutes[halves.index("")] < 13 * 60:
        return (shifted[0] - shifted[1]) % MINUTES_OF_HALF_A_DAY == 0
    return shifted[0] == shifted[1]


def _measure(name: str) -> tuple[str, float] | None:
    match = re.fullmatch(r"(?:(square|sq|cubic|cu)\.? )?(平方|立方)?(.+?)(?:\^?([23]))?", name)
    if match is None:
        return None
    word, singular = match[3], match[3].removesuffix("s")
    if other := OTHERS.get(word) or OTHERS.get(singular):
        return other
    metres = re.fullmatch(r"(kilo|centi|milli|deci|)met(?:er|re)s?", word)
    size = PREFIXES[metres[1]] if metres else LENGTHS.get(word) or LENGTHS.get(singular)
    if size is None:
        return None
    power = int(match[4] or POWERS.get(match[1] or match[2], 1))
    return f"length {power}", size**power
