"""EnvLogger's logs that are right in their hashes, and hold what EnvLogger does not write."""

from __future__ import annotations

import random

import cramjam
import h5py
import pytest

import kabuki_rlds
from kabuki_rlds.formats.envlogger.source import EnvLoggerSource
from kabuki_rlds.formats.riegeli import chunks
from tests import riegeli
from tests.places import FIXTURES
from tests.riegeli import Node, datum, field, items, scalar

LOGS = FIXTURES / "envlogger_versions"

OBSERVATIONS = {
    "an unknown field": (field(9, b""), "a message with a field 9"),
    "a list with another field": (field(2, field(2, b"")), "a list with a field that EnvLogger's have not"),
    "a dict by numbers": (field(4, field(2, b"")), "a dict with keys that are no text"),
    "a dict without a key": (field(4, field(1, field(2, scalar(1)))), "an entry of a dict without its key or value"),
    "a dict with a path": (field(4, field(1, field(1, b"a/b") + field(2, scalar(1)))), "a dict with the key 'a/b'"),
    "a list of nothing": (items(2, [b"", b""]), "a list that holds None"),
    "a list of two types": (
        items(2, [scalar(1), field(1, datum((-438,), 1, bytes(4)))]),
        "a list whose items differ in type or shape",
    ),
    "a shape with another field": (
        field(1, field(1, field(3, b"")) + field(2, field(3, b"\1"))),
        "a shape with a field that EnvLogger's have not",
    ),
    "a dimension with another field": (
        field(1, field(1, field(2, b"\x10\1")) + field(2, field(3, b"\1"))),
        "a dimension with a field that EnvLogger's have not",
    ),
    "too few floats": (field(1, datum((2,), 1, bytes(4))), "an array of shape (2,) with another number of elements"),
    "too few integers": (field(1, datum((2,), 3, b"\1")), "an array of shape (2,) with another number of elements"),
    "too few texts": (field(1, datum((2,), 8, b"a")), "an array of shape (2,) with another number of elements"),
    "values of no kind": (field(1, datum((-438,), 0, b"a")), "values of a kind 0, which EnvLogger's have not"),
    "an array of Python's integers": (field(1, datum((1,), 10, b"\1")), "an array of integers without size"),
    "an integer of 9 bytes": (field(1, datum((-438,), 10, b"\1" * 9)), "an integer that 64 bits do not hold"),
    "another wire type": (b"\x09" + bytes(8), "a field of wire type 1, which EnvLogger does not write"),
    "a field that goes on": (b"\x0a\x7f", "a field is longer than its message"),
    "a field that goes back": (b"\x0a" + b"\xff" * 9 + b"\1", "a field is longer than its message"),
    "a length of 70 bits": (b"\x0a" + b"\xff" * 10 + b"\1", "a number is longer than 64 bits"),
    "a number that is cut off": (field(1, datum((-438,), 3, b"\x80")), "a number is cut off"),
    "a number of 80 bits": (field(1, datum((-438,), 3, b"\xff" * 11 + b"\1")), "a number is longer than 64 bits"),
}


def test_the_log_that_is_as_it_should_be(tmp_path):
    records = [riegeli.step(0, scalar(5)), riegeli.step(1, scalar(6)), riegeli.step(2, scalar(7))]
    for indexed in (True, False):
        log = riegeli.log(tmp_path / str(indexed), records, indexed=indexed)
        out = kabuki_rlds.convert(log, tmp_path / f"{indexed}.hdf5").path
        with h5py.File(out) as file:
            assert file["observation"][:].tolist() == [5, 6, 7]
            assert file["episodes/length"][:].tolist() == ([1, 1, 1] if indexed else [3])


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("case", OBSERVATIONS)
def test_a_step_of_what_envlogger_does_not_write_is_named(case, indexed, tmp_path):
    observation, says = OBSERVATIONS[case]
    log = riegeli.log(tmp_path / "log", [riegeli.step(0, observation), riegeli.step(2, observation)], indexed=indexed)
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(log, tmp_path / "out.hdf5")
    assert says in str(error.value)
    assert str(error.value).startswith(f"{log}/20260101T000000000000/steps.riegeli: ")


def test_what_step_fn_gave_may_not_have_the_name_of_a_field(tmp_path):
    custom = field(4, field(1, field(1, b"reward") + field(2, scalar(1))))
    log = riegeli.log(tmp_path / "log", [riegeli.step(0, scalar(5), custom)], indexed=True)
    with pytest.raises(kabuki_rlds.KabukiError, match="what step_fn gave has the key 'reward'"):
        kabuki_rlds.convert(log, tmp_path / "out.hdf5")


@pytest.mark.parametrize(
    ("record", "says"),
    [(field(9, b""), "is none of EnvLogger's: a message with a field 9"), (items(2, [b"", b""]), "holds a list that")],
)
def test_metadata_of_an_episode_that_is_none_is_named(record, says, tmp_path):
    log = riegeli.log(tmp_path / "log", [riegeli.step(0, scalar(5))], indexed=False)
    (shard,) = log.iterdir()
    riegeli.write(shard / "episode_metadata.riegeli", [riegeli.simple([record])])
    with pytest.raises(kabuki_rlds.KabukiError, match=f"log: the metadata of an episode {says}"):
        kabuki_rlds.convert(log, tmp_path / "out.hdf5")


def test_metadata_of_the_log_that_is_none_is_named(tmp_path):
    log = riegeli.log(tmp_path / "log", [riegeli.step(0, scalar(5))], indexed=True)
    riegeli.write(log / "metadata.riegeli", [riegeli.simple([b"\x0a\x7f"])])
    with pytest.raises(kabuki_rlds.KabukiError, match=r"metadata.riegeli: it is no metadata of EnvLogger's"):
        kabuki_rlds.convert(log, tmp_path / "out.hdf5")


def packed(size: int, data: bytes = b"\3abc") -> bytes:
    return riegeli.varint(size) + bytes(cramjam.brotli.compress(data))


CHUNKS = {
    "compression that there is not": (b"\7\2ab", 1, "compression 7 is none that Riegeli has"),
    "no Brotli": (b"b\3\1xx", 1, "cannot be decoded: "),
    "more than it says": (b"b" + riegeli.varint(len(packed(1))) + packed(1), 1, "cannot be decoded: "),
    "less than it says": (b"b" + riegeli.varint(len(packed(9))) + packed(9), 1, "4 bytes where there should be 9"),
    "a terabyte": (b"b\x08" + riegeli.varint(1 << 40) + b"ab", 1, "says that it unpacks to 1,099,511,627,776 bytes"),
    "an end too early": (b"\0\x7f", 1, "it ends too early"),
    "too few records": (b"\0\1\3abc", 2, "says 2 records of 3 bytes, but holds 1 of 3"),
}


@pytest.mark.parametrize("case", CHUNKS)
def test_a_chunk_that_is_not_what_it_says_is_named(case, tmp_path):
    data, count, says = CHUNKS[case]
    log = riegeli.log(tmp_path / "log", [], indexed=False)
    (shard,) = log.iterdir()
    riegeli.write(shard / "steps.riegeli", [riegeli.chunk(riegeli.SIMPLE, data, count, 3)])
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(log, tmp_path / "out.hdf5")
    assert says in str(error.value)
    assert str(error.value).startswith(f"{shard}/steps.riegeli: the chunk at byte 64 ")


#: What a node of a state machine is: the beginning of a message or a record, or a field 3 of some kind.
RECORD, MESSAGE, RAW = 3, 2, 1
TEXT, FIXED, MESSAGE_END = 3 << 3 | 2, 3 << 3 | 5, 3 << 3 | 6


def steps_of(records: int) -> tuple[list[bytes], list[bytes]]:
    """Steps, and each with its length instead of its tag and its length."""
    steps = [riegeli.step(min(i, 1), scalar(i)) for i in range(records)]
    return steps, [step[1:] for step in steps]


@pytest.mark.parametrize("records", [2, 20])
def test_a_transposed_chunk_that_is_as_it_should_be(records, tmp_path):
    log = riegeli.log(tmp_path / "log", [], indexed=False)
    (shard,) = log.iterdir()
    steps, strings = steps_of(records)
    chunk = riegeli.transposed(
        [Node(TEXT, 1, 0), Node(RECORD, 0)],
        [b"".join(reversed(strings))],
        bytes(2 * records - 1),
        records,
        sum(map(len, steps)),
    )
    riegeli.write(shard / "steps.riegeli", [chunk])
    kabuki_rlds.convert(log, tmp_path / "out.hdf5")
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert file["observation"][:].tolist() == list(range(records))


#: Nodes, buffers, and transitions of one record, and what is wrong with them.
MACHINES = {
    "nodes in a circle": (
        [Node(TEXT, 1, 0), Node(RECORD, 2), Node(0, 3, implicit=True), Node(0, 2, implicit=True)],
        b"\1a",
        b"\0\0",
        "its state machine never ends",
    ),
    # Records that begin of themselves, of which there would be no end.
    "a circle of records": ([Node(RECORD, 0, implicit=True)], b"", b"", "its state machine never ends"),
    "more than is taken": ([Node(TEXT, 1, 0), Node(RECORD, 0)], b"\1a\0", b"\0\0", "a buffer is not used up"),
    "less than is taken": ([Node(FIXED, 1, 0), Node(RECORD, 0)], b"abc", b"\0\0", "a buffer is not used up, or too"),
    "strings and numbers": (
        [Node(TEXT, 1, 0), Node(FIXED, 2, 0), Node(RECORD, 0)],
        b"\1aabcd",
        b"\0\0\0",
        "a buffer holds both strings and numbers",
    ),
    "a message that only begins": (
        [Node(TEXT, 1, 0), Node(MESSAGE, 2), Node(RECORD, 0)],
        b"\1a",
        b"\0\0\0",
        "its messages do not end as they begin",
    ),
    "a message that only ends": (
        [Node(MESSAGE_END, 1), Node(TEXT, 2, 0), Node(RECORD, 0)],
        b"\1a",
        b"\0\0\0",
        "its messages do not end as they begin",
    ),
    "a message that ends in one record and begins in the next": (
        [Node(MESSAGE_END, 1), Node(TEXT, 2, 0), Node(RECORD, 3), Node(TEXT, 4, 0), Node(MESSAGE, 5), Node(RECORD, 0)],
        b"\1a\1b",
        bytes(6),
        "its messages do not end as they begin",
    ),
    # What is not transposed lies in the last buffer but one, and its lengths in the last.
    "a field that is of no record": (
        [Node(RAW, 1, 0), Node(0, 0)],
        b"ab",
        b"\0\0",
        "its last record does not begin",
    ),
}


@pytest.mark.parametrize("records", [3, 16])
def test_a_buffer_of_no_field_is_named(records, tmp_path):
    steps, strings = steps_of(records)
    log = riegeli.log(tmp_path / "log", [], indexed=False)
    (shard,) = log.iterdir()
    chunk = riegeli.transposed(
        [Node(TEXT, 1, 0), Node(RECORD, 0)],
        [b"".join(reversed(strings)), b"lost"],
        bytes(2 * records - 1),
        records,
        sum(map(len, steps)),
    )
    riegeli.write(shard / "steps.riegeli", [chunk])
    with pytest.raises(kabuki_rlds.KabukiError, match="a buffer is not used up, or too short"):
        kabuki_rlds.convert(log, tmp_path / "out.hdf5")


@pytest.mark.parametrize("records", [1, 16])
@pytest.mark.parametrize("case", MACHINES)
def test_a_state_machine_that_makes_no_records_is_named(case, records, tmp_path):
    nodes, values, transitions, says = MACHINES[case]
    buffers = [values * records]
    if nodes[0].tag == RAW:
        buffers.append(bytes([len(values)]) * records)
    log = riegeli.log(tmp_path / "log", [], indexed=False)
    (shard,) = log.iterdir()
    # The first node takes no transition.
    chunk = riegeli.transposed(nodes, buffers, (transitions * records)[1:], records)
    riegeli.write(shard / "steps.riegeli", [chunk])
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(log, tmp_path / "out.hdf5")
    assert str(error.value).startswith(f"{shard}/steps.riegeli: the chunk at byte 64 cannot be decoded: {says}")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize("numbers", [b"abc", b"abcdefg"])
def test_a_buffer_beside_a_record_that_is_not_transposed_is_named(numbers, tmp_path):
    """Such a chunk is put together visit by visit."""
    nodes = [Node(FIXED, 1, 0), Node(RECORD, 2), Node(RAW, 3, 1), Node(RECORD, 0)]
    log = riegeli.log(tmp_path / "log", [], indexed=False)
    (shard,) = log.iterdir()
    chunk = riegeli.transposed(nodes, [numbers, b"ab", b"\2"], bytes(3), 2, 7)
    riegeli.write(shard / "steps.riegeli", [chunk])
    with pytest.raises(kabuki_rlds.KabukiError, match="a buffer is not used up, or too short"):
        kabuki_rlds.convert(log, tmp_path / "out.hdf5")


def test_strings_and_numbers_in_one_buffer_are_named_whatever_their_sizes(tmp_path):
    """As many bytes as the strings of all records have, and the number of one."""
    nodes = [Node(TEXT, 1, 0), Node(FIXED, 2, 0), Node(RECORD, 0)]
    log = riegeli.log(tmp_path / "log", [], indexed=False)
    (shard,) = log.iterdir()
    chunk = riegeli.transposed(nodes, [b"\1a" * 16 + b"abcd"], bytes(3 * 16 - 1), 16, 16 * (2 + 1 + 5))
    riegeli.write(shard / "steps.riegeli", [chunk])
    with pytest.raises(kabuki_rlds.KabukiError, match="a buffer holds both strings and numbers"):
        kabuki_rlds.convert(log, tmp_path / "out.hdf5")


@pytest.mark.parametrize("records", [1, 16])
def test_a_number_that_never_ends_is_named(records, tmp_path):
    log = riegeli.log(tmp_path / "log", [], indexed=False)
    (shard,) = log.iterdir()
    # In what a chunk says of itself, and in the length of a text.
    for made in (
        riegeli.chunk(riegeli.TRANSPOSED, b"\0" + b"\xff" * 20000, records, 1),
        riegeli.transposed([Node(TEXT, 1, 0), Node(RECORD, 0)], [b"\1a" + b"\xff" * 20000], bytes(7), records),
    ):
        riegeli.write(shard / "steps.riegeli", [made])
        with pytest.raises(kabuki_rlds.KabukiError, match="byte 64 cannot be decoded: a number is longer than 64 bits"):
            kabuki_rlds.convert(log, tmp_path / "out.hdf5")


#: What each of these changes to a chunk is found by is another line.
_FOUND_APART = (149, 173, 217, 239, 263, 296, 590, 1186, 1392, 1402)


def test_transposed_chunks_that_are_changed_are_read_or_named(tmp_path):
    """Each is signed again, so that it is not the hash that tells."""
    named = set()
    # What EnvLogger wrote, of few records that are not compressed, and of many that are.
    for steps, seeds in (
        (LOGS.parent / "transposed.riegeli", (*range(60), *_FOUND_APART)),
        (next((LOGS / "1.2").glob("*/steps.riegeli")), range(60)),
    ):
        (header,) = [
            found for found in chunks.headers(steps) if isinstance(found, chunks.ChunkHeader) and found.has_records
        ]
        ((_, data),) = chunks.read(steps, [header])
        assert data is not None
        log = riegeli.log(tmp_path / steps.parent.name, [], indexed=False)
        (shard,) = log.iterdir()
        for seed in seeds:
            whole = riegeli.chunk(
                riegeli.TRANSPOSED, changed(data, random.Random(seed)), header.num_records, header.decoded_bytes
            )
            riegeli.write(shard / "steps.riegeli", [whole])
            try:
                kabuki_rlds.convert(log, tmp_path / "out.hdf5", overwrite=True)
            except kabuki_rlds.KabukiError as e:
                assert str(e).startswith(f"{log}"), e
                named.add(str(e).rpartition(": ")[2])
    assert len(named) > 10


def changed(data: bytes, rng: random.Random) -> bytes:
    """A few bytes of a chunk, most of them where it begins."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        made[rng.randrange(min(len(made), rng.choice((20, 200, 1 << 20))))] = rng.choice(
            (0, 1, 2, 3, 4, 127, 128, 255, rng.randrange(256))
        )
    return bytes(made)


def test_a_folder_without_a_log_is_none(tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match="no log of EnvLogger's here"):
        EnvLoggerSource(tmp_path)


def test_metadata_that_is_not_of_one_type_is_named(tmp_path):
    records = [riegeli.step(0, scalar(5)), riegeli.step(0, scalar(6))]
    log = riegeli.log(tmp_path / "log", records, indexed=False)
    (shard,) = log.iterdir()
    texts = [scalar(1), field(1, datum((-438,), 8, b"text"))]
    riegeli.write(shard / "episode_metadata.riegeli", [riegeli.simple(texts)])
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{log}: episode 1: "):
        kabuki_rlds.convert(log, tmp_path / "out.hdf5")
