"""Checks the arguments that all loaders of batches have, and opens the files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from kabuki_rlds.data.last_row import LastRow, check_choice
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.extras import require
from kabuki_rlds.files.paths import absolute_paths
from kabuki_rlds.loading.batches import Batches
from kabuki_rlds.loading.n_step_returns import Returns
from kabuki_rlds.loading.sample_order import Order, count
from kabuki_rlds.loading.samples import SampleIndex, Samples, TransitionSamples
from kabuki_rlds.loading.table import RowSelection, Table

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger("kabuki_rlds")

Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def make_batches(
    path: Paths,
    batch_size: int,
    order: Order,
    as_numpy: bool,
    select: RowSelection,
    make: Callable[[Table], Samples],
    returns: Returns | None = None,
    last_row: LastRow | None = None,
) -> tf.data.Dataset | Batches:
    """Opens files, and returns their batches.

    Args:
      path: as for `load_steps`.
      batch_size: as for `load_steps`.
      order: the order of the samples.
      as_numpy: as for `load_steps`.
      select: chooses the step fields to read.
      make: makes the samples of the open files.
      returns: how to compute n-step returns; None serves the stored rewards and discounts.
      last_row: as for `load_steps`.

    Raises:
      KabukiError: an argument is invalid, or a file cannot be read.
    """
    batch_size = count("batch_size", batch_size)
    if not as_numpy:
        require("a tf.data.Dataset", "tensorflow", otherwise="as_numpy=True returns NumPy arrays without it")
    paths = absolute_paths(path, "path")
    check_choice(last_row)
    with Table(paths, select, returns, last_row) as table:
        try:
            samples = make(table)
        except InvalidArgumentError:
            raise
        except KabukiError as e:
            raise e.within(paths[0]) from e
        batches = Batches(
            paths,
            table.stored,
            returns,
            samples,
            batch_size,
            order,
            table.row_nbytes,
            len(SampleIndex(table.episodes, samples)),
            last_row,
        )
        if isinstance(samples, TransitionSamples):
            _warn_of_skipped_steps(table, paths[0])
    if as_numpy:
        return batches
    from kabuki_rlds.loading import tf_dataset

    return tf_dataset.dataset(batches)


def _warn_of_skipped_steps(table: Table, path: str) -> None:
    skipped = int((table.episodes.action_ends - table.episodes.transition_ends).sum())
    if skipped:
        what = "1 step is" if skipped == 1 else f"{skipped:,} steps are"
        _log.warning(
            "%s: %s not in the transitions: a truncated episode has no observation after its last step; "
            "load_steps serves these steps",
            path, what,
        )  # fmt: skip
