import numpy as np
import pytest

from peft_mrpc.prompting.calibration import (
    Calibration,
    TemplateScores,
    affine,
    batch,
    centred,
    channel_scores,
    contextual,
    fit_calibration,
    match_prior,
    no_calibration,
    softmax,
    stack_features,
)


def test_without_calibration_scores_are_log_probabilities() -> None:
    scores = np.log([[[0.2, 0.6], [0.3, 0.1]]])  # the rest is the probability of other words
    probabilities = no_calibration(scores).probabilities(scores)
    assert np.allclose(probabilities, [[0.25, 0.75], [0.75, 0.25]])


def test_contextual_divides_by_the_scores_of_content_free_examples() -> None:
    scores = np.log([[[0.2, 0.8]]])
    free = np.log([[[0.1, 0.9], [0.3, 0.7]]])  # on average .2 and .8
    probabilities = contextual(free).probabilities(scores)
    assert np.allclose(probabilities, [[0.5, 0.5]])
    # Scores of .4/.6 become .4/.2 to .6/.8: 2 to .75.
    other = np.log([[[0.4, 0.6]]])
    assert np.allclose(contextual(free).probabilities(other), [[2 / 2.75, 0.75 / 2.75]])


def test_batch_divides_by_the_mean_over_the_examples() -> None:
    scores = np.log([[[0.1, 0.9], [0.3, 0.7]]])  # on average .2 and .8
    probabilities = batch(scores).probabilities(scores)
    # .1/.2 to .9/.8 and .3/.2 to .7/.8.
    assert np.allclose(probabilities, [[0.5 / 1.625, 1.125 / 1.625], [1.5 / 2.375, 0.875 / 2.375]])


def test_no_template_outweighs_another_by_its_confidence() -> None:
    draw = np.random.default_rng(0)
    shy = draw.normal(size=(50, 2))
    together = np.stack([shy, 100 * draw.normal(size=(50, 2))])
    logits = batch(together).logits(together)
    gap = logits[:, 1] - logits[:, 0]
    weight = np.corrcoef(gap, shy[:, 1] - shy[:, 0])[0, 1]
    assert weight > 0.5  # a half of the variance, not a ten-thousandth


def test_labels_are_predicted_as_often_as_in_the_prior() -> None:
    draw = np.random.default_rng(1)
    scores = draw.normal(size=(1, 200, 2)) + [0.0, 5.0]
    matched = no_calibration(scores).with_prior(scores, [0.3, 0.7])
    assert (matched.probabilities(scores).argmax(axis=1) == 0).sum() == 60
    bias = match_prior(scores[0], np.array([0.0, 1.0]))  # none is to be label 0
    assert ((scores[0] + bias).argmax(axis=1) == 1).all()
    three = draw.normal(size=(1, 1000, 3)) + [0.0, 1.0, 2.0]
    matched = no_calibration(three).with_prior(three, [0.5, 0.25, 0.25])
    shares = np.bincount(matched.probabilities(three).argmax(axis=1)) / 1000
    assert np.abs(shares - [0.5, 0.25, 0.25]).max() < 0.02


@pytest.mark.parametrize("labels", [2, 3])
def test_the_affine_fit_learns_from_the_scores(labels: int) -> None:
    draw = np.random.default_rng(2)
    references = draw.integers(labels, size=300)
    # The first template favours the right label by a small margin, with a bias; the second is
    # noise.
    scored = np.eye(labels)[references] * 0.1 + draw.normal(size=(300, labels)) * 0.05
    scored[:, 0] += 3
    scores = np.stack([scored, draw.normal(size=(300, labels))])
    fit = affine(scores, references)
    assert (fit.probabilities(scores).argmax(axis=1) == references).mean() > 0.75
    assert no_calibration(scores).probabilities(scores).argmax(axis=1).mean() < 0.5
    with pytest.raises(ValueError, match="got 1 examples of a label"):
        affine(scores[:, :labels], np.arange(labels))


def test_a_calibration_is_restored_from_json() -> None:
    draw = np.random.default_rng(3)
    scores = draw.normal(size=(2, 40, 2))
    scored = [TemplateScores(scores[0], scores), TemplateScores.from_labels(scores[1])]
    fit = affine(stack_features(scored), draw.integers(2, size=40))
    for made in (batch(scores), fit):
        again = Calibration.from_dict(made.to_dict())
        assert np.array_equal(again.predict_proba(scored), made.predict_proba(scored))
    # The fit uses three features of two templates; batch calibration their label scores.
    assert fit.weights.shape == (3, 2, 2) and batch(scores).weights.shape == (2, 2, 2)
    logits = np.einsum("vnc,vcd->nd", [*scores, centred(scores[1])], fit.weights) + fit.bias
    assert np.allclose(fit.predict_proba(scored), softmax(logits))
    assert np.array_equal(batch(scores).predict_proba(scored), batch(scores).probabilities(scores))


def test_softmax_survives_large_scores() -> None:
    assert np.allclose(softmax(np.array([[1000.0, 1000.0]])), [[0.5, 0.5]])


def test_a_template_with_equal_scores_for_all_examples_has_no_weight() -> None:
    draw = np.random.default_rng(4)
    scored = draw.normal(size=(30, 2))
    constant = np.zeros((30, 2)) + draw.normal(size=(30, 2)) * 1e-9
    both = np.stack([scored, constant])
    alone = batch(scored[None]).logits(scored[None])
    assert np.allclose(np.argsort(batch(both).logits(both)[:, 1]), np.argsort(alone[:, 1]))


def test_channel_scores_do_not_depend_on_the_order_of_the_sentences() -> None:
    # Two orders, under each label: -10 and -5 over 5 tokens, -9 and -9 over 3. The ratios to the
    # mean are -4/3 and -2/3, and -1 and -1: the second order favours the last label less.
    log_likelihoods = np.array([[[-10.0, -5.0], [-9.0, -9.0]]])
    lengths = np.array([[[5, 5], [3, 3]]])
    scores = channel_scores(log_likelihoods, lengths)
    assert np.allclose(scores.labels, [[-1, -1]])
    # The smaller order first, of each label: ratios, log-likelihoods, log-likelihoods per token.
    assert np.allclose(
        scores.features[:, 0],
        [[-4 / 3, -1], [-1, -2 / 3], [-10, -9], [-9, -5], [-3, -3], [-2, -1]],
    )
    swapped = channel_scores(log_likelihoods[:, ::-1], lengths[:, ::-1])
    assert np.array_equal(swapped.labels, scores.labels)
    assert np.array_equal(swapped.features, scores.features)


def test_a_prior_is_matched_after_the_calibration() -> None:
    scores = np.random.default_rng(6).normal(size=(2, 40, 2))
    matched = fit_calibration("batch", scores, prior=[0.25, 0.75])
    assert (matched.probabilities(scores).argmax(axis=1) == 0).sum() == 10
    content_free = scores[:, :3]
    expected = contextual(content_free).probabilities(scores)
    fit = fit_calibration("contextual", scores, content_free)
    assert np.array_equal(fit.probabilities(scores), expected)
