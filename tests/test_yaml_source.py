"""YAML read with places: what is refused, and that what is written is read back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import yaml_source
from deploy.errors import InputError

LAUGHS = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\n"


def test_every_value_knows_its_line() -> None:
    root = yaml_source.parse("a: 1\nb:\n  c: [x,\n      y]\n", "f.yaml")
    entries = root.mapping("file")
    assert (root.where, entries["b"].where) == ("f.yaml:1", "f.yaml:2")
    inner = entries["b"].mapping("b")["c"]
    assert [node.where for node in inner.items("c")] == ["f.yaml:3", "f.yaml:4"]


def test_scalars_follow_the_core_rules() -> None:
    text = "i: -12\nf: 1e-5\nt: true\nn: ~\nno: no\ntime: 1:30\ndate: 2020-01-01\nq: '1'\nflag: -O2\nplus: +avx2\n"
    assert yaml_source.parse(text, "f").plain() == {
        "i": -12,
        "f": 1e-5,
        "t": True,
        "n": None,
        "no": "no",
        "time": "1:30",
        "date": "2020-01-01",
        "q": "1",
        "flag": "-O2",
        "plus": "+avx2",
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "f.yaml: is empty"),
        ("# only a comment\n", "f.yaml: is empty"),
        ("- 1\n", "f.yaml:1: the file must be a mapping (key: value), not a list"),
        ("text\n", 'f.yaml:1: the file must be a mapping (key: value), not "text"'),
        ("a: 1\nb: 2\na: 3\n", 'f.yaml:3: the key "a" is given twice (first on line 1); keep one'),
        ("a: {b: 1, b: 2}\n", 'f.yaml:1: the key "b" is given twice (first on line 1); keep one'),
        (LAUGHS, "f.yaml:1: anchors (&) and aliases (*) are not allowed; write the value out"),
        ("a: *x\n", "f.yaml:1: anchors (&) and aliases (*) are not allowed; write the value out"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "f.yaml:1: the tag tag:yaml.org,2002:python/object/apply:os.system is not allowed; write plain values",
        ),
        ("a:\n\tb: 1\n", "f.yaml:2:1: a tab is used for indentation, which YAML forbids; use spaces"),
        ("a: b: c\n", 'f.yaml:1:5: ": " is not allowed here; put a text that contains it in quotes'),
        ("a: @b\n", 'f.yaml:1:4: a value cannot start with "@"; put it in quotes'),
        ("a: [1\n", "f.yaml:2:1: is not valid YAML (did not find expected ',' or ']')"),
        ("1: a\n", "f.yaml:1: a key must be text, not 1"),
        ("? [a]\n: b\n", "f.yaml:1: a key must be text, not a list"),
        ("a: 1\n---\nb: 2\n", 'f.yaml:2: a second document starts here; keep one per file (remove "---")'),
        ("a: 1\nb: \x07\n", "f.yaml:2: contains the character '\\x07'; is this a text file?"),
        (b"a: 1\n\xff\xfe\n", "f.yaml:2: is not UTF-8 text; is this the right file?"),
        (b"\x7fELF\x02\x01\x01\x00", "f.yaml:1: contains the character '\\x7f'; is this a text file?"),
        ("a: " + "[" * 50, "f.yaml:1: is nested deeper than 20 levels"),
        ("[" * 500_000, "f.yaml:1: is nested deeper than 20 levels"),
        ("a: [" + "1," * 30_000 + "1]", "f.yaml:1: the file has more than 20000 values"),
        (
            "a: 1\n" * 300_000,
            "f.yaml: is larger than 1 MiB; a configuration file is a few KiB, is this the right file?",
        ),
    ],
)
def test_what_a_configuration_does_not_need_is_refused(data: str | bytes, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        yaml_source.parse(data, "f.yaml")
    assert str(caught.value) == message
    assert time.monotonic() - started < 5


def refusal(data: str | bytes) -> str:
    """The message `data` is refused with; empty when it is a mapping."""
    try:
        node = yaml_source.parse(data, "f.yaml")
    except InputError as error:
        return str(error)
    return "" if isinstance(node.value, dict) else "not a mapping\n"


@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_any_input_is_a_mapping_or_an_error_of_one_line(data: str | bytes) -> None:
    assert "\n" not in refusal(data)


@given(text=st.text(alphabet="ab:{}[],-&*!|>'\"%@`#? \n\t\\~0.", max_size=60))
def test_anything_like_yaml_is_a_mapping_or_an_error_of_one_line(text: str) -> None:
    assert "\n" not in refusal(text)


words = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=12) | st.sampled_from(
    ["null", "~", "true", "1", "-0", "1e5", ".5", "0x1f", "012", "yes", "1:30", "-", "a: b", "# c", "2020-01-01"]
)
leaves = st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(-1e300, 1e300) | words
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=12
)


@given(data=st.dictionaries(words, trees, min_size=1, max_size=5))
def test_what_is_dumped_is_read_back(data: dict[str, yaml_source.Plain]) -> None:
    assert yaml_source.parse(yaml_source.dump(data), "f.yaml").plain() == data


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    with pytest.raises(InputError, match=r"missing\.yaml: cannot be read \(No such file or directory\)"):
        yaml_source.load(missing)
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        yaml_source.load(tmp_path)
    with pytest.raises(InputError, match="is not a file name"):
        yaml_source.load("a\0b")
    good = tmp_path / "good.yaml"
    good.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    assert yaml_source.load(good).plain() == {"a": 1, "b": "x"}
