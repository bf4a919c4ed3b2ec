"""Numbers and names as text: one formatter for each kind of quantity."""

import re

# C0 and C1 codes, DEL, the marks that reorder text, and lone surrogates, which UTF-8 lacks.
CONTROL_CHARACTER = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def format_count(number: float) -> str:
    """A count with three digits: 380,675 is `381 k`."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def format_bytes(size: float) -> str:
    """A size with three digits and a decimal unit: `123 MB`, `1.2 GB`."""
    for factor, unit in ((1e3, "KB"), (1e6, "MB"), (1e9, "GB")):
        if size < 999.5 * factor:  # three digits, not 1e+03
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e12:.3g} TB"


def format_share(share: float) -> str:
    """A share in percent, with two decimals below 10 %."""
    return f"{share:.2%}" if share < 0.1 else f"{share:.0%}"


def format_duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_p_value(value: float) -> str:
    """A p value with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_rate(per_second: float) -> str:
    """A rate per second, with two digits if it is low."""
    return f"{per_second:,.0f}" if per_second >= 9.95 else f"{per_second:.2g}"


def format_mean_std(mean: float | None, std: float | None = None) -> str:
    """A metric with three decimals, and its standard deviation over seeds: `0.912 ± 0.004`."""
    if mean is None:
        return "-"
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def escape_control(text: str) -> str:
    """A text whose control characters, except line breaks and tabs, are written as escapes.

    A file or a server could otherwise move the cursor, recolour or clear a terminal, and reorder
    its lines.
    """
    return CONTROL_CHARACTER.sub(lambda match: ascii(match[0])[1:-1], text)


def mask_credentials(url: str) -> str:
    """A URL without user name, password and query, which may hold a key."""
    return re.sub(
        r"\?.*", "?***", re.sub(r"//.*@", "//***@", url, flags=re.DOTALL), flags=re.DOTALL
    )


def shorten(text: str, max_length: int) -> str:
    """A text in at most `max_length` characters, cut in its middle."""
    if len(text) <= max_length:
        return text
    head = (max_length - 1) * 2 // 3
    return f"{text[:head]}…{text[head + 1 - max_length :]}"
