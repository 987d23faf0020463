"""Joining, shrinking and handing on logs: nothing is lost, and the same records give the same bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning_log_support import TVM, damage, fill, folder, kernel, kernel_id, proposal, record

from deploy.errors import InputError
from deploy.tuning import log_edit, store
from deploy.tuning.log_lines import Record
from deploy.tuning.store import Contents

RECORDS = st.builds(
    lambda number, factor, ns, trial: record(number, factor, *ns, trial=trial),
    st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(1, 5), max_size=2), st.integers(1, 4),
)  # fmt: skip
CONTENTS = st.builds(
    lambda numbers, records, factors: Contents(
        {kernel_id(n): kernel(n, f"name{len(records)}") for n in numbers},
        tuple(records),
        tuple(proposal(n, f) for n, f in factors),
    ),
    st.sets(st.integers(1, 3)),
    st.lists(RECORDS, max_size=12),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), max_size=3),
)


def text(place):
    return (place / store.LOG).read_bytes()


def records(lines):
    return [line for line in lines if isinstance(line, Record)]


def contents_of(lines, place):
    store.replace(place, lines)
    return store.read(place)


@given(st.lists(CONTENTS, max_size=3), st.randoms(use_true_random=False), st.sampled_from([None, 1, 2]))
def test_the_order_of_what_is_joined_does_not_matter(contents, chance, top):
    expected = log_edit.compacted(contents, top)
    shuffled = list(contents)
    chance.shuffle(shuffled)
    assert log_edit.compacted(shuffled, top) == expected
    assert log_edit.compacted([*contents, *contents], top) == expected


@given(CONTENTS)
def test_joining_loses_no_record(contents):
    def without_trial(found):
        return {(r.kernel, r.trace, r.ns, r.failed) for r in found}

    assert without_trial(records(log_edit.compacted([contents]))) == without_trial(contents.records)


@given(CONTENTS, st.integers(1, 3))
def test_the_best_of_each_kernel_are_left(contents, top):
    left = records(log_edit.compacted([contents], top))
    for number in range(1, 4):
        own = [r for r in left if r.kernel == kernel_id(number)]
        fastest = {}
        for r in contents.records:
            if r.kernel == kernel_id(number) and r.ns:
                fastest[r.trace] = min(r.time_s, fastest.get(r.trace, r.time_s))
        assert [r.time_s for r in own] == sorted(fastest.values())[:top]
        assert len({r.trace for r in own}) == len(own)


def test_a_compacted_log_is_its_own_compaction(tmp_path):
    place = fill(folder(tmp_path))
    log_edit.prune(tmp_path, "board", 2, stale=False)
    once = text(place)
    log_edit.prune(tmp_path, "board", 2, stale=False)
    assert text(place) == once
    kinds = [line.split('"')[5 if '"name"' not in line else 9] for line in once.decode().splitlines()[1:]]
    assert len(kinds) == 6  # two kernels, each before its two records


# --- merge ---


def test_merging_adds_what_is_new(tmp_path):
    ours, theirs, place = tmp_path / "ours", tmp_path / "theirs", folder(tmp_path / "ours")
    fill(place)
    fill(folder(theirs), kernel(1), record(1, 8, 3000), record(1, 16, 900), proposal(2, 32))
    fill(folder(theirs, "another"))
    changes = log_edit.merge(ours, [theirs])
    assert [(c.folder, c.records, c.more) for c in changes] == [
        (folder(ours, "another"), 6, 6),
        (place, 7, 1),
    ]
    merged = text(place)
    assert [c.more for c in log_edit.merge(ours, [theirs / "board", folder(theirs, "another")])] == [0, 0]
    assert text(place) == merged
    assert store.read(place).proposals == (proposal(2, 32),)
    other = tmp_path / "the other way round"
    log_edit.merge(other, [ours, theirs])
    assert text(folder(other)) == merged


def test_merging_nothing_is_said(tmp_path):
    place = fill(folder(tmp_path / "ours"))
    with pytest.raises(InputError, match=r"nothing to merge: there is no tuning log in .*none"):
        log_edit.merge(tmp_path / "ours", [tmp_path / "none"])
    for source in (tmp_path / "ours", place):
        with pytest.raises(InputError, match=r"nothing to merge: .* is in .*ours already"):
            log_edit.merge(tmp_path / "ours", [source])


def test_a_source_that_cannot_be_used_changes_nothing(tmp_path):
    fill(folder(tmp_path / "theirs"))
    bad = fill(folder(tmp_path / "theirs", "another"))
    bad.rename(bad.with_name(f"fff-tvm{TVM}"))
    with pytest.raises(InputError, match="move it where it belongs"):
        log_edit.merge(tmp_path / "ours", [tmp_path / "theirs"])
    assert not (tmp_path / "ours").exists()


# --- export ---


def test_exporting_leaves_the_best_of_both(tmp_path):
    root, out = tmp_path / "logs", tmp_path / "out"
    fill(folder(root))
    fill(folder(root, tvm="0.1"))
    (change,) = log_edit.export(root, "board", out)
    assert (change.folder, change.records, change.more) == (folder(out), 2, 2)
    assert [r.time_s for r in store.read(folder(out)).records] == [1.2e-6, 5e-7]
    first = text(folder(out))
    log_edit.export(root, "board", out)
    assert text(folder(out)) == first
    fill(folder(root), record(1, 32, 400))
    log_edit.export(root, "board", out)
    assert [r.time_s for r in store.read(folder(out)).records] == [4e-7, 5e-7]
    assert log_edit.export(root, "board", out, top=2)[0].records == 4


def test_what_is_exported_says_of_how_many_it_is_the_best(tmp_path):
    root, out, more = tmp_path / "logs", tmp_path / "out", tmp_path / "more"
    assert {k.of for k in store.read(fill(folder(root))).kernels.values()} == {0}
    log_edit.export(root, "board", out)
    assert {k.of for k in store.read(folder(out)).kernels.values()} == {3}
    fill(folder(more), kernel(1), record(1, 32, 400))
    log_edit.export(more, "board", out)
    assert [k.of for k in store.read(folder(out)).kernels.values()] == [3, 3]  # as many at least
    log_edit.merge(root, [out])
    assert {k.of for k in store.read(folder(root)).kernels.values()} == {3}


def test_nothing_to_export_is_said(tmp_path):
    fill(folder(tmp_path, "failed"), kernel(1), record(1, 8))
    fill(folder(tmp_path, "old", tvm="0.1"))
    out = tmp_path / "out"
    for target, message in (
        ("failed", "nothing to export: no candidate of target failed"),
        ("old", f"records of target old in .* are of other versions of TVM; this is {TVM}"),
        ("faild", 'did you mean "failed"'),
    ):
        with pytest.raises(InputError, match=message):
            log_edit.export(tmp_path, target, out)
    assert not out.exists()
    with pytest.raises(InputError, match="holds the log itself"):
        log_edit.export(tmp_path, "failed", tmp_path)


def test_a_log_of_a_hundred_kernels_is_small_enough_to_commit(tmp_path):
    lines = []
    for number in range(1, 101):
        lines += [
            kernel(number, "fused_conv2d_add_relu"),
            record(number, 8, 15154.2, 13419.4, 12766.7, 12741.4, 15101.1),
        ]
    fill(folder(tmp_path), *lines)
    (change,) = log_edit.export(tmp_path, "board", tmp_path / "out")
    assert (change.folder / store.LOG).stat().st_size < 50_000


# --- prune ---


def test_pruning_says_what_it_dropped(tmp_path):
    place, stale = fill(folder(tmp_path)), fill(folder(tmp_path, tvm="0.1"))
    (stale / store.COST_MODEL).write_bytes(b"learned")
    fill(place, proposal(1, 16))
    damage(place, 1)
    changes = log_edit.prune(tmp_path, "board", 1, stale=True)
    assert {(c.folder, c.records, c.more, c.gone) for c in changes} == {(place, 2, -4, False), (stale, 0, -6, True)}
    assert not stale.exists()
    contents = store.read(place)
    assert (len(contents.records), contents.proposals, contents.damaged) == (2, (), ())
    assert log_edit.prune(tmp_path, "board", None, stale=True) == []


def test_the_last_log_of_a_target_takes_its_folder_along(tmp_path):
    stale = fill(folder(tmp_path, tvm="0.1"))
    log_edit.prune(tmp_path, "board", None, stale=True)
    assert not stale.parent.exists()
    with pytest.raises(InputError, match="no tuning log of target board"):
        log_edit.prune(tmp_path, "board", None, stale=True)


# --- transfer ---


def test_the_best_schedules_become_proposals(tmp_path):
    fill(folder(tmp_path))
    place = folder(tmp_path, "similar", "fff")
    assert log_edit.transfer(tmp_path, "board", place, top=1).more == 2
    assert store.read(place).proposals == (proposal(1, 4, "board"), proposal(2, 8, "board"))
    assert list(store.read(place).kernels) == [kernel_id(1), kernel_id(2)]
    fill(place, record(2, 4, 100))  # measured by now
    assert log_edit.transfer(tmp_path, "board", place, top=2).more == 1
    assert log_edit.transfer(tmp_path, "board", place, top=2).more == 0


def test_a_target_has_nothing_to_propose_to_itself(tmp_path):
    with pytest.raises(InputError, match=r"no records in .* but those that are to be added to"):
        log_edit.transfer(tmp_path, "board", fill(folder(tmp_path)), top=1)
    fill(folder(tmp_path, fingerprint="fff"), kernel(1), record(1, 64, 5))  # with other threads, say
    assert log_edit.transfer(tmp_path, "board", folder(tmp_path), top=1).more == 1
