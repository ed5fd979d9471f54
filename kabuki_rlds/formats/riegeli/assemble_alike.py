"""Assembles the records of a transposed chunk in which many records have the same structure.

The steps of a log mostly differ only in their values, so the state machine passes the same nodes for each record: they
have the same trace. All records with the same trace, and with strings of the same sizes, are assembled as the rows of
one matrix of bytes.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.formats.riegeli import assemble_stepwise
from kabuki_rlds.formats.riegeli.byte_reader import runs, string_sizes, windows
from kabuki_rlds.formats.riegeli.state_machine import NON_PROTO, RECORD_START, SUBMESSAGE_START, StateMachine, StateNode
from kabuki_rlds.formats.varint import varint

#: The smallest group of records that is assembled as a matrix. Records of smaller groups are assembled node by node.
_MIN_GROUP = 8
#: If traces have fewer records than this on average, this module is not faster than `assemble_stepwise`.
_MIN_RECORDS_PER_TRACE = 4

#: The state of the machine at the start of a record: the node before, and how many nodes follow without a transition.
_MachineState = tuple[int, int]


def assemble(machine: StateMachine, num_records: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Assembles the records of a chunk.

    Returns:
      the bytes of all records, uint8, (bytes,), and their offsets and the end, int64, (records + 1,); None if too few
      records have the same trace.

    Raises:
      IndexError, ValueError: the chunk is damaged.
    """
    if any(node.kind == NON_PROTO for node in machine.nodes):
        return None
    found = _traces(machine, max(1, num_records // _MIN_RECORDS_PER_TRACE))
    if found is None:
        return None
    traces, trace_of = found
    values = _RecordValues(machine, traces, trace_of)
    lengths = np.zeros(len(trace_of), np.int64)
    is_remaining = np.ones(len(trace_of), bool)
    matrices = []
    for number in np.flatnonzero(np.bincount(trace_of, minlength=len(traces)) >= _MIN_GROUP).tolist():
        for records, sizes in values.groups(number):
            if len(records) >= _MIN_GROUP:
                matrices.append((records, _matrix(machine, traces[number], sizes, values, records)))
                lengths[records] = matrices[-1][1].shape[1]
                is_remaining[records] = False
    remaining = np.flatnonzero(is_remaining)
    if len(remaining):
        sequence = np.concatenate([traces[number] for number in trace_of[remaining].tolist()])
        rest, rest_splits = assemble_stepwise.write_records(
            dataclasses.replace(machine, buffers=values.of(remaining)), sequence
        )
        lengths[remaining] = np.diff(rest_splits)[::-1]
    # The state machine describes the last record first.
    splits = row_splits(lengths[::-1])
    out = np.empty(splits[-1], np.uint8)
    begins = splits[:-1][::-1]
    for records, matrix in matrices:
        if matrix.shape[1]:
            windows(out, matrix.shape[1])[begins[records]] = matrix
    if len(remaining):
        out[runs(begins[remaining][::-1], np.diff(rest_splits))] = rest
    return out, splits


def _traces(machine: StateMachine, most: int) -> tuple[list[list[int]], np.ndarray] | None:
    """Runs the state machine record by record.

    Returns:
      the nodes of each distinct trace, and the number of the trace of each record, int64; None if there are more than
      `most` traces.
    """
    traces: list[list[int]] = []
    trace_of: list[int] = []
    # For each state at the start of a record: transitions, number of the trace, and the state after the record.
    known: dict[_MachineState | None, list[tuple[bytes, int, _MachineState]]] = {}
    transitions = machine.transitions
    state: _MachineState | None = None
    at = 0
    while at < len(transitions) or state is None or state[1]:
        candidates = known.setdefault(state, [])
        for i, (pattern, number, after) in enumerate(candidates):
            if transitions.startswith(pattern, at):
                at += len(pattern)
                trace_of.append(number)
                state = after
                if i:
                    # Frequent traces move to the front of the list.
                    candidates[i - 1], candidates[i] = candidates[i], candidates[i - 1]
                break
        else:
            trace, after, end = _trace(machine, state, at)
            if len(traces) == most:
                return None
            candidates.append((transitions[at:end], len(traces), after))
            traces.append(trace)
    return traces, np.array(trace_of, np.int64)


def _trace(machine: StateMachine, state: _MachineState | None, at: int) -> tuple[list[int], _MachineState, int]:
    """Runs the state machine for one record.

    Args:
      machine: the state machine.
      state: the state at the start of the record; None for the first record.
      at: the number of the next transition.

    Returns:
      the nodes, the state after the record, and the number of the next transition.
    """
    trace: list[int] = []
    node, more = machine.first, int(machine.is_implicit[machine.first])
    has_started = state is not None
    if state is not None:
        node, more = state
    while True:
        if has_started:
            node = machine.next_node[node]
            if more:
                more -= not machine.is_implicit[node]
            else:
                node += machine.transitions[at] >> 2
                more = (machine.transitions[at] & 3) + machine.is_implicit[node]
                at += 1
        has_started = True
        trace.append(node)
        if machine.nodes[node].kind == RECORD_START:
            return trace, (node, more), at


class _RecordValues:
    """The ranges of the buffers that hold the values of each record.

    Args:
      machine: the state machine.
      traces: the nodes of each trace.
      trace_of: the trace of each record.

    Attributes:
      begins: for each buffer, the offset of each record's bytes, and the end.
      first_string: for each buffer of strings, the number of the first string of each record.
      string_splits: for each buffer of strings, the offset of each string, and the end.
    """

    def __init__(self, machine: StateMachine, traces: list[list[int]], trace_of: np.ndarray):
        self._trace_of = trace_of
        self._nodes = machine.nodes
        self._traces = traces
        self._buffers = machine.buffers
        self.begins: list[np.ndarray] = []
        self.first_string: dict[int, np.ndarray] = {}
        self.string_splits: dict[int, np.ndarray] = {}
        # For each buffer and trace, the size of the numbers and the count of the strings of a record.
        numbers, strings = (np.zeros((len(machine.buffers), len(traces)), np.int64) for _ in range(2))
        for trace, nodes in enumerate(traces):
            for number in nodes:
                node = machine.nodes[number]
                if node.buffer is not None and node.size is None:
                    strings[node.buffer, trace] += 1
                elif node.buffer is not None:
                    numbers[node.buffer, trace] += node.size
        for index, buffer in enumerate(machine.buffers):
            if strings[index].any() and numbers[index].any():
                raise ValueError("a buffer holds both strings and numbers")
            if strings[index].any():
                splits = row_splits(strings[index][trace_of])
                self.first_string[index] = splits[:-1]
                self.string_splits[index] = row_splits(string_sizes(buffer, int(splits[-1])))
                splits = self.string_splits[index][splits]
            else:
                splits = row_splits(numbers[index][trace_of])
            if splits[-1] != len(buffer):
                raise ValueError("a buffer is not used up, or too short")
            self.begins.append(splits)

    def of(self, records: np.ndarray) -> list[np.ndarray]:
        """Returns buffers that hold only the values of some records."""
        return [
            buffer[runs(begins[records], begins[records + 1] - begins[records])]
            for buffer, begins in zip(self._buffers, self.begins, strict=True)
        ]

    def groups(self, number: int) -> list[tuple[np.ndarray, tuple[int, ...]]]:
        """Groups the records of a trace by the sizes of their strings.

        Returns:
          the records, and the sizes of their strings, for each group.
        """
        records = np.flatnonzero(self._trace_of == number)
        strings = [n for n in self._traces[number] if self._nodes[n].buffer in self.first_string]
        if not strings:
            return [(records, ())]
        num_strings: dict[int, int] = {}
        columns = []
        for node in strings:
            index = self._nodes[node].buffer
            assert index is not None
            before = num_strings.get(index, 0)
            num_strings[index] = before + 1
            string = self.first_string[index][records] + before
            columns.append(self.string_splits[index][string + 1] - self.string_splits[index][string])
        sizes = np.stack(columns, axis=1)
        if (sizes == sizes[0]).all():
            return [(records, tuple(sizes[0].tolist()))]
        distinct, group_of = np.unique(sizes, axis=0, return_inverse=True)
        group_of = group_of.reshape(-1)
        order = np.argsort(group_of, kind="stable")
        bounds = np.searchsorted(group_of[order], np.arange(len(distinct) + 1)).tolist()
        return [
            (records[order[a:b]], tuple(each))
            for each, a, b in zip(distinct.tolist(), bounds[:-1], bounds[1:], strict=True)
        ]


def _matrix(
    machine: StateMachine, trace: list[int], sizes: tuple[int, ...], values: _RecordValues, records: np.ndarray
) -> np.ndarray:
    """Assembles the records of one group.

    Args:
      machine: the state machine.
      trace: the nodes of each of the records.
      sizes: the sizes of the strings of each.
      values: the values of all records.
      records: the numbers of the records.

    Returns:
      the bytes of the records: uint8, (records, bytes).
    """
    # Bytes that are the same in all records, with the distance of their first byte from the end of the record.
    texts: list[tuple[bytes, int]] = []
    # Values from buffers: the node, the offset among the record's values (or the number of the string), the size, and
    # the distance of the first byte from the end of the record.
    fields: list[tuple[StateNode, int, int, int]] = []
    open_messages: list[tuple[StateNode, int]] = []
    offsets: dict[int, int] = {}
    string_size = iter(sizes)
    written = 0
    for number in trace:
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
            offset = offsets.get(node.buffer, 0)
            offsets[node.buffer] = offset + (1 if node.size is None else size)
            fields.append((node, offset, size, written))
        written += len(node.text)
        texts.append((node.text, written))
    if open_messages:
        raise ValueError("its messages do not end as they begin")
    template = bytearray(written)
    for text, end in texts:
        template[written - end : written - end + len(text)] = text
    out = np.tile(np.frombuffer(bytes(template), np.uint8), (len(records), 1))
    for node, offset, size, end in fields:
        assert node.buffer is not None
        if node.size is None:
            begins = values.string_splits[node.buffer][values.first_string[node.buffer][records] + offset]
        else:
            begins = values.begins[node.buffer][records] + offset
        at = written - end
        out[:, at : at + size] = windows(machine.buffers[node.buffer], size)[begins]
        if node.is_varint:
            out[:, at : at + size - 1] |= 0x80
    return out
