"""Transposed chunks of a Riegeli file, in which the fields of the records stand in columns.

Such a chunk takes protocol buffers apart. The values of each field are in a buffer of
their own, and a state machine says in which order to put them together again: each of
its nodes stands for a field, the beginning or end of a message, or that of a record,
and each transition goes from one node to the next. Records are put together from the
last byte to the first. How the parts are laid out follows Riegeli's own decoder,
riegeli/chunk_encoding/transpose_decoder.cc, since its document leaves it open.
"""

from __future__ import annotations

import numpy as np

from kabuki_rlds.formats.riegeli import assemble_alike, assemble_stepwise, state_machine


def decode(data: bytes, num_records: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts the records of a transposed chunk together.

    Args:
      data: the data of the chunk.
      num_records: how many records it says it has.

    Returns:
      The bytes of all records, uint8, and where each begins, and the end, int64.

    Raises:
      IndexError, ValueError: the data is not what it should be.
    """
    read = state_machine.parse(data)
    found = assemble_alike.assemble(read, num_records)
    return assemble_stepwise.assemble(read) if found is None else found
