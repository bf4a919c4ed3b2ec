import pytest

from peft_mrpc.formatting import (
    format_count,
    format_duration,
    format_p_value,
    format_rate,
    format_share,
    mask_credentials,
    shorten,
)


def test_quantities_have_few_digits() -> None:
    assert [format_count(n) for n in (0.5, 42, 380_675, 22_697_219, 8.03e9)] == [
        *("0.5", "42", "381 k", "22.7 M", "8.03 G")
    ]
    assert [format_share(s) for s in (0.0166, 0.1622, 1.0)] == ["1.66%", "16%", "100%"]
    assert [format_duration(s) for s in (3.2, 89, 90, 5399, 7370)] == [
        *("3 s", "89 s", "2 min", "90 min", "2.0 h")
    ]
    assert [format_p_value(p) for p in (0.0004, 0.02, 1)] == ["< 0.001", "0.020", "1.000"]


def test_a_low_rate_keeps_two_digits() -> None:
    assert [format_rate(n) for n in (0.542, 6.13, 9.96, 62.4, 12_345)] == [
        *("0.54", "6.1", "10", "62", "12,345")
    ]


@pytest.mark.parametrize("max_length", [10, 11, 34])
def test_a_long_name_keeps_both_ends(max_length: int) -> None:
    short = shorten("layer_freeze · A-Very-Long-Model-Name-v0.1", max_length)
    assert len(short) == max_length and short.startswith("layer_") and short.endswith("0.1")
    assert shorten("lora", max_length) == "lora"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("http://host/v1?key=secret", "http://host/v1?***"),
        ("postgresql://me:se@cret@host/db", "postgresql://***@host/db"),
        ("postgresql://host/db?password=secret", "postgresql://host/db?***"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
    ],
)
def test_credentials_of_a_url_are_masked(url: str, shown: str) -> None:
    assert mask_credentials(url) == shown
