"""Assembles the records of any transposed chunk.

The state machine is run first: one table look-up per transition gives the sequence of its nodes. All bytes of all
records are then written node by node, with one operation per node.
"""

from __future__ import annotations

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.formats.riegeli.byte_reader import runs, string_sizes, varints, windows
from kabuki_rlds.formats.riegeli.state_machine import NON_PROTO, RECORD_START, SUBMESSAGE_START, StateMachine, StateNode


def assemble(machine: StateMachine) -> tuple[np.ndarray, np.ndarray]:
    """Assembles the records of a chunk.

    Returns:
      the bytes of all records, uint8, (bytes,), and their offsets and the end, int64, (records + 1,).

    Raises:
      IndexError, ValueError: the chunk is damaged.
    """
    return write_records(machine, _node_sequence(machine))


def _node_sequence(machine: StateMachine) -> np.ndarray:
    """Runs the state machine, and returns its nodes in order: int64."""
    # After a transition, nodes follow that need no transition. They depend only on the node before and on the
    # transition, so each run of such nodes is looked up once.
    known_runs: list[list[int]] = []
    known: dict[int, tuple[int, int]] = {}
    first, end = _run(machine, machine.first, 1 if machine.is_implicit[machine.first] else 0)
    known_runs.append(first)
    taken = [0]
    for transition in machine.transitions:
        key = end << 8 | transition
        run = known.get(key)
        if run is None:
            node = machine.next_node[end] + (transition >> 2)
            run_nodes, after = _run(machine, node, (transition & 3) + machine.is_implicit[node])
            run = known[key] = (len(known_runs), after)
            known_runs.append(run_nodes)
        taken.append(run[0])
        end = run[1]
    lengths = np.array([len(run) for run in known_runs])
    begins = row_splits(lengths)
    numbers = np.array(taken)
    nodes = np.array([node for run in known_runs for node in run], np.int64)
    return nodes[runs(begins[numbers], lengths[numbers])]


def _run(machine: StateMachine, node: int, more: int) -> tuple[list[int], int]:
    """Returns the nodes from `node` on until the next transition, and the last of them."""
    nodes = [node]
    while more:
        node = machine.next_node[node]
        more -= not machine.is_implicit[node]
        nodes.append(node)
    return nodes, node


def write_records(machine: StateMachine, sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Writes the records for a known sequence of nodes.

    Args:
      machine: the state machine. Its buffers hold the values of exactly these records.
      sequence: the nodes in order: int64.

    Returns, raises:
      as `assemble`.
    """
    nodes = machine.nodes
    # For each node, its positions in the sequence.
    order = np.argsort(sequence.astype(np.uint16 if len(nodes) < 1 << 16 else np.int64), kind="stable")
    bounds = np.searchsorted(sequence[order], np.arange(len(nodes) + 1))
    rows_of = [order[a:b] for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    text_bytes = np.array([len(node.text) for node in nodes], np.int64)
    sizes = text_bytes[sequence]
    fields = _value_ranges(machine, rows_of, sizes)
    headers = _close_messages(nodes, rows_of, sequence, sizes, text_bytes)
    # The sequence describes the records from the last byte to the first.
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    out = np.zeros(total, np.uint8)
    begins = total - ends
    for node, rows in zip(nodes, rows_of, strict=True):
        if not node.ends_message:
            _write_text(out, begins[rows], node.text)
    for node, rows, (buffer, starts, counts) in fields:
        _copy(out, begins[rows] + len(node.text), buffer, starts, counts, node.is_varint)
    for node, rows, lengths in headers:
        _write_text(out, begins[rows], node.text)
        _write_varints(out, begins[rows] + len(node.text), lengths)
    is_start = np.array([node.kind in (RECORD_START, NON_PROTO) for node in nodes], bool)
    starts = begins[is_start[sequence]][::-1]
    if len(sequence) and not is_start[sequence[-1]]:
        raise ValueError("its last record does not begin")
    return out, np.append(starts, total)


#: A buffer, and the offset and number of bytes in it for each position of a node in the sequence.
_ValueRanges = tuple[np.ndarray, np.ndarray, np.ndarray]


def _value_ranges(
    machine: StateMachine, rows_of: list[np.ndarray], sizes: np.ndarray
) -> list[tuple[StateNode, np.ndarray, _ValueRanges]]:
    """Returns the bytes that nodes take from their buffers, and adds their number to `sizes`.

    Args:
      machine: the state machine.
      rows_of: the positions of each node in the sequence.
      sizes: number of bytes that are written at each position of the sequence.

    Returns:
      node, its positions in the sequence, and its bytes, for each node with a buffer.
    """
    users: dict[int, list[int]] = {}
    for number, node in enumerate(machine.nodes):
        if node.buffer is not None and len(rows_of[number]):
            users.setdefault(node.buffer, []).append(number)
    used = set(users)
    if any(machine.nodes[number].kind == NON_PROTO for numbers in users.values() for number in numbers):
        # The lengths of records that are not Protocol Buffers.
        used.add(len(machine.buffers) - 1)
    if any(len(buffer) for index, buffer in enumerate(machine.buffers) if index not in used):
        raise ValueError("a buffer is not used up, or too short")
    found = []
    for index, numbers in users.items():
        buffer = machine.buffers[index]
        nodes = [machine.nodes[number] for number in numbers]
        rows = np.concatenate([rows_of[number] for number in numbers])
        if len({node.size is None for node in nodes}) > 1:
            raise ValueError("a buffer holds both strings and numbers")
        if nodes[0].size is None:
            in_order = np.sort(rows)
            if nodes[0].kind == NON_PROTO:
                counts = varints(machine.buffers[-1]).astype(np.int64)
                if len(counts) != len(in_order):
                    raise ValueError("it has not as many records as lengths of records")
            else:
                counts = string_sizes(buffer, len(in_order))
        else:
            counts = np.repeat([node.size for node in nodes], [len(rows_of[number]) for number in numbers])
            by_position = np.argsort(rows, kind="stable")
            in_order, counts = rows[by_position], counts[by_position]
        splits = row_splits(counts)
        if splits[-1] != len(buffer):
            raise ValueError("a buffer is not used up, or too short")
        for node, number in zip(nodes, numbers, strict=True):
            at = np.searchsorted(in_order, rows_of[number])
            sizes[rows_of[number]] += counts[at]
            found.append((node, rows_of[number], (buffer, splits[at], counts[at])))
    return found


def _close_messages(
    nodes: list[StateNode], rows_of: list[np.ndarray], sequence: np.ndarray, sizes: np.ndarray, text_bytes: np.ndarray
) -> list[tuple[StateNode, np.ndarray, np.ndarray]]:
    """Returns tags and lengths of submessages, which are written before them, and adds their size to `sizes`.

    Returns:
      the node with the tag, the positions in the sequence where it is written, and the lengths of the submessages.
    """
    is_end = np.array([node.ends_message for node in nodes], bool)[sequence]
    is_start = np.array([node.kind == SUBMESSAGE_START for node in nodes], bool)[sequence]
    # The end of a submessage comes first in the sequence, and its tag is written at its start.
    sizes[is_end] = 0
    depth = np.cumsum(is_end.astype(np.int64) - is_start)
    is_record = np.array([node.kind in (RECORD_START, NON_PROTO) for node in nodes], bool)[sequence]
    # A submessage starts and ends in the same record.
    if len(depth) and (depth.min() < 0 or depth[-1] or depth[is_record].any()):
        raise ValueError("its messages do not end as they begin")
    end_rows, start_rows = np.flatnonzero(is_end), np.flatnonzero(is_start)
    end_depth, start_depth = depth[end_rows], depth[start_rows] + 1
    found = []
    for level in range(int(end_depth.max(initial=0)), 0, -1):
        ends, starts = end_rows[end_depth == level], start_rows[start_depth == level]
        written = np.cumsum(sizes)
        lengths = written[starts] - written[ends]
        tags = sequence[ends]
        sizes[starts] = text_bytes[tags] + _varint_sizes(lengths)
        for tag in np.unique(tags).tolist():
            chosen = tags == tag
            found.append((nodes[tag], starts[chosen], lengths[chosen]))
    return found


def _write_text(out: np.ndarray, at: np.ndarray, text: bytes) -> None:
    for i, byte in enumerate(text):
        out[at + i] = byte


def _write_varints(out: np.ndarray, at: np.ndarray, values: np.ndarray) -> None:
    sizes = _varint_sizes(values)
    for i in range(int(sizes.max(initial=0))):
        more = sizes > i + 1
        here = sizes > i
        out[at[here] + i] = ((values[here] >> 7 * i) & 0x7F) | (more[here] * 0x80)


def _copy(
    out: np.ndarray, at: np.ndarray, buffer: np.ndarray, starts: np.ndarray, counts: np.ndarray, is_varint: bool
) -> None:
    """Copies `counts` bytes from `starts` in `buffer` to `at` in `out`."""
    for count in np.unique(counts).tolist():
        if not count:
            continue
        chosen = counts == count
        rows = windows(buffer, count)[starts[chosen]]
        if is_varint:
            rows[:, :-1] |= 0x80
        windows(out, count)[at[chosen]] = rows


def _varint_sizes(values: np.ndarray) -> np.ndarray:
    """Returns the size in bytes of each number as a varint. Numbers must be below 2**32."""
    return np.searchsorted([1 << 7 * i for i in range(1, 5)], values, side="right") + 1
