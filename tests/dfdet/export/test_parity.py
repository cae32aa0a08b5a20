import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfdet.errors import DfdetError
from dfdet.export.parity import compare, judge, widest_swap

LOGITS = np.array([-2.0, -0.5, 0.25, 1.0])
LABELS = np.array([0, 1, 0, 1])


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def parity_of(logits, labels=LABELS):
    logits = np.asarray(logits)
    return compare(sigmoid(LOGITS), LOGITS, sigmoid(logits), logits, labels)


def test_equal_scores_cost_nothing():
    parity = parity_of(LOGITS)
    assert dataclasses.astuple(parity) == (0.0, 0.0, True, 0.0, 0.75, 0.0, 4)
    assert judge(parity, "float32", bound=0) is None


def test_differences_and_auroc_are_those_of_the_worst_crop_and_of_the_format():
    parity = parity_of([-2.0, 0.5, 0.25, 1.0])
    assert parity.max_logit_difference == pytest.approx(1.0)
    assert parity.max_score_difference == pytest.approx(sigmoid(0.5) - sigmoid(-0.5))
    assert (parity.auroc, parity.auroc_change) == (1.0, 0.25)
    assert (parity.same_ranking, parity.widest_swap) == (False, 0.75)


def test_without_labels_there_is_no_auroc():
    parity = parity_of(LOGITS, labels=None)
    assert (parity.auroc, parity.auroc_change) == (None, None)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=12))
def test_the_widest_swap_is_that_of_all_pairs(rows):
    reference, values = np.array(rows, float).T
    swaps = [
        reference[j] - reference[i]
        for i in range(len(rows))
        for j in range(len(rows))
        if reference[i] < reference[j] and values[i] > values[j]
    ]
    assert widest_swap(reference, values) == max(swaps, default=0)


def test_a_float32_graph_that_is_not_the_model_is_refused_whatever_the_bound():
    refusal = judge(parity_of(LOGITS + 1e-3), "float32", bound=1)
    assert refusal is not None
    assert "logits differ by 0.001 (allowed 0.0001)" in refusal
    assert "\n" not in refusal


def test_a_lower_precision_is_refused_beyond_the_bound_with_value_and_remedy():
    parity = parity_of(LOGITS + 0.02)
    assert judge(parity, "int8", bound=0.0005) is None
    refusal = judge(parity, "int8", bound=0.0004)
    assert refusal is not None
    assert "a score changes by 0.0049 (allowed 0.004) on 4 crops" in refusal
    assert "--bound 0.0004" in refusal
    assert "--force" in refusal


def test_a_drop_of_auroc_alone_is_refused_and_a_rise_is_not():
    parity = dataclasses.replace(parity_of(LOGITS), auroc_change=-0.01)
    assert "the AUROC drops by 0.01" in str(judge(parity, "int8", bound=0.002))
    assert judge(dataclasses.replace(parity, auroc_change=0.01), "int8", bound=0.002) is None


def test_scores_that_are_not_finite_or_not_of_all_crops_are_an_error():
    with pytest.raises(DfdetError, match="1 of 4 of the format's scores are NaN or infinite"):
        parity_of([-2.0, np.nan, 0.25, 1.0])
    with pytest.raises(DfdetError, match="3 scores for 4 crops"):
        compare(sigmoid(LOGITS), LOGITS, sigmoid(LOGITS[1:]), LOGITS[1:])
