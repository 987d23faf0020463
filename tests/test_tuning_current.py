"""Records that nobody uses are told apart from the others, and told of."""

from __future__ import annotations

from dataclasses import replace

from tuning_log_support import TVM, fill, folder, kernel, record

from deploy.targets import in_portable_c, load_target
from deploy.tuning import store
from deploy.tuning.current import fingerprints, stale_folders, stale_note

M4 = load_target("cortex-m4-mps2")


def test_a_target_is_current_with_any_number_of_threads(tmp_path):
    host = load_target("host")
    assert {replace(host, threads=n).fingerprint() for n in (1, 2, 16)} <= fingerprints(host)
    places = [
        fill(store.folder_for(tmp_path, replace(host, threads=3))),
        fill(folder(tmp_path, "host", "fff")),
        fill(folder(tmp_path, "host", host.fingerprint(), "0.1")),
        fill(folder(tmp_path, "unheard-of", "fff")),
        fill(folder(tmp_path, "unheard-of", "fff", "0.1")),
    ]
    assert stale_folders(places) == {
        places[1]: "of another fingerprint", places[2]: "of TVM 0.1", places[4]: "of TVM 0.1",
    }  # fmt: skip


def test_a_note_says_what_is_not_used(tmp_path):
    assert stale_note(M4, tmp_path) == ""
    fill(folder(tmp_path, M4.name, "fff"))
    fill(folder(tmp_path, M4.name, M4.fingerprint(), "0.1"), kernel(1), record(1, 8, 5))
    fill(folder(tmp_path, "another", "fff"))
    note = stale_note(M4, tmp_path)
    assert note.startswith(
        f"7 records of target cortex-m4-mps2 in {tmp_path} are of another fingerprint or TVM version"
    )
    assert stale_note(in_portable_c(M4), tmp_path) == "", "C is never tuned"
    fill(folder(tmp_path, M4.name, M4.fingerprint(), TVM), kernel(1), record(1, 8, 5))
    assert stale_note(M4, tmp_path) == "", "there are some that are used"


def test_one_record_is_one_record(tmp_path):
    fill(folder(tmp_path, M4.name, "fff"), kernel(1), record(1, 8, 5))
    assert " is of another fingerprint" in stale_note(M4, tmp_path)
