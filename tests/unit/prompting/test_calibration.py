import numpy as np
import pytest

from peft_mrpc.prompting.calibration import (
    Calibration,
    Scores,
    affine,
    affine_out_of_fold,
    batch,
    centred,
    contextual,
    evidence_of,
    match_shares,
    no_calibration,
    softmax,
)


def test_without_calibration_scores_are_log_probabilities() -> None:
    scores = np.log([[[0.2, 0.6], [0.3, 0.1]]])  # of all words; the rest went elsewhere
    found = no_calibration(scores).probabilities(scores)
    assert np.allclose(found, [[0.25, 0.75], [0.75, 0.25]])


def test_contextual_divides_by_the_answer_to_nothing() -> None:
    scores = np.log([[[0.2, 0.8]]])
    free = np.log([[[0.1, 0.9], [0.3, 0.7]]])  # on average .2 and .8
    found = contextual(scores, free).probabilities(scores)
    assert np.allclose(found, [[0.5, 0.5]])
    # A pair of .4/.6 becomes .4/.2 to .6/.8: 2 to .75.
    other = np.log([[[0.4, 0.6]]])
    assert np.allclose(contextual(other, free).probabilities(other), [[2 / 2.75, 0.75 / 2.75]])


def test_batch_divides_by_the_mean_over_the_pairs() -> None:
    scores = np.log([[[0.1, 0.9], [0.3, 0.7]]])  # on average .2 and .8
    found = batch(scores).probabilities(scores)
    # .1/.2 to .9/.8 and .3/.2 to .7/.8.
    assert np.allclose(found, [[0.5 / 1.625, 1.125 / 1.625], [1.5 / 2.375, 0.875 / 2.375]])


def test_no_wording_outweighs_another_by_its_confidence() -> None:
    draw = np.random.default_rng(0)
    shy = draw.normal(size=(50, 2))
    together = np.stack([shy, 100 * draw.normal(size=(50, 2))])
    logits = batch(together).logits(together)
    gap = logits[:, 1] - logits[:, 0]
    weight = np.corrcoef(gap, shy[:, 1] - shy[:, 0])[0, 1]
    assert weight > 0.5  # a half of the variance, not a ten-thousandth


def test_labels_are_predicted_as_often_as_wanted() -> None:
    draw = np.random.default_rng(1)
    scores = draw.normal(size=(1, 200, 2)) + [0.0, 5.0]
    matched = no_calibration(scores).with_prior(scores, [0.3, 0.7])
    assert (matched.probabilities(scores).argmax(axis=1) == 0).sum() == 60
    bias = match_shares(scores[0], np.array([0.0, 1.0]))  # none is to be label 0
    assert ((scores[0] + bias).argmax(axis=1) == 1).all()
    three = draw.normal(size=(1, 1000, 3)) + [0.0, 1.0, 2.0]
    matched = no_calibration(three).with_prior(three, [0.5, 0.25, 0.25])
    found = np.bincount(matched.probabilities(three).argmax(axis=1)) / 1000
    assert np.abs(found - [0.5, 0.25, 0.25]).max() < 0.02


@pytest.mark.parametrize("labels", [2, 3])
def test_the_affine_fit_learns_what_the_scores_say(labels: int) -> None:
    draw = np.random.default_rng(2)
    references = draw.integers(labels, size=300)
    # The first wording says the right label, far too faintly and with a leaning; the second lies.
    said = np.eye(labels)[references] * 0.1 + draw.normal(size=(300, labels)) * 0.05
    said[:, 0] += 3
    scores = np.stack([said, draw.normal(size=(300, labels))])
    fit = affine(scores, references)
    assert (fit.probabilities(scores).argmax(axis=1) == references).mean() > 0.75
    assert no_calibration(scores).probabilities(scores).argmax(axis=1).mean() < 0.5
    with pytest.raises(ValueError, match="got 1 pairs of a label"):
        affine(scores[:, :labels], np.arange(labels))


def test_a_calibration_comes_back_from_json() -> None:
    draw = np.random.default_rng(3)
    scores = draw.normal(size=(2, 40, 2))
    said = [Scores(scores[0], scores), Scores.of_labels(scores[1])]
    fit = affine(evidence_of(said), draw.integers(2, size=40))
    for made in (batch(scores), fit):
        again = Calibration.from_record(made.record())
        assert np.array_equal(again.classify(said), made.classify(said))
    # The fit reads three figures of two wordings, as they are; the other their label scores.
    assert fit.weights.shape == (3, 2, 2) and batch(scores).weights.shape == (2, 2, 2)
    logits = np.einsum("vnc,vcd->nd", [*scores, centred(scores[1])], fit.weights) + fit.bias
    assert np.allclose(fit.classify(said), softmax(logits))
    assert np.array_equal(batch(scores).classify(said), batch(scores).probabilities(scores))
    # What was saved before there was evidence reads label scores.
    old = {key: value for key, value in fit.record().items() if key != "reads_evidence"}
    assert not Calibration.from_record(old).reads_evidence


def test_softmax_survives_large_scores() -> None:
    assert np.allclose(softmax(np.array([[1000.0, 1000.0]])), [[0.5, 0.5]])


def test_a_wording_that_says_the_same_of_all_pairs_has_no_weight() -> None:
    draw = np.random.default_rng(4)
    said = draw.normal(size=(30, 2))
    mute = np.zeros((30, 2)) + draw.normal(size=(30, 2)) * 1e-9
    both = np.stack([said, mute])
    alone = batch(said[None]).logits(said[None])
    assert np.allclose(np.argsort(batch(both).logits(both)[:, 1]), np.argsort(alone[:, 1]))


def test_a_fit_is_judged_on_pairs_that_it_has_not_seen() -> None:
    draw = np.random.default_rng(5)
    references = draw.integers(2, size=60)
    noise = draw.normal(size=(20, 60, 2))  # twenty wordings that say nothing
    seen = (affine(noise, references).probabilities(noise).argmax(axis=1) == references).mean()
    unseen = (affine_out_of_fold(noise, references).argmax(axis=1) == references).mean()
    assert unseen < 0.65 and unseen <= seen
