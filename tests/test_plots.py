from peft_mrpc.methods import METHODS
from peft_mrpc.plots import METHOD_COLORS, ParameterPoint, plot_accuracy_against_parameters


def test_every_method_has_a_colour_of_its_own() -> None:
    assert {*METHODS, "hard_prompt"} == set(METHOD_COLORS)
    assert len(set(METHOD_COLORS.values())) == len(METHOD_COLORS)


def test_methods_are_named_from_the_best_down_with_what_they_reached() -> None:
    points = [
        ParameterPoint("small", "bitfit", 100, 0.75),
        ParameterPoint("large", "full", 100_000, 0.8125, 0.01),
    ]
    (legend,) = plot_accuracy_against_parameters(points, "two").legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["large  0.812 ± 0.010", "small  0.750"]
