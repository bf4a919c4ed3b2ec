"""The results of `hard_prompt.py` beside their goals."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench import Row, markdown, speed_row
from matplotlib.figure import Figure

# Pairs a second over the harness's, by demonstrations.
SPEED_GOALS = {"0": 1.5, "8": 6.0, "16": 10.0}
ACCURACY_GOAL_AT_BEST = 0.73
# The templates whose ensemble is to reach a goal by batch calibration: the noisy channel's.
ENSEMBLE, SHARES = "channel (", "batch calibration, train's shares"
LABELS = ("not_equivalent", "equivalent")
BLUE, GREY, RED = "#0072B2", "#999999", "#D55E00"


def speed_rows(parts: Mapping[str, Any]) -> list[Row]:
    """Pairs a second of ours and of the harness."""
    return [
        speed_row(
            f"{count} demonstrations against lm-evaluation-harness",
            *(speed["pairs_per_second"], speed["peer_pairs_per_second"], SPEED_GOALS.get(count)),
            num_pairs=speed["num_pairs"],
            peak_memory={"ours": speed["peak_bytes"], "peer": speed["peer_peak_bytes"]},
        )
        for count, speed in parts.get("speed", {}).items()
    ]


def accuracy_rows(parts: Mapping[str, Any]) -> list[Row]:
    """Accuracies that a goal is set for, and what 4-bit weights cost."""
    rows: list[Row] = []
    if templates := parts.get("templates"):
        majority = parts["data"]["majority_accuracy"]
        for on_train, on_dev, calibration in (
            ("train", "none", "uncalibrated"),
            ("train_prior", "prior", SHARES),
        ):
            single = [row for row in templates if on_train in row]
            chosen = max(single, key=lambda row: sum(row[on_train]["f1"]))
            name = f"template selected on train ({chosen['template']}), {calibration}"
            rows.append(accuracy_row(name, chosen[on_dev], majority, 0.30))
        for row in templates:
            if "train" not in row:
                goals = (0.70, 0.45) if row["template"].startswith(ENSEMBLE) else (None, None)
                rows.append(accuracy_row(f"{row['template']}, {SHARES}", row["prior"], *goals))
                goal = ACCURACY_GOAL_AT_BEST if row["template"].startswith("all") else None
                rows.append(accuracy_row(f"{row['template']}, affine fit", row["affine"], goal))
    fits = parts.get("fits", ())
    for row in fits:
        if row["pairs"] == max(fit["pairs"] for fit in fits):
            goal = ACCURACY_GOAL_AT_BEST if row["templates"].startswith("all") else None
            name = f"{row['templates']}, affine fit to {row['pairs']:,} pairs"
            rows.append(accuracy_row(name, row["dev"], goal))
    for row in parts.get("quantization", ()):
        name = f"{row['template']}, {SHARES}, "
        pairs = {key: row[key] for key in ("same_answers", "only_fp32_right", "only_nf4_right")}
        rows.append(accuracy_row(f"{name}fp32", row["fp32"], None))
        rows.append(accuracy_row(f"{name}nf4", row["nf4"], None) | {"against_fp32": pairs})
    return rows


def accuracy_row(name: str, metrics: Row, goal: float | None, f1_goal: float | None = None) -> Row:
    """An accuracy beside its goal; that of F1 is for the label that is rarer."""
    return {
        "name": name,
        "ours": metrics["accuracy"],
        "goal": goal,
        "f1": dict(zip(LABELS, metrics["f1"], strict=True)),
        "f1_goal": None if f1_goal is None else {LABELS[0]: f1_goal},
        "interval": metrics["interval"],
        "roc_auc": metrics["roc_auc"],
        "unit": "accuracy",
    }


def accuracy_table(parts: Mapping[str, Any]) -> str:
    """The accuracies beside their goals, in Markdown."""
    lines = []
    for row in accuracy_rows(parts):
        f1_goal = "-" if row["f1_goal"] is None else f"{row['f1_goal'][LABELS[0]]:.2f}"
        goal = "-" if row["goal"] is None else f"{row['goal']:.3f}"
        f1 = f"{row['f1'][LABELS[0]]:.2f}"
        lines.append([row["name"], f"{row['ours']:.3f}", goal, f1, f1_goal])
    return markdown(["", "accuracy", "goal", "F1 not equivalent", "goal"], lines)


def draw(parts: Mapping[str, Any]) -> Figure:
    """Each template's accuracy with its interval, and the speeds."""
    templates: Sequence[Row] = parts.get("templates", ())
    speeds = speed_rows(parts)
    figure = Figure(figsize=(9, 1.2 + 0.27 * max(len(templates), 2 * len(speeds))))
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for place, row in enumerate(templates):
        for offset, key, color in ((-0.15, "none", GREY), (0.15, "prior", BLUE)):
            low, high = row[key]["interval"]
            left.plot([low, high], [place + offset] * 2, color=color)
            label = {"none": "uncalibrated", "prior": "batch, train's shares"}[key]
            label = "_" if place else label
            left.plot(row[key]["accuracy"], place + offset, "o", color=color, label=label)
    left.set_yticks(range(len(templates)), [row["template"] for row in templates])
    left.set_xlabel("accuracy, 95 % interval")
    if templates:
        left.axvline(parts["data"]["majority_accuracy"], color=RED, linestyle=":", label="majority")
        left.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.6, -0.12), ncols=3)
    for place, row in enumerate(speeds):
        right.barh(place - 0.2, row["ours"], 0.38, color=BLUE, label="_" if place else "ours")
        right.barh(place + 0.2, row["peer"], 0.38, color=GREY, label="_" if place else "harness")
        right.text(row["ours"], place - 0.2, f" {row['ratio']:.1f} x", va="center")
    counts = [row["name"].split(" ")[0] for row in speeds]
    right.set_yticks(range(len(speeds)), counts)
    right.set_ylabel("demonstrations")
    right.set_xlabel("pairs a second")
    right.margins(x=0.2)
    if speeds:
        right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
