from pathlib import Path

from example_runs import SCORES, build_run, change_record

from peft_mrpc.report.build import build_report
from peft_mrpc.report.plots import (
    LossCurves,
    RunPoint,
    build_plots,
    plot_accuracies,
    plot_costs,
    plot_learning_curves,
)

POINTS = [
    RunPoint("small", "bitfit", 0.75, None, 100, 10.0, 2.0, interval=(0.7, 0.8), seeds=(0.75,)),
    RunPoint("large", "full", 0.8125, 0.01, 100_000, 100.0, 1.0, seeds=(0.8, 0.825)),
    RunPoint("prompt", "hard_prompt", 0.7, None, 0, None, 50.0, seeds=(0.7,)),
]
CURVES = {"one": LossCurves([(0.5, 0.7), (1.0, 0.5)], [(1.0, 0.6)])}


def test_the_legend_lists_the_most_accurate_first() -> None:
    (legend,) = plot_costs(POINTS, "title").legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["large  0.812 ± 0.010", "small  0.750", "prompt  0.700"]


def test_costs_of_zero_have_a_mark_of_their_own() -> None:
    figure = plot_costs(POINTS, "title")
    trained, _, inference = figure.axes
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert texts == [["none"], ["none"], []]
    assert trained.get_xlim()[0] < 100 / 8 and inference.get_xlim()[0] > 0


def test_learning_curves_show_train_and_validation_losses() -> None:
    axis = plot_learning_curves(CURVES, [("#0072B2", "-")], "title").axes[0]
    assert [list(line.get_ydata()) for line in axis.lines] == [[0.7, 0.5], [0.6]]
    assert [line.get_label() for line in axis.lines] == ["one", "one, validation"]


def test_accuracies_have_their_intervals_and_seeds() -> None:
    axis = plot_accuracies(POINTS, 0.6, "title").axes[0]
    names = [text.get_text() for text in axis.texts]
    assert names[:3] == ["prompt  0.700", "small  0.750", "large  0.812 ± 0.010"]
    assert [list(line.get_xdata()) for line in axis.lines if line.get_marker() == "|"] == [
        [0.8, 0.825]
    ]


def test_unknown_costs_have_no_axes() -> None:
    points = [RunPoint("small", "bitfit", 0.75, trained=100, train_seconds=10.0)]
    labels = [axis.get_xlabel() for axis in plot_costs(points, "title").axes]
    assert labels == ["trained parameters", "training, seconds"]


def test_long_names_are_shortened(tmp_path: Path) -> None:
    runs = [
        change_record(
            build_run(tmp_path / method, SCORES["a"], method),
            lambda record: record.update(model="owner/A-Name" + "-long" * 12),
        )
        for method in ("full", "lora")
    ]
    report = build_report(runs)
    axis = build_plots(report.comparison, report.analysis)["accuracies"].axes[0]
    name = axis.texts[0].get_text()
    assert name.startswith("full · A-Name") and "…" in name and len(name) < 45
