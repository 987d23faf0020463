"""The report: golden files for what people read, a JSON Schema and a round trip for what scripts read."""

import json
import math
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.battery import Battery, BatteryLife
from deploy.budget import PEAK, QUANTITIES, STATISTICS, Budget, Check, Limit, Reading, Verdict, check, latency_readings
from deploy.errors import InputError
from deploy.evidence import with_battery
from deploy.power import EnergyReading, MeterFacts, Sample
from deploy.report import (
    FloatForm,
    Latency,
    ModelFacts,
    Overall,
    Report,
    Sizes,
    TargetFacts,
    TensorDifference,
    TuningFacts,
    Verification,
    judged,
    parse_json,
    render_json,
    render_markdown,
    render_text,
)
from deploy.report.json_report import SCHEMA_FILE
from deploy.statistics import summarize

SHA = "0123456789abcdef" * 4
SAMPLES = tuple(1.2e-3 + 1e-6 * (index * 7 % 20) for index in range(500))


def budget(*limits):
    return Budget(tuple(limits))


def passing():
    latency = Latency.of(SAMPLES, "measured")
    watched = (Sample("package-0", 100.0, 5_000_000, "uJ"), Sample("package-0", 100.6, 11_000_000, "uJ"))
    readings = [
        *latency_readings(summarize(SAMPLES), "measured"),
        Reading("ram", None, 12_582_912, "measured"),
        Reading("flash", None, 122_880, "measured"),
        Reading("energy", None, 0.012, "measured"),
    ]
    limits = budget(
        Limit("latency", "p90", 2e-3),
        Limit("latency", "median", 1.5e-3),
        Limit("ram", None, 16 * 2**20),
        Limit("flash", None, 128 * 1024),
        Limit("energy", None, 0.02),
    )
    return Report(
        created="2026-01-31T12:00:00Z",
        versions={"tvm-deploy": "0.1.0", "apache-tvm": "0.27.0"},
        artifact="out/resnet8",
        target=TargetFacts("x86-64-v4", "5f2c9ae01b"),
        model=ModelFacts("resnet8.onnx", "onnx", SHA),
        operators={"conv2d": 9, "add": 3, "dense": 1},
        macs=12_501_632,
        threads=1,
        sizes=Sizes(55_296, 98_304, 122_880, 12_582_912),
        tuning=TuningFacts(12, 12, 512, 12),
        verification=Verification(
            "ONNX Runtime 1.27",
            10,
            True,
            "1e-5 relative for float32",
            (TensorDifference("logits", "float32", 100, 41, 1.19e-7, 2.4e-6),),
        ),
        latency=latency,
        power=EnergyReading(6.0, 0.6, "measured", "RAPL package-0", watched),
        energy=EnergyReading(0.012, 0.0012, "measured", "RAPL package-0", watched),
        checks=check(limits, readings),
    )


def failing():
    """Every verdict but PASS at once, wrong output, and what an estimate and a missing reading look like."""
    good = passing()
    noisy = tuple(1e-3 * (1 + 0.5 * (index % 2)) for index in range(100))
    readings = [
        *latency_readings(summarize(noisy), "measured"),
        Reading("flash", None, 131_073, "measured"),
        Reading("energy", None, 0.00012, "estimated"),
    ]
    limits = budget(
        Limit("latency", "median", 1.2e-3),
        Limit("ram", None, 16 * 2**20),
        Limit("flash", None, 131_072),
        Limit("energy", None, 0.02),
    )
    return replace(
        good,
        model=ModelFacts("mobile|net [bold]*v2*\x1b[31m.tflite", "tflite", SHA),
        artifact="/srv/builds/2026/q1/a-rather-long-folder-name/that-goes-on-and-on/mobilenet-v2-int8-x86-64-v4",
        operators={f"operator_{index}": 40 - index for index in range(1, 30)},
        macs=None,
        threads=4,
        sizes=replace(good.sizes, peak_rss_bytes=None),
        tuning=TuningFacts(1, 0, 1, 0),
        verification=Verification(
            "LiteRT 2.1",
            1,
            False,
            "exact for int8",
            (
                TensorDifference("conv1", "int8", 1000, 0, 0.0, 0.0),
                TensorDifference("class|probabilities", "int8", 10, 3, 7.0, math.inf),
            ),
            first_mismatch="class|probabilities",
        ),
        latency=Latency.of(noisy, "measured"),
        power=EnergyReading(None, 0.5, "measured", "no meter", reason="no RAPL; no active power is declared"),
        energy=EnergyReading(0.00012, 0.001, "estimated", "declared active power 120 mW"),
        checks=check(limits, readings),
        float_form=FloatForm(Latency.of((0.9e-3,) * 50, "measured"), 12, 3),
    )


def bare():
    """As little as a report can say: nothing was run."""
    return replace(
        passing(), versions={}, operators={}, macs=None, sizes=None, tuning=None, verification=None, latency=None,
        power=None, energy=None, checks=(),
    )  # fmt: skip


REPORTS = {"passing": passing, "failing": failing, "bare": bare}


@pytest.fixture(params=REPORTS)
def case(request):
    return request.param, REPORTS[request.param]()


# --- golden ---


def test_text(case, golden):
    name, report = case
    golden(f"report_{name}.txt", render_text(report, width=100))


def test_text_narrow_and_ascii(golden):
    golden("report_failing_60_ascii.txt", render_text(failing(), width=60, encoding="latin-1"))


def test_markdown(case, golden):
    name, report = case
    golden(f"report_{name}.md", render_markdown(report))


def test_json(golden):
    golden("report_passing.json", render_json(replace(passing(), latency=Latency.of(SAMPLES[:12], "measured"))))


# --- text ---


@pytest.mark.parametrize("width", [10, 40, 57, 80, 200])
def test_no_line_is_wider_than_asked(case, width):
    _, report = case
    lines = render_text(report, width=width).splitlines()
    assert lines[-1] == f"Artifact: {report.artifact}"
    assert max(map(len, lines[:-1])) <= max(width, 40)


def test_colour_only_when_asked(case, monkeypatch):
    _, report = case
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in render_text(report)
    monkeypatch.setenv("NO_COLOR", "1")
    colored = render_text(report, color=True)
    assert "\x1b[1;3" in colored
    assert "\x1b[31m.tflite" not in colored


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "no-such-encoding"])
def test_plain_ascii_where_there_is_no_unicode(case, encoding):
    _, report = case
    render_text(replace(report, artifact="größe"), encoding=encoding).encode("ascii")


def test_file_names_that_are_not_utf8_can_be_written(case):
    _, report = case
    odd = replace(report, artifact=b"out/\xff".decode("utf-8", "surrogateescape"))
    for text in (render_text(odd), render_markdown(odd), render_json(odd)):
        text.encode("utf-8")
    assert "out/\\xff" in render_text(odd)
    assert parse_json(render_json(odd)) == odd


def test_reading_just_above_its_limit_is_shown_above_it():
    assert "128 KiB" in (text := render_text(failing()))
    assert "131073 B" in text


def test_a_reason_that_power_and_energy_share_is_told_once():
    why = "no RAPL; no hwmon"
    estimated = replace(passing(), power=EnergyReading(15.0, 1.0, "estimated", "declared 15 W", reason=why),
                        energy=EnergyReading(1e-5, 1e-6, "estimated", "declared 15 W", reason=why))  # fmt: skip
    text = render_text(estimated)
    assert "15 W (estimated, declared 15 W: no RAPL; no hwmon)" in text
    assert "10 uJ per inference (estimated, declared 15 W)" in text
    nothing = EnergyReading(None, 1.0, "measured", "no meter", reason=why)
    text = render_markdown(replace(passing(), power=nothing, energy=nothing))
    assert text.count(why) == 1
    assert "not measured, as the power" in text
    assert render_text(replace(estimated, power=None)).count(why) == 1


def metered_report():
    """A board with a battery at a meter of its own, and budgets on all that it takes."""
    facts = MeterFacts("PPK2 at /dev/ttyACM1", 1e5, 3.0, ("VOUT",), "it is the supply", 0.1)
    power = EnergyReading(0.03, 0.1, "measured", "PPK2", low=0.027, high=0.033, peak_w=0.42, meter=facts)
    energy = replace(power, joules=0.003, seconds=0.01, low=0.0027, high=0.0033)
    limits = budget(
        Limit("power", None, 0.35), Limit("power", "peak", 0.4), Limit("energy", None, 0.0031),
        Limit("battery_life", None, 2 * 31_557_600.0),
    )  # fmt: skip
    report = replace(
        passing(), power=power, energy=energy, energy_above_idle=replace(energy, joules=0.002, low=0.0017, high=0.0023)
    )
    return judged(with_battery(report, Battery(792.0, 3.0, 1440.0, 3e-6)), limits)


def test_power_energy_and_battery(golden):
    report = metered_report()
    golden("report_metered.txt", render_text(report, 120))
    golden("report_metered.md", render_markdown(report))
    verdicts = {check.limit.name: check.verdict for check in report.checks}
    assert verdicts == {
        "power": Verdict.PASS, "power peak": Verdict.TOO_NOISY, "energy": Verdict.TOO_NOISY,
        "battery_life": Verdict.MISS,
    }  # fmt: skip
    jsonschema.validate(json.loads(render_json(report)), json.loads(SCHEMA_FILE.read_text()))
    assert parse_json(render_json(report)) == report


def in_float(*samples_s):
    """A quantized model of 1.21 ms, and how long its float form takes."""
    return replace(passing(), float_form=FloatForm(Latency.of(samples_s, "emulated"), 9, 2))


def test_integers_that_are_not_faster_are_warned_of_and_change_no_verdict():
    slow, fast = in_float(0.6e-3), in_float(2.42e-3)
    warning = "integers are not faster than this model's float form: median 1.21 ms against 600 us"
    assert (slow.warnings, fast.warnings, passing().warnings) == ((warning,), (), ())
    assert f"WARNING: {warning}\n" in render_text(slow)
    assert f"> **Warning:** {warning}\n" in render_markdown(slow).replace("\\", "")
    assert json.loads(render_json(slow))["warnings"] == [warning]
    for shown in (render_text(fast), render_text(passing())):
        assert "WARNING" not in shown
    shown = "median 2.42 ms (1 sample, emulated, noisy, 2 of 9 kernels tuned); integers are 2 times as fast"
    assert f"In float {shown}" in " ".join(render_text(fast, width=200).split())
    assert (slow.verdict, slow.exit_code) == (Overall.PASS, 0)


def test_speed_that_is_not_known_is_no_warning():
    unknown = replace(passing(), float_form=FloatForm(None, 0, 0, "it does not fit into 64 KiB"))
    assert (unknown.speedup, unknown.warnings) == (None, ())
    assert "not measured: it does not fit into 64 KiB" in render_text(unknown)
    assert replace(in_float(1e-3), latency=None).speedup is None
    assert replace(in_float(1e-3), latency=Latency.of((0.0,), "measured")).speedup is None


# --- Markdown ---


def test_markdown_tables_keep_their_columns():
    for block in render_markdown(failing()).split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


# --- JSON ---


def strict(schema):
    """The schema with unknown fields forbidden, to find fields that are not documented."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    return {"additionalProperties": False, **closed} if "properties" in schema and "$defs" not in schema.get(
        "properties", {}
    ) else closed  # fmt: skip


SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(strict(SCHEMA))


def test_schema_is_one_and_strict_is_strict():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for change in ({"surprise": 1}, {"verdict": "MAYBE"}, {"threads": 0}, {"macs": "many"}):
        assert not VALIDATOR.is_valid({**json.loads(render_json(passing())), **change})
    nested = json.loads(render_json(passing()))
    nested["latency"]["surprise"] = 1
    assert not VALIDATOR.is_valid(nested)
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(nested)


def test_json_is_what_the_schema_says_and_comes_back(case):
    _, report = case
    text = render_json(report)
    VALIDATOR.validate(json.loads(text))
    assert parse_json(text) == report
    assert render_json(parse_json(text)) == text


def test_json_keeps_nan():
    bad = TensorDifference("x", "float32", 1, 1, math.nan, -math.inf)
    report = replace(passing(), verification=Verification("r", 1, False, "t", (bad,)))
    back = parse_json(render_json(report)).verification.tensors[0]
    assert math.isnan(back.largest_abs)
    assert back.largest_rel == -math.inf


def test_samples_are_on_one_line():
    lines = render_json(passing()).splitlines()
    assert sum("samples_s" in line for line in lines) == 1
    assert len(lines) < 250
    assert '"samples_s": [0.0012, ' in "\n".join(lines)


finite = st.floats(0, 1e9)
texts = st.text(max_size=20)
hows = st.sampled_from(["measured", "emulated", "estimated"])


@st.composite
def checks(draw):
    quantity = draw(st.sampled_from(sorted(QUANTITIES)))
    statistic = draw(st.sampled_from({"latency": STATISTICS, "power": (None, PEAK)}.get(quantity, (None,))))
    low, value, high = sorted(draw(st.tuples(finite, finite, finite)))
    reading = draw(st.none() | st.builds(Reading, *map(st.just, (quantity, statistic, value)), hows,
                                         st.none() | st.just(low), st.none() | st.just(high)))  # fmt: skip
    limit = Limit(quantity, statistic, draw(st.floats(1e-9, 1e9)), draw(hows))
    return Check(limit, reading, draw(st.sampled_from(Verdict)), draw(texts))


tensors = st.builds(
    lambda name, counts, largest: TensorDifference(name, "int8", max(counts), min(counts), *largest),
    texts,
    st.tuples(st.integers(0, 2**53), st.integers(0, 2**53)),
    st.tuples(finite, finite | st.just(math.inf)),
)
verifications = st.builds(
    lambda reference, found, passed: Verification(reference, 1, passed, "t", tuple(found)),
    texts,
    st.lists(tensors, min_size=1, max_size=3),
    st.booleans(),
)
samples = st.builds(Sample, texts, st.floats(0, 1e9), st.integers(-(2**60), 2**60), st.sampled_from(["uJ", "uW"]))
readings = st.builds(
    EnergyReading,
    st.none() | st.floats(0, 1e6),
    st.floats(1e-6, 1e6),
    st.sampled_from(["measured", "estimated"]),
    texts,
    st.lists(samples, max_size=3).map(tuple),
    st.text(min_size=1, max_size=9),
)
some = st.floats(1e-6, 1e6)
meters = st.builds(
    MeterFacts, texts, st.none() | some, st.none() | finite, st.lists(texts, max_size=2).map(tuple), texts,
    st.none() | finite,
)  # fmt: skip
metered = st.builds(
    lambda values, meter: EnergyReading(
        values[1], 1.0, "measured", "m", low=values[0], high=values[2], peak_w=values[2], meter=meter
    ),
    st.tuples(finite, finite, finite).map(sorted),
    st.none() | meters,
)
lives = st.builds(BatteryLife, some, hows, texts, low=st.none() | some, high=st.none() | some)
unknown_lives = st.builds(BatteryLife, st.none(), hows, texts, st.text(min_size=1, max_size=9))
reports = st.builds(
    replace,
    st.builds(passing),
    artifact=texts,
    versions=st.dictionaries(texts, texts, max_size=3),
    operators=st.dictionaries(texts, st.integers(1, 10**6), max_size=5),
    macs=st.none() | st.integers(0, 2**60),
    verification=st.none() | verifications,
    latency=st.none() | st.builds(Latency.of, st.lists(finite, min_size=1, max_size=9), hows),
    float_form=st.none()
    | st.builds(
        lambda found, how: FloatForm(Latency.of(found, how), 2, 1), st.lists(finite, min_size=1, max_size=3), hows
    )
    | st.builds(lambda reason: FloatForm(None, 0, 0, reason), st.text(min_size=1, max_size=9)),
    power=st.none() | readings | metered,
    energy=st.none() | readings | metered,
    energy_above_idle=st.none() | readings | metered,
    battery_life=st.none() | lives | unknown_lives,
    checks=st.lists(checks(), max_size=5).map(tuple),
)


@given(reports, st.integers(40, 120))
def test_any_report_renders_and_comes_back(report, width):
    text = render_json(report)
    VALIDATOR.validate(json.loads(text))
    assert parse_json(text) == report
    render_text(report, width).encode("utf-8")
    render_markdown(report).encode("utf-8")
    assert (report.exit_code == 0) == (
        report.verification is not None
        and report.verification.passed
        and all(one.verdict is Verdict.PASS for one in report.checks)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("\x00\xff", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("9" * 10_000, "is not JSON"),
        ("[]", "no schema_version"),
        ('{"schema_version": true}', "no schema_version"),
        ('{"schema_version": 2}', r"schema version 2, this program reads 1"),
        ('{"schema_version": 1}', "report has no created"),
    ],
)
def test_what_is_no_report_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_json(text, "old.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["threads"], "1", r"report\.threads is '1'; a whole number is expected"),
        (["threads"], True, r"report\.threads is True"),
        (["macs"], 1.5, r"report\.macs is 1\.5"),
        (["latency", "samples_s", 3], None, r"report\.latency\.samples_s\[3\] is None; a number is expected"),
        (["latency", "how"], "guessed", r"report\.latency: .*guessed"),
        (["latency", "median_s"], 10**400, "median_s"),
        (["model", "sha256"], "beef", "64 hexadecimal digits"),
        (["created"], "yesterday", "2026-01-31T12:00:00Z"),
        (["checks", 0, "verdict"], "FINE", r"report\.checks\[0\]\.verdict is 'FINE'; allowed: PASS, MISS"),
        (["checks", 0, "verdict"], [1], r"report\.checks\[0\]\.verdict is a list"),
        (["checks", 0, "limit", "quantity"], "speed", "unknown quantity"),
        (["checks"], {}, r"report\.checks is an object; a list is expected"),
        (["power", "how"], "emulated", r"report\.power\.how is 'emulated'"),
        (["operators", "conv2d"], 0, "at least once"),
        (["verdict"], "MISS", "its verdict is 'MISS', its checks say PASS"),
    ],
)
def test_damage_is_located(path, value, message):
    data = json.loads(render_json(passing()))
    *parents, last = path
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    with pytest.raises(InputError, match=message):
        parse_json(json.dumps(data))


def test_fields_of_a_later_program_are_ignored():
    data = json.loads(render_json(passing()))
    data["mood"] = data["latency"]["mood"] = "good"
    assert parse_json(json.dumps(data)) == passing()


# --- the model ---


def one_check(verdict):
    return Check(Limit("flash", None, 1), None, verdict, "because")


@pytest.mark.parametrize(
    ("verdicts", "overall"),
    [
        ([], Overall.PASS),
        ([Verdict.PASS, Verdict.TOO_NOISY], Overall.TOO_NOISY),
        ([Verdict.TOO_NOISY, Verdict.NOT_MEASURED], Overall.NOT_MEASURED),
        ([Verdict.NOT_MEASURED, Verdict.MISS, Verdict.PASS], Overall.MISS),
    ],
)
def test_the_worst_verdict_counts(verdicts, overall):
    report = replace(passing(), checks=tuple(map(one_check, verdicts)))
    assert report.verdict is overall
    assert report.exit_code == (0 if overall is Overall.PASS else 1)
    assert replace(report, verification=None).verdict is Overall.NOT_VERIFIED
    assert replace(report, verification=None).exit_code == 1
    assert replace(report, verification=failing().verification).verdict is Overall.WRONG_OUTPUT


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sizes(-1, 0, 0),
        lambda: TuningFacts(1, 2, 0, 0),
        lambda: TensorDifference("x", "int8", 1, 2, 0.0, 0.0),
        lambda: Verification("r", 0, True, "t", ()),
        lambda: replace(passing().verification, first_mismatch="x"),
        lambda: replace(passing(), threads=0),
        lambda: replace(passing(), schema_version=2),
        lambda: replace(passing(), created="2026-13-01T00:00:00Z"),
        lambda: replace(passing().latency, p99_s=math.inf),
        lambda: FloatForm(passing().latency, 1, 2),
        lambda: FloatForm(None, 1, 1),
        lambda: FloatForm(passing().latency, 1, 1, "but why"),
    ],
)
def test_impossible_facts_cannot_be_made(make):
    with pytest.raises(ValueError, match=r"."):
        make()


def test_energy_that_is_lost_in_noise_has_an_upper_bound():
    report = metered_report()
    noisy = replace(report, energy_above_idle=replace(report.energy, joules=1e-6, low=0.0, high=4e-4))
    assert "1 uJ (at most 400 uJ) above idle" in render_text(noisy, 120)
