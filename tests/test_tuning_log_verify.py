"""Damaged lines are found, named and taken out; the others stay as they are."""

from __future__ import annotations

from tuning_log_support import TVM, damage, fill, folder, kernel_id

from deploy.tuning import store
from deploy.tuning.log_lines import Record
from deploy.tuning.log_verify import repair, verify


def test_a_sound_log_is_sound(tmp_path):
    found = verify(fill(folder(tmp_path)))
    assert (found.sound, found.lines, found.records, found.damaged) == (True, 9, 6, ())


def test_damage_is_named_and_taken_out(tmp_path):
    place = fill(folder(tmp_path))
    fill(place, Record(kernel_id(1), "no trace", (5,)))
    lines = (place / store.LOG).read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace("3000", "3001")
    lines[4] = lines[4][:60] + "\n"
    (place / store.LOG).write_text("".join(lines)[:-1])  # and the last newline is missing
    found = verify(place)
    assert (found.sound, found.lines) == (False, 10)
    assert [number for number, _ in found.damaged] == [3, 5, 10]
    assert [reason.split(":")[0] for _, reason in found.damaged] == [
        "its checksum is wrong", "it is cut off", "its trace cannot be read",
    ]  # fmt: skip
    assert repair(place).damaged == found.damaged
    assert verify(place).sound
    kept = [line for number, line in enumerate(lines, 1) if number not in (3, 5, 10)]
    assert (place / store.LOG).read_text() == "".join(kept)


def test_repairing_a_sound_log_does_not_touch_it(tmp_path):
    place = fill(folder(tmp_path))
    before = (place / store.LOG).stat()
    assert repair(place).sound
    assert (place / store.LOG).stat() == before


def test_a_log_of_which_nothing_can_be_used_says_why(tmp_path):
    place = fill(folder(tmp_path))
    damage(place, 3)
    found = verify(place.rename(place.with_name(f"fff-tvm{TVM}")))
    assert not found.sound
    assert "move it where it belongs" in found.unusable
