"""The records of a transposed chunk, put together one node of its state machine after the other.

First the nodes that are visited are found, by one table look-up a transition; then all
bytes of all records are placed at once, node by node. This takes any chunk.
"""

from __future__ import annotations

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.formats.riegeli.byte_reader import runs, string_sizes, varints, windows
from kabuki_rlds.formats.riegeli.state_machine import NON_PROTO, RECORD_START, SUBMESSAGE_START, StateMachine, StateNode


def assemble(machine: StateMachine) -> tuple[np.ndarray, np.ndarray]:
    """Puts the records together.

    Returns:
      The bytes of all records, uint8, and where each begins, and the end, int64.

    Raises:
      IndexError, ValueError: the chunk is not what it should be.
    """
    return place(machine, _visits(machine))


def _visits(machine: StateMachine) -> np.ndarray:
    """The nodes in the order in which they are visited: int64."""
    # After a transition a run of nodes follows that needs no other. Where it goes
    # depends on the node before and the transition alone, so each is found once.
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
    """The nodes that are visited from one on until the next transition, and the last of them."""
    nodes = [node]
    while more:
        node = machine.next_node[node]
        more -= not machine.is_implicit[node]
        nodes.append(node)
    return nodes, node


def place(machine: StateMachine, visits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Puts the records together, of which the nodes are known.

    Args:
      machine: the state machine, with buffers that hold the values of these records.
      visits: the nodes in the order in which they are visited: int64.

    Returns, raises:
      As `assemble`.
    """
    nodes = machine.nodes
    # Visits of one node, in order, are the rows of what it writes.
    order = np.argsort(visits.astype(np.uint16 if len(nodes) < 1 << 16 else np.int64), kind="stable")
    bounds = np.searchsorted(visits[order], np.arange(len(nodes) + 1))
    rows_of = [order[a:b] for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    text_bytes = np.array([len(node.text) for node in nodes], np.int64)
    sizes = text_bytes[visits]
    fields = _places(machine, rows_of, sizes)
    headers = _close_messages(nodes, rows_of, visits, sizes, text_bytes)
    # Records are written from their end, so what is visited first comes last.
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
    starts = begins[is_start[visits]][::-1]
    if len(visits) and not is_start[visits[-1]]:
        raise ValueError("its last record does not begin")
    return out, np.append(starts, total)


#: A field's buffer, where the bytes of each visit begin in it, and how many they are.
_Place = tuple[np.ndarray, np.ndarray, np.ndarray]


def _places(
    machine: StateMachine, rows_of: list[np.ndarray], sizes: np.ndarray
) -> list[tuple[StateNode, np.ndarray, _Place]]:
    """Where in its buffer each visit finds its bytes; adds how many to `sizes`."""
    users: dict[int, list[int]] = {}
    for number, node in enumerate(machine.nodes):
        if node.buffer is not None and len(rows_of[number]):
            users.setdefault(node.buffer, []).append(number)
    used = set(users)
    if any(machine.nodes[number].kind == NON_PROTO for numbers in users.values() for number in numbers):
        # The lengths of what is not transposed.
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
            by_visit = np.argsort(rows, kind="stable")
            in_order, counts = rows[by_visit], counts[by_visit]
        splits = row_splits(counts)
        if splits[-1] != len(buffer):
            raise ValueError("a buffer is not used up, or too short")
        for node, number in zip(nodes, numbers, strict=True):
            at = np.searchsorted(in_order, rows_of[number])
            sizes[rows_of[number]] += counts[at]
            found.append((node, rows_of[number], (buffer, splits[at], counts[at])))
    return found


def _close_messages(
    nodes: list[StateNode], rows_of: list[np.ndarray], visits: np.ndarray, sizes: np.ndarray, text_bytes: np.ndarray
) -> list[tuple[StateNode, np.ndarray, np.ndarray]]:
    """What stands before each message within a message: its tag and its length, which `sizes` then includes.

    Returns:
      The node that says the tag, the visits at which it is written, and the lengths of the messages.
    """
    is_end = np.array([node.ends_message for node in nodes], bool)[visits]
    is_start = np.array([node.kind == SUBMESSAGE_START for node in nodes], bool)[visits]
    # The end of a message is visited first, and its tag is written where it starts.
    sizes[is_end] = 0
    depth = np.cumsum(is_end.astype(np.int64) - is_start)
    is_record = np.array([node.kind in (RECORD_START, NON_PROTO) for node in nodes], bool)[visits]
    # One that ended in a record begins in it too.
    if len(depth) and (depth.min() < 0 or depth[-1] or depth[is_record].any()):
        raise ValueError("its messages do not end as they begin")
    end_rows, start_rows = np.flatnonzero(is_end), np.flatnonzero(is_start)
    end_depth, start_depth = depth[end_rows], depth[start_rows] + 1
    found = []
    for level in range(int(end_depth.max(initial=0)), 0, -1):
        ends, starts = end_rows[end_depth == level], start_rows[start_depth == level]
        written = np.cumsum(sizes)
        lengths = written[starts] - written[ends]
        tags = visits[ends]
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
    """Copies a run of bytes from `buffer` to `out` for each visit."""
    for count in np.unique(counts).tolist():
        if not count:
            continue
        chosen = counts == count
        rows = windows(buffer, count)[starts[chosen]]
        if is_varint:
            rows[:, :-1] |= 0x80
        windows(out, count)[at[chosen]] = rows


def _varint_sizes(values: np.ndarray) -> np.ndarray:
    """How many bytes each number takes as a varint; they are less than 2**32."""
    return np.searchsorted([1 << 7 * i for i in range(1, 5)], values, side="right") + 1
