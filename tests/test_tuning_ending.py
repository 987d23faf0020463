"""When a tuning run ends before all its candidates are measured, and what its cost model remembers."""

import math
import time
from dataclasses import replace

import pytest

from deploy.budget import Budget, Limit
from deploy.errors import InputError
from deploy.stopping import Stopping, parse_stopping, plain_stopping
from deploy.targets import load_target
from deploy.tuning.ending import MARGIN, Ending
from deploy.yaml_source import parse


def target(**stopping):
    limits = (Limit("latency", "p90", 2e-3), Limit("latency", "median", 1e-3))
    return replace(load_target("host"), tuning=Stopping(**stopping), budget=Budget(limits))


def test_the_rules_are_read_and_written_back():
    text = "{trials: 2000, time: 30 min, patience: 8, until: budget}"
    rules = parse_stopping(parse(text, "t.yaml"))
    assert rules == Stopping(2000, 1800.0, 8, "budget")
    written = "".join(f"{key}: {value}\n" for key, value in plain_stopping(rules).items())
    assert parse_stopping(parse(written, "t.yaml")) == rules
    assert plain_stopping(Stopping()) == {"trials": 1000}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{trials: -1}", "t.yaml:1: trials of tuning must be a whole number from 0 to"),
        ("{time: 0 s}", "t.yaml:1: time of tuning must be more than zero"),
        ("{time: 5}", "t.yaml:1: time of tuning"),
        ("{patience: 0}", "t.yaml:1: patience of tuning must be a whole number from 1 to"),
        ("{until: buget}", 'did you mean "budget"'),
        ("{trails: 5}", 'did you mean "trials"'),
    ],
)
def test_wrong_rules_have_a_place_and_a_reason(text, sentence):
    with pytest.raises(InputError) as caught:
        parse_stopping(parse(text, "t.yaml"))
    assert sentence in str(caught.value)
    assert str(caught.value).count("t.yaml:1") == 1


def test_a_run_goes_on_where_no_rule_says_otherwise():
    ending = Ending.of(target(trials=10))
    assert [ending.reason(total) for total in (math.inf, 1.0, 1.0, 1.0, 1e-9)] == [""] * 5
    assert ending.left_s() is None


def test_rounds_without_a_gain_end_it():
    ending = Ending.of(target(patience=2))
    totals = [math.inf, 1.0, 0.9995, 0.9, 0.8999, 0.8998]  # less than a thousandth is no gain
    assert [ending.reason(total) for total in totals] == ["", "", "", "", "", "nothing gained in 2 rounds"]


def test_a_latency_that_is_allowed_ends_it():
    ending = Ending.of(target(until="budget"))
    assert ending.reason(MARGIN * 1e-3 * 1.01) == ""  # the smallest of the limits counts, and a little more
    assert ending.reason(MARGIN * 1e-3) == "its kernels take 950 us of the 1 ms allowed"


def test_time_ends_it():
    ending = Ending.of(target(time_s=60.0))
    assert ending.reason(1.0) == ""
    assert 0 < ending.left_s() <= 60
    ending.started -= 60
    assert ending.reason(0.5) == "1 min 0 s are over"
    assert ending.left_s() == 0
    assert time.monotonic() > ending.started


def test_a_budget_to_end_with_must_be_there():
    endless = replace(target(until="budget"), budget=Budget())
    with pytest.raises(InputError, match="is to end when the latency budget is met, and there is none"):
        Ending.of(endless)


@pytest.mark.parametrize("rules", [{"trials": -1}, {"time_s": 0.0}, {"patience": 0}, {"until": "tomorrow"}])
def test_rules_check_themselves(rules):
    with pytest.raises(InputError, match="of tuning"):
        Stopping(**rules)
