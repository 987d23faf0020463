"""The part of a report that is of a microcontroller: what it accepts, and how people and scripts read it."""

import json
from dataclasses import replace

import jsonschema
import pytest
from test_judge import BARE, FIRMWARE

from deploy.report import Latency, Layer, Sizes, parse_json, render_json, render_text
from deploy.report.json_report import SCHEMA_FILE
from deploy.report.words import facts

LATENCY = Latency.of([100 / 8e6, 105 / 8e6], "estimated", "an instruction a cycle at 8 MHz")
REPORT = replace(BARE, sizes=Sizes(500, 1000, 2000), latency=LATENCY, firmware=FIRMWARE)


def test_sums():
    assert (FIRMWARE.flash_bytes, FIRMWARE.ram_bytes) == (1234, 567)
    assert replace(FIRMWARE, stack_bytes=None).ram_bytes is None


@pytest.mark.parametrize("change", [{"code_bytes": -1}, {"instructions": (5, -1)}, {"how": "guessed"}])
def test_what_cannot_be_is_refused(change):
    with pytest.raises(ValueError, match=r"0 or more|allowed: measured, emulated, estimated"):
        replace(FIRMWARE, **change)
    with pytest.raises(ValueError, match="-1 instructions of conv"):
        Layer("conv", -1)


def test_in_words():
    found = dict(facts(REPORT))
    assert "Sizes" not in found
    assert found["Flash"] == "1.21 KiB: weights 1000 B, code 200 B, glue 30 B, toolchain's functions 4 B"
    assert found["RAM"] == "567 B: arena 500 B, inputs and outputs 60 B, stack 7 B (emulated)"
    assert found["Instructions"] == "100 to 105 an inference (2 samples, emulated); most: 90% call 0 conv"
    assert found["Latency"].endswith("(2 samples, estimated: an instruction a cycle at 8 MHz)")
    unknown = dict(facts(replace(REPORT, firmware=replace(FIRMWARE, stack_bytes=None, instructions=(), layers=()))))
    assert unknown["RAM"] == "arena 500 B, inputs and outputs 60 B, and a stack that was not measured"
    assert "Instructions" not in unknown


def test_more_memories_in_words():
    more = replace(FIRMWARE, pools={"dtcm": 100, "sram": 3}, weights_bytes=0, external_flash_bytes=1000)
    assert (more.flash_bytes, more.ram_bytes) == (234, 670)
    found = dict(facts(replace(REPORT, firmware=more)))
    assert found["Flash"] == "234 B: code 200 B, glue 30 B, toolchain's functions 4 B; external flash 1000 B: weights"
    assert found["RAM"] == "670 B: arena 500 B, dtcm 100 B, sram 3 B, inputs and outputs 60 B, stack 7 B (emulated)"
    report = replace(REPORT, firmware=more)
    data = json.loads(render_json(report))
    jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text()))
    assert data["firmware"]["pools"] == {"dtcm": 100, "sram": 3}
    assert parse_json(render_json(report)) == report
    with pytest.raises(ValueError, match="0 or more"):
        replace(more, pools={"dtcm": -1})


def test_only_the_largest_calls_are_shown_and_long_names_cut():
    layers = tuple(Layer(f"fused_conv2d_add_relu_number_{n}", 10 * n) for n in range(9))
    shown = dict(facts(replace(REPORT, firmware=replace(FIRMWARE, layers=layers))))["Instructions"]
    assert shown.endswith(
        "most: 80% call 8 fused_conv2d_add_relu_n…, 70% call 7 fused_conv2d_add_relu_n…, 60% call 6 "
        "fused_conv2d_add_relu_n…"
    )


def test_as_json_and_back():
    data = json.loads(render_json(REPORT))
    jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text()))
    assert (data["firmware"]["flash_bytes"], data["firmware"]["ram_bytes"]) == (1234, 567)
    assert parse_json(render_json(REPORT)) == REPORT
    assert "100 to 105 an inference" in render_text(REPORT)
