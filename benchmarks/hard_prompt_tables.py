"""The tables of `hard_prompt.md`: accuracy with its interval, F1 not equivalent / equivalent."""

from collections.abc import Sequence
from typing import Any

from scipy.stats import binomtest

from peft_mrpc.formatting import format_p_value

Row = dict[str, Any]


def calibrated_table(rows: Sequence[Row], first: str) -> str:
    kinds = ["none", "contextual", "batch", "prior", "affine"]
    lines = [
        f"| {first} | ROC-AUC | uncalibrated | contextual | batch | train's shares | affine |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [one_cell(row[kind]) if kind in row else "-" for kind in kinds]
        lines.append(f"| {row[first]} | {row['none']['roc_auc']:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def one_cell(metrics: Row) -> str:
    low, high = metrics["interval"]
    f1 = "/".join(f"{value:.2f}" for value in metrics["f1"])
    return f"{metrics['accuracy']:.3f} [{low:.2f}, {high:.2f}] {f1}"


def fits_table(rows: Sequence[Row]) -> str:
    lines = [
        "| templates | fitted to | train, unseen | log loss | ROC-AUC | dev | ROC-AUC |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        train, dev = row["train"], row["dev"]
        lines.append(
            f"| {row['templates']} | {row['pairs']} | {one_cell(train)} | {row['log_loss']:.3f} | "
            f"{train['roc_auc']:.3f} | {one_cell(dev)} | {dev['roc_auc']:.3f} |"
        )
    return "\n".join(lines)


def quantization_table(rows: Sequence[Row]) -> str:
    lines = [
        "| template | fp32 | nf4 | ROC-AUC | same answers | only fp32 right | only nf4 right | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        alone = row["only_fp32_right"], row["only_nf4_right"]
        p = format_p_value(binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else "1"
        areas = f"{row['fp32']['roc_auc']:.3f} / {row['nf4']['roc_auc']:.3f}"
        lines.append(
            f"| {row['template']} | {one_cell(row['fp32'])} | {one_cell(row['nf4'])} | {areas} | "
            f"{row['same_answers']:.1%} | {alone[0]} | {alone[1]} | {p} |"
        )
    return "\n".join(lines)
