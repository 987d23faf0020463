"""How long a battery lasts: arithmetic that can be done by hand, and what is said where it cannot be done."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import target as targets
from deploy import yaml_source
from deploy.battery import Battery, BatteryLife, Drain, life, parse_battery, plain_battery
from deploy.errors import InputError
from deploy.evidence import with_battery
from deploy.power import EnergyReading

COIN = Battery(capacity=792.0, voltage=3.0, duty=1440.0)  # 220 mAh, once a minute
DRAIN = Drain(0.002, 0.1, 0.001, 0.004, 0.001)


def battery_of(text):
    return parse_battery(yaml_source.parse(text, "b.yaml"))


def test_by_hand():
    """2376 J; each minute 2 mJ, and 59.9 s of 1 mW, or of 3 uW."""
    found = life(COIN, DRAIN, "measured")
    assert found.seconds == pytest.approx(2376 / (0.002 + 59.9 * 0.001) * 60)
    assert found.low == pytest.approx(2376 / (0.004 + 59.9 * 0.001) * 60)
    assert found.high == pytest.approx(2376 / (0.001 + 59.9 * 0.001) * 60)
    assert found.basis == "220 mAh at 3 V, an inference 1 /min, 1 mW idle between"
    asleep = life(replace(COIN, sleep=3e-6), DRAIN, "measured")
    assert asleep.seconds == pytest.approx(2376 / (0.002 + 59.9 * 3e-6) * 60)
    assert asleep.basis.endswith("3 uW asleep between")


@given(st.floats(1e-9, 1), st.floats(1e-6, 1), st.floats(1, 1e4), st.floats(0, 1))
def test_more_energy_or_more_often_is_never_longer(joules, seconds, duty, sleep):
    battery = Battery(792.0, 3.0, duty, sleep)
    one = life(battery, Drain(joules, seconds, joules / 2, joules * 2, None), "measured")
    assert one.low <= one.seconds <= one.high
    more = life(battery, Drain(joules * 1.5, seconds, joules, joules * 2, None), "measured")
    assert more.seconds <= one.seconds
    if joules / seconds > sleep:
        assert (
            life(replace(battery, duty=duty / 2), Drain(joules, seconds, joules, joules, None), "m").seconds
            >= one.seconds
        )


@pytest.mark.parametrize(
    ("battery", "drain", "words"),
    [
        (COIN, None, "energy of an inference is not known"),
        (COIN, replace(DRAIN, seconds=61.0), "takes 61 s, which is longer than the duty leaves time for"),
        (COIN, replace(DRAIN, idle_w=None), "add `sleep` to the battery"),
        (COIN, Drain(0.0, 0.1, 0.0, 0.0, 0.0), "no energy at all"),
    ],
)
def test_what_cannot_be_known(battery, drain, words):
    found = life(battery, drain, "measured")
    assert found.seconds is None
    assert words in found.reason


def test_from_yaml_and_back():
    text = "{capacity: 220 mAh, voltage: 3 V, duty: 1 /min, sleep: 3 uW}"
    battery = battery_of(text)
    assert battery == replace(COIN, sleep=3e-6)
    assert plain_battery(battery) == yaml_source.parse(text, "t").plain()
    target = targets.from_text(f"name: f\ndescription: d\ntvm: {{kind: llvm}}\nbattery: {text}", "f.yaml")
    assert target.battery == battery
    assert targets.from_text(targets.render(target), "again") == target


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{capacity: 220 mAh, voltage: 3 V}", 'b.yaml:1: battery has no "duty"'),
        (
            "{capacity: 0 mAh, voltage: 3 V, duty: 1 /min}",
            "b.yaml:1: the capacity of the battery must be more than zero",
        ),
        ("{capacity: 220 Wh, voltage: 3 V, duty: 1 /min}", 'unknown unit "Wh"'),
        ("{capacity: 220 mAh, voltage: 3 V, duty: 1 Hz}", "allowed: /s, /min, /h, /day"),
        ("{capacty: 1 Ah}", 'did you mean "capacity"'),
    ],
)
def test_what_is_wrong_is_named(text, words):
    with pytest.raises(InputError) as caught:
        battery_of(text)
    assert words in str(caught.value)


def test_a_life_is_known_or_there_is_a_reason():
    for wrong in ((None, "measured", ""), (1.0, "measured", "", "why")):
        with pytest.raises(ValueError, match="reason"):
            BatteryLife(*wrong)


def test_of_a_report():
    """Idle is what is left of the energy above idle; an estimate stays one."""
    from test_report import passing

    energy = EnergyReading(0.002, 0.1, "measured", "m")
    above = replace(energy, joules=0.0019)
    report = replace(passing(), energy=energy, energy_above_idle=above)
    assert with_battery(report, None).battery_life is None
    found = with_battery(report, COIN).battery_life
    assert (found.how, found.seconds) == ("measured", pytest.approx(2376 / (0.002 + 59.9 * 0.001) * 60))
    guessed = replace(report, energy_above_idle=replace(above, how="estimated"))
    assert with_battery(guessed, COIN).battery_life.how == "estimated"
    assert with_battery(guessed, replace(COIN, sleep=1e-6)).battery_life.how == "measured"
    lost = replace(report, energy=EnergyReading(None, 0.1, "measured", "m", reason="gone"))
    assert with_battery(lost, COIN).battery_life.reason
