"""Estimates the size of a converted file, and checks the free disk space."""

from __future__ import annotations

import logging
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.block import Column, nbytes
from kabuki_rlds.data.source import Size
from kabuki_rlds.data.units import format_bytes
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.hdf5.chunks import Compression, pack

_log = logging.getLogger("kabuki_rlds")

#: `check` warns if decoded images take so many times the size of the source.
_MUCH_LARGER = 3


def check(sizes: Sequence[Size], dest: pathlib.Path, compression: Compression, *, copies: int = 1) -> int:
    """Logs the estimated size of a file, and checks that the disk has enough space.

    Args:
      sizes: sizes of the sources.
      dest: the file that will be written.
      compression: compression of the file.
      copies: the maximum number of copies of the data that are on the disk at the same time.

    Returns:
      the number of steps, which may be an estimate.

    Raises:
      KabukiError: the disk does not have enough space.
    """
    steps = sum(size.steps for size in sizes)
    on_disk = sum(size.num_bytes for size in sizes)
    raw = packed = images = 0.0
    for size in sizes:
        if size.sample is None or not size.sample.num_steps:
            continue
        scale = size.steps / size.sample.num_steps
        for path, column in size.sample.steps.items():
            column_bytes = nbytes([column]) * scale
            raw += column_bytes
            packed += column_bytes * _ratio(column, compression)
            if path in size.image_fields:
                images += column_bytes
    about = "" if all(size.is_exact for size in sizes) else "about "
    _log.info(
        "%s%s steps, %s as arrays, about %s in %s; the source takes %s",
        about,
        f"{steps:,}",
        format_bytes(raw),
        format_bytes(packed),
        dest.name,
        format_bytes(on_disk),
    )
    if images > _MUCH_LARGER * on_disk:
        _log.warning(
            "decoded images take %s, %.0f times the size of the source; %s keeps the image files as they are",
            format_bytes(images),
            images / max(on_disk, 1),
            argument("images", "encoded"),
        )
    folder = dest.parent
    if folder.is_dir():
        free = shutil.disk_usage(folder).free
        if packed * copies > free:
            remedy = (
                f"; {argument('images', 'encoded')} needs about {format_bytes(on_disk)}" if images > on_disk else ""
            )
            raise KabukiError(
                f"{dest}: needs about {format_bytes(packed * copies)}, but {folder} has {format_bytes(free)} free"
                f"{remedy}"
            )
    return steps


def _ratio(column: Column, compression: Compression) -> float:
    """Returns compressed size / size of a column, estimated from about 1 MiB of it."""
    if compression == "none" or not isinstance(column, np.ndarray) or column.dtype == object or not column.size:
        return 1.0
    part = column[: max(1, (1 << 20) * len(column) // max(column.nbytes, 1))]
    return len(pack([part], len(part), deflate=True)) / part.nbytes
