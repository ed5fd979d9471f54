"""The records of a transposed chunk, put together many at once where many are alike.

The steps of a log mostly differ in their values alone: the state machine goes the same
way for each. So the ways are told apart, record by record, and all records of one way
(and with strings of the same lengths) are rows of one matrix of bytes.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.formats.riegeli import assemble_stepwise
from kabuki_rlds.formats.riegeli.byte_reader import runs, string_sizes, windows
from kabuki_rlds.formats.riegeli.state_machine import NON_PROTO, RECORD_START, SUBMESSAGE_START, StateMachine, StateNode
from kabuki_rlds.formats.varint import varint

#: So many records of a kind are put together at once; what is of a smaller kind is odd.
_ALIKE = 8
#: With fewer records than this to a way on average, there is nothing to gain.
_FEW = 4

#: Where a record begins in the state machine: the node before, and how many nodes follow without a transition.
_State = tuple[int, int]


def assemble(machine: StateMachine, num_records: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Puts the records together, or finds that too few go the same way.

    Returns:
      The bytes of all records, uint8, and where each begins, and the end, int64; None
      where too few do.

    Raises:
      IndexError, ValueError: the chunk is not what it should be.
    """
    if any(node.kind == NON_PROTO for node in machine.nodes):
        return None
    found = _ways(machine, max(1, num_records // _FEW))
    if found is None:
        return None
    ways, taken = found
    values = _Values(machine, ways, taken)
    lengths = np.zeros(len(taken), np.int64)
    is_odd = np.ones(len(taken), bool)
    parts = []
    for number in np.flatnonzero(np.bincount(taken, minlength=len(ways)) >= _ALIKE).tolist():
        for rows, sizes in values.kinds(number):
            if len(rows) >= _ALIKE:
                parts.append((rows, _rows(machine, ways[number], sizes, values, rows)))
                lengths[rows] = parts[-1][1].shape[1]
                is_odd[rows] = False
    odd = np.flatnonzero(is_odd)
    if len(odd):
        # Each other record is different: they are put together visit by visit.
        visited = np.concatenate([ways[number] for number in taken[odd].tolist()])
        rest, rest_splits = assemble_stepwise.place(dataclasses.replace(machine, buffers=values.of(odd)), visited)
        lengths[odd] = np.diff(rest_splits)[::-1]
    # What is visited first is the last record.
    splits = row_splits(lengths[::-1])
    out = np.empty(splits[-1], np.uint8)
    begins = splits[:-1][::-1]
    for rows, part in parts:
        if part.shape[1]:
            windows(out, part.shape[1])[begins[rows]] = part
    if len(odd):
        out[runs(begins[odd][::-1], np.diff(rest_splits))] = rest
    return out, splits


def _ways(machine: StateMachine, most: int) -> tuple[list[list[int]], np.ndarray] | None:
    """The ways that records go through the state machine, and the way of each record.

    Returns:
      The nodes of each way, and the number of the way of each record; None where there are more than `most`.
    """
    ways: list[list[int]] = []
    taken: list[int] = []
    # By where a record begins: what transitions it takes, its way, and where the next one begins.
    known: dict[_State | None, list[tuple[bytes, int, _State]]] = {}
    transitions = machine.transitions
    state: _State | None = None
    at = 0
    while at < len(transitions) or state is None or state[1]:
        ahead = known.setdefault(state, [])
        for place, (pattern, number, after) in enumerate(ahead):
            if transitions.startswith(pattern, at):
                at += len(pattern)
                taken.append(number)
                state = after
                if place:
                    # What is found often comes to be tried first.
                    ahead[place - 1], ahead[place] = ahead[place], ahead[place - 1]
                break
        else:
            way, after, end = _walk(machine, state, at)
            if len(ways) == most:
                return None
            ahead.append((transitions[at:end], len(ways), after))
            ways.append(way)
    return ways, np.array(taken, np.int64)


def _walk(machine: StateMachine, state: _State | None, at: int) -> tuple[list[int], _State, int]:
    """Goes the way of one record: its nodes, where the next record begins, and the next transition."""
    way: list[int] = []
    node, more = machine.first, int(machine.is_implicit[machine.first])
    going = state is not None
    if state is not None:
        node, more = state
    while True:
        if going:
            node = machine.next_node[node]
            if more:
                more -= not machine.is_implicit[node]
            else:
                node += machine.transitions[at] >> 2
                more = (machine.transitions[at] & 3) + machine.is_implicit[node]
                at += 1
        going = True
        way.append(node)
        if machine.nodes[node].kind == RECORD_START:
            return way, (node, more), at


class _Values:
    """Where the values of each record begin in the buffers.

    Args:
      machine: the state machine.
      ways: the nodes of each way.
      taken: the way of each record.
    """

    def __init__(self, machine: StateMachine, ways: list[list[int]], taken: np.ndarray):
        self._taken = taken
        self._nodes = machine.nodes
        self._ways = ways
        self._buffers = machine.buffers
        #: For each buffer where the bytes of each record begin, and the end.
        self.begins: list[np.ndarray] = []
        #: For those with strings, the number of the first string of each record, and where each string begins.
        self.firsts: dict[int, np.ndarray] = {}
        self.splits: dict[int, np.ndarray] = {}
        numbers, strings = (np.zeros((len(machine.buffers), len(ways)), np.int64) for _ in range(2))
        for way, nodes in enumerate(ways):
            for number in nodes:
                node = machine.nodes[number]
                if node.buffer is not None and node.size is None:
                    strings[node.buffer, way] += 1
                elif node.buffer is not None:
                    numbers[node.buffer, way] += node.size
        for index, buffer in enumerate(machine.buffers):
            if strings[index].any() and numbers[index].any():
                raise ValueError("a buffer holds both strings and numbers")
            if strings[index].any():
                splits = row_splits(strings[index][taken])
                self.firsts[index] = splits[:-1]
                self.splits[index] = row_splits(string_sizes(buffer, int(splits[-1])))
                splits = self.splits[index][splits]
            else:
                splits = row_splits(numbers[index][taken])
            if splits[-1] != len(buffer):
                raise ValueError("a buffer is not used up, or too short")
            self.begins.append(splits)

    def of(self, rows: np.ndarray) -> list[np.ndarray]:
        """The buffers with nothing in them but the values of some records."""
        return [
            buffer[runs(begins[rows], begins[rows + 1] - begins[rows])]
            for buffer, begins in zip(self._buffers, self.begins, strict=True)
        ]

    def kinds(self, number: int) -> list[tuple[np.ndarray, tuple[int, ...]]]:
        """The records of a way, apart by the sizes of their strings: the records, and the sizes."""
        rows = np.flatnonzero(self._taken == number)
        strings = [n for n in self._ways[number] if self._nodes[n].buffer in self.firsts]
        if not strings:
            return [(rows, ())]
        seen: dict[int, int] = {}
        columns = []
        for node in strings:
            index = self._nodes[node].buffer
            assert index is not None
            place = seen.get(index, 0)
            seen[index] = place + 1
            which = self.firsts[index][rows] + place
            columns.append(self.splits[index][which + 1] - self.splits[index][which])
        sizes = np.stack(columns, axis=1)
        if (sizes == sizes[0]).all():
            return [(rows, tuple(sizes[0].tolist()))]
        distinct, which = np.unique(sizes, axis=0, return_inverse=True)
        which = which.reshape(-1)
        order = np.argsort(which, kind="stable")
        bounds = np.searchsorted(which[order], np.arange(len(distinct) + 1)).tolist()
        return [
            (rows[order[a:b]], tuple(each))
            for each, a, b in zip(distinct.tolist(), bounds[:-1], bounds[1:], strict=True)
        ]


def _rows(
    machine: StateMachine, way: list[int], sizes: tuple[int, ...], values: _Values, rows: np.ndarray
) -> np.ndarray:
    """The bytes of the records of one kind: uint8, (records, bytes)."""
    texts: list[tuple[bytes, int]] = []
    # What is taken from buffers: the node, the place in what the record has there, how
    # many bytes, and where they begin, counted from the end of the record.
    parts: list[tuple[StateNode, int, int, int]] = []
    open_messages: list[tuple[StateNode, int]] = []
    taken: dict[int, int] = {}
    string_size = iter(sizes)
    written = 0
    for number in way:
        node = machine.nodes[number]
        if node.ends_message:
            open_messages.append((node, written))
            continue
        if node.kind == SUBMESSAGE_START:
            if not open_messages:
                raise ValueError("its messages do not end as they begin")
            opener, before = open_messages.pop()
            text = opener.text + varint(written - before)
            written += len(text)
            texts.append((text, written))
            continue
        if node.buffer is not None:
            size = next(string_size) if node.size is None else node.size
            written += size
            place = taken.get(node.buffer, 0)
            taken[node.buffer] = place + (1 if node.size is None else size)
            parts.append((node, place, size, written))
        written += len(node.text)
        texts.append((node.text, written))
    if open_messages:
        raise ValueError("its messages do not end as they begin")
    template = bytearray(written)
    for text, end in texts:
        template[written - end : written - end + len(text)] = text
    out = np.tile(np.frombuffer(bytes(template), np.uint8), (len(rows), 1))
    for node, place, size, end in parts:
        assert node.buffer is not None
        if node.size is None:
            begins = values.splits[node.buffer][values.firsts[node.buffer][rows] + place]
        else:
            begins = values.begins[node.buffer][rows] + place
        at = written - end
        out[:, at : at + size] = windows(machine.buffers[node.buffer], size)[begins]
        if node.is_varint:
            out[:, at : at + size - 1] |= 0x80
    return out
