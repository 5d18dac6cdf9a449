"""The guard against getting slower: what it calls slower, and what it expects where nothing was recorded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benches" / "guard"))

from compare import Verdict, compare, with_recorded_changes


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (100.0, Verdict.SAME),
        (125.0, Verdict.SAME),
        (125.1, Verdict.SLOWER),
        (75.0, Verdict.SAME),
        (74.9, Verdict.FASTER),
    ],
)
def test_a_figure_may_rise_by_its_tolerance_and_no_more(measured, verdict):
    [comparison] = compare({"case": 100.0}, {"case": measured}, {"case": 0.25})
    assert comparison.verdict is verdict


def test_a_case_that_nothing_is_known_of_is_said_to_be_so():
    [known, new] = compare({"known": 1.0}, {"known": 1.0, "new": 5.0}, {"known": 0.0, "new": 0.0})
    assert (known.verdict, new.verdict) == (Verdict.SAME, Verdict.NOT_COMPARED)
    assert new.change is None


def test_a_change_recorded_with_another_toolchain_is_expected_of_this_one_too():
    before = {"theirs": {"changed": 100.0, "same": 50.0}, "gone": {"changed": 1.0}}
    now = {"theirs": {"changed": 110.0, "same": 50.0, "new": 7.0}, "come": {"changed": 9.0}}
    base = {"changed": 200.0, "same": 60.0, "unrecorded": 5.0}
    expected = with_recorded_changes(base, before, now)
    assert expected == pytest.approx({"changed": 220.0, "same": 60.0, "unrecorded": 5.0})


def test_without_a_record_in_common_the_merge_base_is_expected_as_it_is():
    base = {"case": 3.0}
    assert with_recorded_changes(base, {}, {"here": {"case": 9.0}}) == base
    assert with_recorded_changes(base, {"there": {"case": 1.0}}, {}) == base
