"""A little of each of the searches in `tests/robustness/fuzz`, the same each time."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.robustness.fuzz import hdf5, kills, rlds, watched
from tests.robustness.fuzz.watched import Kind, Verdict, try_all


def tried(kind: Kind, paths, secret: Path) -> dict[str, Verdict]:
    return {path.name: verdict for path, verdict in try_all(kind, paths, secret)}


def assert_good(found: dict[str, Verdict]) -> None:
    assert {name: verdict for name, verdict in found.items() if not verdict.is_good} == {}
    # Else it would have looked at nothing but one of them.
    assert {verdict.kind for verdict in found.values()} == {"converted", "refused"}


def test_changed_hdf5_files_are_converted_or_refused(tmp_path):
    secret = hdf5.secret_in(tmp_path)
    files = [path.read_bytes() for path in hdf5.seeds(tmp_path / "seeds")]
    assert_good(tried("hdf5", hdf5.mutated(files, 400, 7, tmp_path, secret), secret))


def test_changed_files_of_every_kind_of_field_are_converted_or_refused(converted, tmp_path):
    secret = hdf5.secret_in(tmp_path)
    kinds = [("every_kind", "arrays"), ("every_kind", "encoded"), ("uncovered", "arrays"), ("no_steps", "arrays")]
    files = [converted(name, images).read_bytes() for name, images in kinds]
    assert_good(tried("hdf5", hdf5.mutated(files, 40, 8, tmp_path, secret), secret))


def test_changed_files_in_the_layouts_of_others_are_converted_or_refused(tmp_path):
    secret = hdf5.secret_in(tmp_path)
    files = [path.read_bytes() for path in hdf5.demonstrations(tmp_path / "seeds")]
    assert_good(tried("hdf5", hdf5.mutated(files, 60, 7, tmp_path, secret), secret))


def test_changed_rlds_datasets_are_converted_or_refused(dataset, tmp_path):
    secret = hdf5.secret_in(tmp_path)
    folders = [dataset(name) for name in ("plain", "array_record", "in_order", "no_steps")]
    assert_good(tried("rlds", rlds.mutated(folders, 40, 7, tmp_path), secret))


def test_kills_at_random_times_leave_the_old_the_new_or_nothing(tmp_path):
    found = kills.search(8, 7, tmp_path)
    assert sum(count for what, count in found.items() if "killed" in what) == 8


def test_kills_of_an_append_leave_the_old_or_the_new_file(tmp_path):
    found = kills.search_appends(20, 7, tmp_path)
    assert sum(count for what, count in found.items() if "killed" in what) == 20


def test_the_watch_sees_a_crash_a_hang_and_a_file_that_is_opened(tmp_path, monkeypatch):
    """The searches would be worth nothing if they saw nothing."""
    secret = hdf5.secret_in(tmp_path)
    good = hdf5.seeds(tmp_path / "seeds")[0]
    with watched.Worker("hdf5", secret) as worker:
        assert worker.try_out(good).kind == "converted"
        assert worker.try_out(secret / "secret.hdf5").kind == "outside"
        assert worker.try_out(tmp_path / "nowhere.hdf5").kind == "refused"
        assert worker.process is not None
        worker.process.send_signal(signal.SIGSEGV)
        assert worker.try_out(good).kind == "crash"
        assert worker.try_out(good).kind == "converted"
        monkeypatch.setattr(watched, "PATIENCE", 0.2)
        worker.process.send_signal(signal.SIGSTOP)
        assert worker.try_out(good).kind == "hang"
