"""A little of each of the searches in `tests/robustness/fuzz`, the same each time."""

from __future__ import annotations

import signal

from tests.robustness.fuzz import hdf5, kills, minari, recipes, rlds, watched
from tests.robustness.fuzz.readers import DEMONSTRATIONS, EXPORTS, LOADERS, RLDS
from tests.robustness.fuzz.report import secret_in
from tests.robustness.fuzz.watched import Worker, try_all


def assert_good(worker: Worker, names, paths) -> None:
    with worker:
        found = {(path.name, name): verdict for path, name, verdict in try_all(worker, names, paths)}
    assert {key: verdict for key, verdict in found.items() if not verdict.is_good} == {}
    # Otherwise the inputs would test only one of the two.
    assert {verdict.kind for verdict in found.values()} == {"accepted", "rejected"}


def test_changed_hdf5_files_are_read_or_rejected(tmp_path):
    secret = secret_in(tmp_path)
    files = [path.read_bytes() for path in hdf5.seeds(tmp_path / "seeds")]
    assert_good(Worker(secret), ("validate", "inspect", "convert"), hdf5.mutated(files, 150, 7, tmp_path, secret))
    assert_good(Worker(secret), ("open", *LOADERS, *EXPORTS), hdf5.mutated(files, 25, 6, tmp_path, secret))


def test_changed_files_of_every_kind_of_field_are_read_or_rejected(converted, tmp_path):
    secret = secret_in(tmp_path)
    kinds = [("every_kind", "arrays"), ("every_kind", "encoded"), ("uncovered", "arrays"), ("no_steps", "arrays")]
    files = [converted(name, images).read_bytes() for name, images in kinds]
    assert_good(
        Worker(secret), ("validate", "inspect", "convert", "open"), hdf5.mutated(files, 40, 8, tmp_path, secret)
    )


def test_changed_files_in_the_layouts_of_others_are_read_or_rejected(tmp_path):
    secret = secret_in(tmp_path)
    files = [path.read_bytes() for path in hdf5.demonstrations(tmp_path / "seeds")]
    assert_good(Worker(secret), DEMONSTRATIONS, hdf5.mutated(files, 60, 7, tmp_path, secret))


def test_changed_rlds_datasets_are_read_or_rejected(dataset, tmp_path):
    secret = secret_in(tmp_path)
    folders = [dataset(name) for name in ("plain", "array_record", "in_order", "no_steps")]
    assert_good(watched.tensorflow_worker(secret), RLDS, rlds.mutated(folders, 16, 7, tmp_path))


def test_changed_minari_tables_are_read_or_rejected(tmp_path):
    secret, folders = secret_in(tmp_path), minari.seeds(tmp_path / "seeds")
    assert_good(Worker(secret), ["convert, skipping", "export to minari"], minari.mutated(folders, 30, 7, tmp_path))


def test_changed_recipes_are_applied_or_rejected(tmp_path):
    secret, valid = secret_in(tmp_path), recipes.seeds(tmp_path / "seeds")
    assert_good(watched.tensorflow_worker(secret), ["convert with recipe"], recipes.mutated(valid, 60, 7, tmp_path))


def test_kills_at_random_times_leave_the_old_the_new_or_nothing(tmp_path):
    found = kills.search(8, 7, tmp_path)
    assert sum(count for what, count in found.items() if "killed" in what) == 8


def test_kills_of_an_append_leave_the_old_or_the_new_file(tmp_path):
    found = kills.search_appends(20, 7, tmp_path)
    assert sum(count for what, count in found.items() if "killed" in what) == 20


def test_the_watch_sees_a_crash_a_hang_and_a_file_that_is_opened(tmp_path, monkeypatch):
    """The searches would be worth nothing if they saw nothing."""
    secret = secret_in(tmp_path)
    good = hdf5.seeds(tmp_path / "seeds")[0]
    with Worker(secret) as worker:
        assert worker.try_out("convert", good).kind == "accepted"
        assert worker.try_out("convert", secret / "secret.hdf5").kind == "outside"
        assert worker.try_out("convert", tmp_path / "nowhere.hdf5").kind == "rejected"
        assert worker.process is not None
        worker.process.send_signal(signal.SIGSEGV)
        assert worker.try_out("convert", good).kind == "crash"
        assert worker.try_out("convert", good).kind == "accepted"
        monkeypatch.setattr(watched, "PATIENCE", 0.2)
        worker.process.send_signal(signal.SIGSTOP)
        assert worker.try_out("convert", good).kind == "hang"
