"""The loaders: batches of steps, of transitions and of windows of a Kabuki file."""

from __future__ import annotations

import functools
import logging
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from kabuki_rlds.data.last_row import LastRow, check_choice
from kabuki_rlds.data.rules import ACTION, IS_LAST, OBSERVATION
from kabuki_rlds.data.schema import Field, Schema, is_within
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.extras import require
from kabuki_rlds.files.paths import local_path, path_list
from kabuki_rlds.loading.batches import Batches
from kabuki_rlds.loading.n_step_returns import Returns
from kabuki_rlds.loading.samples import Samples, StepSamples, TransitionSamples, WindowSamples, needed
from kabuki_rlds.loading.table import RowSelection, Table

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger("kabuki_rlds")

#: No episode has so many steps, and it can be added to the number of a row.
_LONGEST = 1 << 62

Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def load_steps(
    path: Paths,
    batch_size: int,
    shuffle: bool = False,
    seed: int | None = None,
    *,
    fields: str | Sequence[str] | None = None,
    epochs: int | None = 1,
    keep_last: bool = False,
    last_row: LastRow | None = None,
    as_numpy: bool = False,
) -> tf.data.Dataset | Batches:
    """Batches of steps to act on.

    A last row that holds an observation alone is left out.

    In order, rows are read as they come. Shuffled, every order of all steps of all
    files is as likely as any other. Columns up to 1 GiB are held in memory for that;
    of larger ones as many rows as fit 256 MiB are read ahead, each chunk of the file
    once for them.

    Args:
      path: a Kabuki file, or several whose fields fit.
      batch_size: steps in a batch. The last batch of each epoch has what is left.
      shuffle: serve the steps in a random order, each of them once an epoch.
      seed: makes the order the same each time; the orders of the epochs still differ.
        Without, each iteration has another.
      fields: which step fields to read, by path (`observation/image`) or by group
        (`observation`); None is all.
      epochs: how often to serve all steps; None is without end.
      keep_last: serve last rows that hold an observation alone too.
      last_row: whether the last row of each episode is a "step" or only an "observation"; by default what the files
        state, and an observation if they do not state it.
      as_numpy: give NumPy arrays, without TensorFlow.

    Returns:
      A `tf.data.Dataset` of nested dicts as RLDS steps are, (batch, *shape of a row);
      rows that differ in shape are a `tf.RaggedTensor`. Image files are decoded. With
      `as_numpy`, `Batches`, which can be iterated as often as wanted.

    Raises:
      KabukiError: a file cannot be read, the files do not fit each other, or an
        argument makes no sense. What is found while reading is raised then; TensorFlow
        makes an error of its own of it, with the same text.
    """
    make = functools.partial(StepSamples, keep_last=keep_last)
    return _loader(path, batch_size, shuffle, seed, epochs, as_numpy, _select(fields), make, last_row=last_row)


def load_transitions(
    path: Paths,
    batch_size: int,
    shuffle: bool = False,
    seed: int | None = None,
    *,
    n_step: int = 1,
    gamma: float = 1.0,
    fields: str | Sequence[str] | None = None,
    epochs: int | None = 1,
    last_row: LastRow | None = None,
    as_numpy: bool = False,
) -> tf.data.Dataset | Batches:
    """Batches of transitions, none of them across two episodes.

    A transition has `observation` and `action` of its step, `reward`, `discount`,
    `next_observation` (the terminal one at the end), `is_terminal` (whether that is
    terminal) and `is_last` (whether it is the last of its episode).

    With `n_step` n, from step t on,

        reward            r[t] + gamma d[t] r[t+1] + gamma^2 d[t] d[t+1] r[t+2] + … n terms
        discount          gamma^(n-1) d[t] d[t+1] … d[t+n-1]
        next_observation  that of step t+n

    and at the end of an episode as many terms as there are. So the target is
    `reward + gamma * discount * value(next_observation)` for any n.

    Where the last row of an episode is a step, no observation follows it. If the episode
    terminates, the step is served with a discount of 0, whatever the file stores, and with its
    own observation as the next one, which that discount masks. If it is truncated, the step is
    left out, and a warning says how many are.

    Args:
      path: as for `load_steps`, as are `batch_size`, `shuffle`, `seed`, `epochs` and
        `as_numpy`.
      batch_size: transitions in a batch.
      shuffle: serve them in a random order.
      seed: of that order.
      n_step: how many steps a transition goes.
      gamma: the factor of each step after the first within a transition.
      fields: further step fields to serve, as they are at the transition's first step.
        Where it names fields of `observation/` or `action/`, the others of these are
        left out.
      epochs: how often to serve all.
      last_row: as for `load_steps`.
      as_numpy: give NumPy arrays.

    Returns:
      As `load_steps`. `reward` and `discount` keep their dtypes; n-step ones of integers are float64.
      However large n is, it takes little more time or memory than one step does.

    Raises:
      KabukiError: as `load_steps`, or the file lacks a field that a transition needs.
    """
    # No episode is longer.
    n_step = min(_count("n_step", n_step), _LONGEST)
    if not (isinstance(gamma, numbers.Real) and math.isfinite(gamma) and gamma >= 0):
        raise InvalidArgumentError(f"gamma is {gamma}; it is a number from 0 on")
    returns = Returns(n_step, gamma) if n_step > 1 else None
    make = functools.partial(TransitionSamples, n_step=n_step)
    return _loader(
        path, batch_size, shuffle, seed, epochs, as_numpy, _select_for_transitions(fields), make, returns, last_row
    )


def load_windows(
    path: Paths,
    batch_size: int,
    length: int,
    shuffle: bool = False,
    seed: int | None = None,
    *,
    pad: bool = False,
    fields: str | Sequence[str] | None = None,
    epochs: int | None = 1,
    last_row: LastRow | None = None,
    as_numpy: bool = False,
) -> tf.data.Dataset | Batches:
    """Batches of runs of `length` consecutive rows of one episode, last observations among them.

    A batch holds `batch_size` times `length` rows, and the next one is made meanwhile.
    Image files are decoded when their window is served, once for all windows of a
    batch that they are in: in order that is about once for each row, but shuffled
    `length` times. Files with `--images arrays` spare that.

    Args:
      path: as for `load_steps`, as are `batch_size`, `shuffle`, `seed`, `fields`,
        `epochs` and `as_numpy`.
      batch_size: windows in a batch.
      length: rows of a window.
      shuffle: serve them in a random order.
      seed: of that order.
      pad: serve a window from every row, with zeros where it runs past the end of its
        episode. Else only windows that are full.
      fields: which step fields to read.
      epochs: how often to serve all.
      last_row: as for `load_steps`.
      as_numpy: give NumPy arrays.

    Returns:
      As `load_steps`, but (batch, length, *shape of a row), and with two masks, bool,
      (batch, length): `mask` is true where a row has an action, and `observation_mask`
      where it has an observation. They differ in a last row that holds an observation alone.

    Raises:
      KabukiError: as `load_steps`, or a field is called `mask` or `observation_mask`.
    """
    length = min(_count("length", length), _LONGEST)
    make = functools.partial(WindowSamples, length=length, pad=pad)
    return _loader(path, batch_size, shuffle, seed, epochs, as_numpy, _select(fields), make, last_row=last_row)


def _loader(
    path: Paths,
    batch_size: int,
    shuffle: bool,
    seed: int | None,
    epochs: int | None,
    as_numpy: bool,
    select: RowSelection,
    make: Callable[[Mapping[str, Field]], Samples],
    returns: Returns | None = None,
    last_row: LastRow | None = None,
) -> tf.data.Dataset | Batches:
    batch_size = _count("batch_size", batch_size)
    if not as_numpy:
        require("a tf.data.Dataset", "tensorflow", otherwise="as_numpy=True gives NumPy arrays without it")
    if epochs is not None:
        epochs = _count("epochs", epochs)
    if seed is not None:
        seed = _count("seed", seed, least=0)
    files = path_list(path)
    if not files:
        raise InvalidArgumentError("no files were given to load")
    paths = [os.path.abspath(local_path(file)) for file in files]
    check_choice(last_row)
    with Table(paths, select, returns, last_row) as table:
        try:
            samples = make(table.fields)
        except KabukiError as e:
            raise e.within(paths[0]) from e
        batches = Batches(
            paths, table.stored, returns, samples, batch_size, shuffle, seed, epochs, table.row_nbytes, last_row
        )
        if isinstance(samples, TransitionSamples):
            _tell_of_left_out(table, paths[0])
    if as_numpy:
        return batches
    from kabuki_rlds.loading import tf_dataset

    return tf_dataset.dataset(batches)


def _tell_of_left_out(table: Table, path: str) -> None:
    left_out = int((table.episodes.action_ends - table.episodes.transition_ends).sum())
    if left_out:
        _log.warning(
            "%s: %s steps are left out of the transitions: each is the last of a truncated episode, and no observation "
            "follows it; load_steps serves them",
            path, f"{left_out:,}",
        )  # fmt: skip


def _count(name: str, value: int, least: int = 1) -> int:
    if not isinstance(value, numbers.Integral) or value < least:
        raise InvalidArgumentError(f"{name} is {value}; it is a whole number from {least} on")
    # One of NumPy's few bits cannot be multiplied.
    return int(value)


def _select(fields: str | Sequence[str] | None) -> RowSelection:
    return lambda schema, path: schema.select(fields, path)


def _select_for_transitions(fields: str | Sequence[str] | None) -> RowSelection:
    """Selects the fields that make a transition, and those that `fields` names."""

    def select(schema: Schema, path: str) -> list[str]:
        try:
            always = needed(schema.steps)
        except KabukiError as e:
            raise e.within(path) from e
        named = [] if fields is None else schema.select(fields, path)
        for group in (OBSERVATION, ACTION):
            if any(is_within(field, group) for field in named):
                always = [field for field in always if not is_within(field, group)]
        return [field for field in schema.steps if field != IS_LAST and (field in always or field in named)]

    return select
