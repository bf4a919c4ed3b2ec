"""Numbers and names as a person says them."""


def short_count(number: float) -> str:
    """A count in few digits: 380,675 is 381 k."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def format_bytes(size: float) -> str:
    """A size with a decimal unit: 123 MB, 1.2 GB."""
    for factor, unit in ((1e3, "KB"), (1e6, "MB"), (1e9, "GB")):
        if size < 999.5 * factor:  # three digits, not 1e+03
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e12:.3g} TB"


def share_text(share: float) -> str:
    """A share in percent, in more digits where it is small."""
    return f"{share:.2%}" if share < 0.1 else f"{share:.0%}"


def shorten(text: str, most: int) -> str:
    """A name in at most so many characters, its middle left out: its ends tell it apart."""
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return f"{text[:head]}…{text[head + 1 - most :]}"


def duration(seconds: float) -> str:
    """A time in its usual unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def p_text(value: float) -> str:
    """A probability to read."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def rate_text(per_second: float) -> str:
    """A speed, with a decimal where it is slow."""
    return f"{per_second:,.0f}" if per_second >= 9.95 else f"{per_second:.2g}"
