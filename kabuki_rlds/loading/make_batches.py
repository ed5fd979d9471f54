"""Checks the arguments that all loaders of batches have, and opens the files."""

from __future__ import annotations

import dataclasses
import logging
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from kabuki_rlds.data.last_row import LastRow, check_choice
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.extras import require
from kabuki_rlds.files.paths import local_path, path_list
from kabuki_rlds.loading.batches import Batches
from kabuki_rlds.loading.n_step_returns import Returns
from kabuki_rlds.loading.sample_order import Share
from kabuki_rlds.loading.samples import SampleIndex, Samples, TransitionSamples
from kabuki_rlds.loading.table import RowSelection, Table

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger("kabuki_rlds")

Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of the samples. For the attributes see `load_steps`.

    Raises:
      InvalidArgumentError: an attribute is invalid, or shuffling processes have no common seed.
    """

    shuffle: bool
    seed: int | None
    epochs: int | None
    share: Share
    state: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        if self.epochs is not None:
            count("epochs", self.epochs)
        if self.seed is not None:
            count("seed", self.seed, least=0)
        elif self.shuffle and self.share.world > 1 and self.state is None:
            raise InvalidArgumentError(
                "seed is None: with shuffle and several processes, give all of them the same seed; otherwise some "
                "samples are served twice, and others never"
            )


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
    files = path_list(path)
    if not files:
        raise InvalidArgumentError("path is empty; give at least one file")
    paths = [os.path.abspath(local_path(file)) for file in files]
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
            order.shuffle,
            None if order.seed is None else int(order.seed),
            order.epochs,
            table.row_nbytes,
            len(SampleIndex(table.episodes, samples)),
            last_row,
            order.share,
            order.state,
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


def count(name: str, value: int, least: int = 1) -> int:
    """Checks that an argument is an integer of at least `least`, and returns it."""
    if not isinstance(value, numbers.Integral) or value < least:
        raise InvalidArgumentError(f"{name} is {value}, expected an integer >= {least}")
    # A NumPy integer with few bits would overflow in products.
    return int(value)
