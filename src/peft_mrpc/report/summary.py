"""The summary of a report: which Run is best, by how much, how significantly, at what cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_mrpc.formatting import (
    format_bytes,
    format_count,
    format_duration,
    format_p_value,
    format_rate,
    format_share,
)
from peft_mrpc.report.analysis import find_difference, is_significant
from peft_mrpc.report.comparison import Comparison

Row = Mapping[str, Any]
# Optional for a new method: without an entry, the report does not explain it.
METHOD_DESCRIPTIONS = {
    "full": "all parameters are trained",
    "layer_freeze": "the last layers and a new head are trained; the other layers are frozen",
    "linear_probe": "only a new head is trained",
    "bitfit": "the biases and a new head are trained",
    "ln_tuning": "the layer norms and a new head are trained",
    "lora": "low-rank updates of the weights and a new head are trained",
    "dora": "low-rank updates and magnitudes of the weights and a new head are trained",
    "vera": "scaling vectors of fixed random matrices and a new head are trained",
    "oft": "orthogonal transformations of the weights and a new head are trained",
    "ia3": "vectors that scale activations and a new head are trained",
    "prompt_tuning": "virtual tokens in the input and a new head are trained",
    "p_tuning": "a network that generates virtual tokens and a new head are trained",
    "prefix_tuning": "virtual tokens in every layer and a new head are trained",
    "hard_prompt": "a language model classifies with a prompt; nothing is trained",
}


@dataclass(frozen=True)
class SummaryTile:
    """One key value: its name, the value as text, and an explanation."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Summary:
    """The first screen of a report.

    Attributes:
        headline: The best Run, in one sentence.
        text: Baseline, significance, costs and warnings, in a few sentences.
        tiles: Key values.
    """

    headline: str
    text: str
    tiles: tuple[SummaryTile, ...]

    def __str__(self) -> str:
        return f"{self.headline} {self.text}"


def build_summary(comparison: Comparison, analysis: Mapping[str, Any]) -> Summary:
    """Summarize a comparison without claims beyond the measurements."""
    baseline, *rows = comparison.rows()
    ranked = sorted(rows, key=lambda row: -row["accuracy"])
    best, count = ranked[0], len(comparison.references)
    low, high = next(
        entry["accuracy"] for entry in analysis["intervals"] if entry["name"] == best["name"]
    )
    gain = 100 * (best["accuracy"] - baseline["accuracy"])
    majority = baseline["name"].removeprefix("always ")
    sentences = [
        f"Always predicting {majority} has an accuracy of {baseline['accuracy']:.1%}"
        f"{_baseline_note(gain, low, baseline)}."
    ]
    tiles = [
        SummaryTile(
            "Most accurate" if len(ranked) > 1 else "Accuracy",
            f"{best['accuracy']:.1%}",
            f"{best['name']}; 95% interval {low:.1%} to {high:.1%}",
        )
    ]
    if len(ranked) > 1:
        tile, sentence = _lead(best, ranked[1], analysis)
        tiles.append(tile)
        sentences += [sentence, _seed_note(ranked[:2])]
    tiles += [
        SummaryTile(
            "Over the baseline", f"{gain:+.1f} points", f"over always predicting {majority}"
        ),
        SummaryTile("Cost", _training_cost(best), _running_cost(best)),
    ]
    if cheaper := _find_cheaper(ranked, analysis):
        accuracy = f"{cheaper['accuracy']:.1%}"
        sentences.append(
            f"{cheaper['name']} costs less ({_training_cost(cheaper)}, compared with "
            f"{_training_cost(best)}), and its accuracy of {accuracy} is not significantly lower."
        )
        note = f"{cheaper['name']}: {_training_cost(cheaper)}"
        tiles.append(SummaryTile("Cheaper, not significantly worse", accuracy, note))
    sentences += [_training_set_note(comparison), *_leakage_notes(comparison)]
    return Summary(_headline(ranked, count), " ".join(filter(None, sentences)), tuple(tiles))


def method_descriptions(comparison: Comparison) -> dict[str, str]:
    """What each method does, by name; unknown methods are omitted."""
    methods = (run.record["method"] for run in comparison.runs)
    return {name: METHOD_DESCRIPTIONS[name] for name in methods if name in METHOD_DESCRIPTIONS}


def seeds_note(comparison: Comparison) -> str:
    """Explanation of ±, if a Run has several seeds."""
    if not any(run.members for run in comparison.runs):
        return ""
    return (
        "± is the standard deviation over training seeds, beside the mean. Confusion matrices, "
        "curves and examples show the first seed."
    )


def difference_notes(analysis: Mapping[str, Any]) -> dict[str, str]:
    """Explanation of the columns of the table of differences."""
    margin = f"{100 * analysis['margin']:g} points"
    num_resamples = f"{analysis['num_resamples']:,}"
    return {
        "accuracy, points": "difference in accuracy on the same examples, in percentage points",
        "95% interval": f"of the difference, by paired bootstrap with {num_resamples} resamples",
        "significant": "adjusted p value below 0.05",
        "p (Holm)": "p value with Holm's adjustment for the number of differences in this table",
        "p": "p value of the exact McNemar test of equal accuracy; for several seeds, of the "
        "paired permutation test",
        "ROC-AUC, points": "difference in ROC-AUC with its interval by the same bootstrap",
        "correct alone": "number of examples that only the more accurate Run predicts correctly, "
        "and number that only the other does (first seeds)",
        f"within {margin}": "whether two one-sided tests (TOST) show that the accuracies differ by "
        f"less than {margin}, with their p value",
    }


def _headline(ranked: Sequence[Row], count: int) -> str:
    accuracy = f"{ranked[0]['accuracy']:.1%}"
    if len(ranked) == 1:
        return f"{ranked[0]['name']} has an accuracy of {accuracy} on {count:,} examples."
    top = [row for row in ranked if round(100 * (ranked[0]["accuracy"] - row["accuracy"]), 1) == 0]
    names = " and ".join(row["name"] for row in top)
    if len(top) == len(ranked):
        return f"{names} are equally accurate: {accuracy} on {count:,} examples."
    verb = "is" if len(top) == 1 else "are"
    return (
        f"{names} {verb} the most accurate of {len(ranked)} strategies: {accuracy} on "
        f"{count:,} examples."
    )


def _baseline_note(gain: float, low: float, baseline: Row) -> str:
    """A note if the best Run is not clearly better than the majority baseline."""
    if round(gain, 1) <= 0:
        return "; no Run is better"
    return "; the 95% interval of the best Run includes it" if low <= baseline["accuracy"] else ""


def _lead(best: Row, second: Row, analysis: Mapping[str, Any]) -> tuple[SummaryTile, str]:
    """The difference of the two most accurate Runs, and its significance."""
    points = 100 * (best["accuracy"] - second["accuracy"])
    if round(points, 1) == 0:
        return SummaryTile("Lead", "none", f"over {second['name']}"), ""
    difference = find_difference(best["name"], second["name"], analysis)
    number = len(analysis["differences"])
    p_value = format_p_value(difference["holm"])
    p_value = f"p {p_value}" if p_value.startswith("<") else f"p = {p_value}"
    p_value += f", adjusted for {number} comparisons" if number > 1 else ""
    significant = "significant" if is_significant(difference) else "not significant"
    low, high = (100 * end for end in difference["interval"])
    sentence = (
        f"{best['name']} leads {second['name']} by {points:.1f} points, with a 95% interval of "
        f"{low:+.1f} to {high:+.1f}; the difference is {significant} ({p_value})."
    )
    tile = SummaryTile("Lead", f"{points:+.1f} points", f"over {second['name']}; {significant}")
    return tile, sentence


def _training_cost(row: Row) -> str:
    if not row["trained_parameters"]:
        return "no training"
    seconds = row["train_seconds"]
    return "training" if seconds is None else f"{format_duration(seconds)} of training"


def _running_cost(row: Row) -> str:
    """Trained parameters, speed and memory."""
    parts = [
        f"{format_rate(row['score_pairs_per_second'])} examples/s",
        f"{format_bytes(row['peak_memory_bytes'])} of memory",
    ]
    if row["trained_parameters"]:
        count, share = format_count(row["trained_parameters"]), format_share(row["trained_share"])
        parts.insert(0, f"{count} trained parameters, {share} of the model")
    return "; ".join(parts)


def _find_cheaper(ranked: Sequence[Row], analysis: Mapping[str, Any]) -> Row | None:
    """The Run with the shortest training that is not significantly worse, if it halves the time."""
    best = ranked[0]
    candidates = [
        row
        for row in ranked[1:]
        if not is_significant(find_difference(best["name"], row["name"], analysis))
        and (row["train_seconds"] or 0) < 0.5 * (best["train_seconds"] or 0)
    ]
    return min(candidates, key=lambda row: row["train_seconds"] or 0, default=None)


def _seed_note(rows: Sequence[Row]) -> str:
    """A note if Runs were trained with one seed."""
    names = [row["name"] for row in rows if row["trained_parameters"] and "std" not in row]
    if not names:
        return ""
    verb = "was" if len(names) == 1 else "were"
    return f"{' and '.join(names)} {verb} trained with one seed; another seed may change the order."


def _training_set_note(comparison: Comparison) -> str:
    """A note if the Runs were trained on different examples."""
    names_by_size: dict[int, list[str]] = {}
    fingerprints = set()
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        train = run.record["data"]["splits"].get("train")
        if "trainable" in run.record and train:
            names_by_size.setdefault(train["num_examples"], []).append(name)
            fingerprints.add(train["fingerprint"])
    if len(fingerprints) < 2:
        return ""
    if len(names_by_size) == 1:
        return "The Runs were trained on equally many, but different examples."
    sizes = [f"{' and '.join(names)} on {size:,}" for size, names in sorted(names_by_size.items())]
    return f"The Runs were trained on different examples: {', '.join(sizes)}."


def _leakage_notes(comparison: Comparison) -> list[str]:
    """Warnings about evaluation examples that are training examples too."""
    return [
        f"{name}: {count:,} of these examples also occur in its training set; its metrics "
        "overestimate performance on unseen examples."
        for name, run in zip(comparison.names, comparison.runs, strict=True)
        if "trainable" in run.record
        and (count := run.record["data"]["splits"][comparison.split].get("num_leaked"))
    ]
