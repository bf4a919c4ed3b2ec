"""What a comparison found, in words: what wins, by how much, how sure, at what cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_mrpc.formatting import METHOD_WORDS, duration, p_text, rate_text, share_text, short_count
from peft_mrpc.report.analysis import is_sure
from peft_mrpc.report.comparison import Comparison


@dataclass(frozen=True)
class Card:
    """One fact of the first screen: what it is, the figure, what is to be said of it."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Verdict:
    """The first screen of a report.

    Attributes:
        headline: What wins, in one sentence.
        text: How sure that is, in two or three.
        cards: The figures behind it.
    """

    headline: str
    text: str
    cards: tuple[Card, ...]

    def __str__(self) -> str:
        return f"{self.headline} {self.text}"


def build_verdict(comparison: Comparison, evidence: Mapping[str, Any]) -> Verdict:
    """Say what was found, and claim no more than was measured."""
    guess, *rows = comparison.rows()
    ranked = sorted(rows, key=lambda row: -row["accuracy"])
    best = ranked[0]
    count = len(comparison.predictions[0].idx)
    low, high = _interval(best["name"], evidence)
    gain = 100 * (best["accuracy"] - guess["accuracy"])
    headline = f"{_winners(ranked)} right on {best['accuracy']:.1%} of {count:,} sentence pairs."
    labels = " or ".join(f"“{name.replace('_', ' ')}”" for name in comparison.label_names)
    said = [
        f"The question of each pair: {labels}?",
        f"A{_guessing(guess)[1:]} would be right on {guess['accuracy']:.1%}"
        f"{_beaten(gain, low, guess)}.",
    ]
    if best["method"] in METHOD_WORDS:
        said.append(f"{best['method']}: {METHOD_WORDS[best['method']]}.")
    reach = f"{best['name']}; {low:.1%} to {high:.1%} on other rows (95%)"
    kind = "Most accurate" if len(ranked) > 1 else "Accuracy"
    cards = [Card(kind, f"{best['accuracy']:.1%}", reach)]
    if len(ranked) > 1:
        lead, sentence = _lead(best, ranked[1], evidence, count)
        said += [sentence] if sentence else []
        once = [row["name"] for row in ranked[:2] if row["trained_parameters"] and "std" not in row]
        if once:
            said.append(f"Trained once: {' and '.join(once)}; another seed may change the order.")
        cards.append(lead)
    cards += [
        Card("Over guessing", f"{gain:+.1f} points", f"over {_guessing(guess)}"),
        Card("What it takes", _training(best), _running(best)),
    ]
    if cheaper := _cheaper(ranked, evidence):
        name, reached = cheaper["name"], f"{cheaper['accuracy']:.1%}"
        less = f"{_training(cheaper)} against {_training(best)}"
        said.append(f"{name} takes less ({less}) and is not shown to be worse ({reached}).")
        cards.append(Card("Cheaper, not shown worse", reached, f"{name}: {_training(cheaper)}"))
    said += _trained_on(comparison) + _learned(comparison)
    return Verdict(headline, " ".join(said), tuple(cards))


def _trained_on(comparison: Comparison) -> list[str]:
    """Whether what trained did so on the same pairs: a lead may be theirs."""
    found: dict[int, list[str]] = {}
    fingerprints = set()
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        train = run.record["data"]["splits"].get("train")
        if "trainable" in run.record and train:
            found.setdefault(train["num_examples"], []).append(name)
            fingerprints.add(train["fingerprint"])
    if len(fingerprints) < 2:
        return []
    if len(found) == 1:
        return ["They were trained on as many pairs, but not on the same."]
    counts = [f"{' and '.join(found[count])} on {count:,}" for count in sorted(found)]
    return [f"They were not trained on the same pairs: {', '.join(counts)}."]


def _learned(comparison: Comparison) -> list[str]:
    """Of whose figures a part was learned by heart: of pairs that stand in its training set too."""
    found = {
        name: run.record["data"]["splits"][comparison.split].get("num_leaked")
        for name, run in zip(comparison.names, comparison.runs, strict=True)
        if "trainable" in run.record
    }
    return [
        f"{name} was trained on {count:,} of these pairs: its figures say the less of others."
        for name, count in found.items()
        if count
    ]


def _winners(ranked: Sequence[Mapping[str, Any]]) -> str:
    """Who is the most accurate, up to the verb that says how accurate."""
    if len(ranked) == 1:
        return f"{ranked[0]['name']} is"
    top = [row for row in ranked if round(100 * (ranked[0]["accuracy"] - row["accuracy"]), 1) == 0]
    if len(top) == 1:
        return f"{top[0]['name']} is the most accurate of {len(ranked)} strategies:"
    names = " and ".join(row["name"] for row in top)
    if len(top) == len(ranked):
        return f"{names} are as accurate as each other:"
    return f"{names} are the most accurate of {len(ranked)} strategies:"


def _beaten(gain: float, low: float, guess: Mapping[str, Any]) -> str:
    """What is to be said of the best where it is not surely better than guessing."""
    if round(gain, 1) <= 0:
        return "; nothing here does better"
    return "; the gain over that may be chance" if low <= guess["accuracy"] else ""


def _guessing(guess: Mapping[str, Any]) -> str:
    return f"always answering {guess['name'].removeprefix('always ')}"


def _interval(name: str, evidence: Mapping[str, Any]) -> Sequence[float]:
    found = next(one["accuracy"] for one in evidence["intervals"] if one["name"] == name)
    return list(found)


def find_difference(one: str, other: str, evidence: Mapping[str, Any]) -> Mapping[str, Any]:
    """The difference of two Runs, whichever stands first in it."""
    found: Mapping[str, Any] = next(
        each for each in evidence["differences"] if {each["first"], each["second"]} == {one, other}
    )
    return found


def _lead(
    best: Mapping[str, Any], second: Mapping[str, Any], evidence: Mapping[str, Any], count: int
) -> tuple[Card, str]:
    """Whether the lead would be there on other rows."""
    points = 100 * (best["accuracy"] - second["accuracy"])
    if round(points, 1) == 0:
        return Card("Lead", "none", f"over {second['name']}"), ""
    difference = find_difference(best["name"], second["name"], evidence)
    number = len(evidence["differences"])
    p_value = p_text(difference["holm"])
    p_said = f"p {p_value}" if p_value.startswith("<") else f"p = {p_value}"
    p_said += f", {number} comparisons allowed for" if number > 1 else ""
    if is_sure(difference):
        sureness, short = f"which is more than chance would give ({p_said})", "more than chance"
    else:
        least = 100 * difference["detectable"]
        sureness = (
            f"which may be chance: {count:,} pairs can show a lead of {least:.1f} points ({p_said})"
        )
        short = "may be chance"
    sentence = f"{best['name']} leads {second['name']} by {points:.1f} points, {sureness}."
    return Card("Lead", f"{points:+.1f} points", f"over {second['name']}; {short}"), sentence


def _training(row: Mapping[str, Any]) -> str:
    """How long it was trained."""
    if not row["trained_parameters"]:
        return "no training"
    seconds = row["train_seconds"]
    return "training" if seconds is None else f"{duration(seconds)} of training"


def _running(row: Mapping[str, Any]) -> str:
    """What was trained, and what it runs at."""
    speed = f"{rate_text(row['score_pairs_per_second'])} pairs/s"
    memory = f"{row['peak_memory_bytes'] / 1e9:.2f} GB of memory"
    if not row["trained_parameters"]:
        return f"{speed}, {memory}"
    count = f"{short_count(row['trained_parameters'])} parameters"
    return f"{count}, {share_text(row['trained_share'])} of the model; then {speed}; {memory}"


def _cheaper(
    ranked: Sequence[Mapping[str, Any]], evidence: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The cheapest to train that is not surely worse than the best, if it halves the cost."""
    best = ranked[0]
    equals = [
        row
        for row in ranked[1:]
        if not is_sure(find_difference(best["name"], row["name"], evidence))
        and (row["train_seconds"] or 0) < 0.5 * (best["train_seconds"] or 0)
    ]
    return min(equals, key=lambda row: row["train_seconds"] or 0, default=None)
