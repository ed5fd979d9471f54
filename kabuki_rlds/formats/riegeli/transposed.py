"""Decodes transposed chunks of Riegeli files, which store records that are Protocol Buffers by columns.

The values of each field are in a separate buffer. A state machine defines the order in which they are reassembled: each
node writes a field, or marks the start or end of a submessage or of a record, and each transition leads to the next
node. Records are reassembled from the last byte to the first. Riegeli's documentation does not define the encoding of
the parts, so this package follows Riegeli's decoder, riegeli/chunk_encoding/transpose_decoder.cc.
"""

from __future__ import annotations

import numpy as np

from kabuki_rlds.formats.riegeli import assemble_alike, assemble_stepwise, state_machine


def decode(data: bytes, num_records: int) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the records of a transposed chunk.

    Args:
      data: the data of the chunk.
      num_records: number of records according to its header.

    Returns:
      the bytes of all records, uint8, (bytes,), and their offsets and the end, int64, (records + 1,).

    Raises:
      IndexError, ValueError: the data is damaged.
    """
    machine = state_machine.parse(data)
    records = assemble_alike.assemble(machine, num_records)
    return assemble_stepwise.assemble(machine) if records is None else records
