"""Generated hostile HDF5 files: each is read or rejected, without a crash, a hang, or more than 1 GiB of memory.

This is a sample. `make test-zoo` reads all generated files, and test files of other projects.
"""

from __future__ import annotations

import contextlib
import random

import h5py
import numpy as np
import pytest

import kabuki_rlds
from tests import handmade
from tests.robustness.fuzz.watched import Worker, try_all
from tests.zoo import base_files, hostile_files
from tests.zoo.__main__ import READERS
from tests.zoo.hdf5_bytes import Bytes, lookup3

#: Parts of the names of files that crashed the process or used up the memory before they were rejected.
_KNOWN = (
    "vlen_0_1_size_1.", "type_3_in_itself", "type_2_in_a_loop", "group_info_version_127", "records_of_0",
    "nodes_of_4294967295", "layout_50_rank_0", "dataset_array_nested_4615", "attribute_sequence_nested_7500",
    "virtual_of_2000000000000001", "heaps_0_1_share",
)  # fmt: skip


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return hostile_files.write_all(tmp_path_factory.mktemp("generated"), changes=20)


def test_generated_files_are_read_or_rejected(generated):
    known = [next(path for path in generated if part in path.name) for part in _KNOWN]
    sample = [*generated[:2], *known, *random.Random(0).sample(generated, 60)]
    with Worker(None) as worker:
        found = {(path.name, reader): verdict for path, reader, verdict in try_all(worker, READERS, sample)}
    assert {key: verdict for key, verdict in found.items() if not verdict.is_good} == {}
    # The valid files are accepted, so the others are rejected because of their changes.
    assert {found[path.name, "convert"].kind for path in generated[:2]} == {"accepted"}
    assert sum(verdict.kind == "rejected" for verdict in found.values()) > len(sample)


def test_changes_keep_checksums_valid(tmp_path):
    assert lookup3(b"") == bytes.fromhex("efbeadde")
    path = base_files.write_all(tmp_path)["latest"]
    file = Bytes(path)
    assert {structure.signature for structure in file.structures} >= {b"OHDR", b"FRHP", b"FHDB", b"BTHD", b"EAHD"}
    changed = tmp_path / "changed.hdf5"
    for structure in file.of(b"BTHD"):
        # Another valid value: the percentage of records at which a node is split.
        changed.write_bytes(file.changed((structure.at + 14, b"\x62")))
        with h5py.File(changed) as opened:
            assert len(opened["info"]) > 8 and len(opened["more/limited_index"].attrs) == 12


def test_opaque_data_with_the_dtype_of_strings_is_not_taken_for_image_files(tmp_path):
    path = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with h5py.File(path, "r+") as file:
        file.create_dataset("more", (8,), h5py.opaque_dtype(np.dtype("S21")))
    assert kabuki_rlds.validate(path) == []


@pytest.mark.parametrize("offset", [(1 << 64) - 2, 1 << 63, (1 << 63) - 1, 1 << 40, 0], ids=hex)
def test_chunk_at_a_wrong_offset_is_read_or_damaged(offset, tmp_path):
    file = Bytes(base_files.write_all(tmp_path)["latest"])
    for index in file.of(b"EAIB"):
        # The addresses of the first chunks follow the address of the header.
        changed = tmp_path / "changed.hdf5"
        changed.write_bytes(file.changed((index.at + 14, offset.to_bytes(8, "little"))))
        for action in (
            kabuki_rlds.validate,
            lambda path: kabuki_rlds.convert(path, tmp_path / "out.hdf5", overwrite=True),
        ):
            with contextlib.suppress(kabuki_rlds.DamagedDataError):
                action(changed)
