"""Loads batches of steps, transitions or windows from Kabuki files."""

from __future__ import annotations

import functools
import logging
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

from kabuki_rlds.data.last_row import LastRow, check_choice
from kabuki_rlds.data.rules import ACTION, IS_LAST, OBSERVATION
from kabuki_rlds.data.schema import Field, Schema, is_within
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.extras import require
from kabuki_rlds.files.paths import local_path, path_list
from kabuki_rlds.loading.batches import Batches
from kabuki_rlds.loading.n_step_returns import Returns
from kabuki_rlds.loading.samples import SampleIndex, Samples, StepSamples, TransitionSamples, WindowSamples, needed
from kabuki_rlds.loading.table import RowSelection, Table

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger("kabuki_rlds")

#: More than the steps of any episode; adding it to a row index does not overflow int64.
_LONGEST = 1 << 62

Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@overload
def load_steps(
    path: Paths,
    batch_size: int,
    shuffle: bool = ...,
    seed: int | None = ...,
    *,
    fields: str | Sequence[str] | None = ...,
    epochs: int | None = ...,
    keep_last: bool = ...,
    last_row: LastRow | None = ...,
    as_numpy: Literal[True],
) -> Batches: ...
@overload
def load_steps(
    path: Paths,
    batch_size: int,
    shuffle: bool = ...,
    seed: int | None = ...,
    *,
    fields: str | Sequence[str] | None = ...,
    epochs: int | None = ...,
    keep_last: bool = ...,
    last_row: LastRow | None = ...,
    as_numpy: Literal[False] = ...,
) -> tf.data.Dataset: ...
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
    """Loads batches of steps.

        for batch in kabuki_rlds.load_steps("hopper.hdf5", 256, shuffle=True, as_numpy=True):
            update(batch["observation"], batch["action"])

    Last rows that hold only an observation are skipped, because they have no action.

    With `shuffle`, the order is a random permutation of all steps of all files. Columns
    up to 1 GiB are loaded into memory. Larger ones are read in portions of 256 MiB in the
    shuffled order, and each chunk of the file is read once per portion.

    Args:
      path: a Kabuki file, or several with the same fields.
      batch_size: the number of steps in a batch. The last batch of an epoch may be smaller.
      shuffle: whether to serve the steps in random order, each once per epoch.
      seed: the seed of the order. Every epoch has a different order, but each iteration
        repeats the same orders. None means new orders at each iteration.
      fields: the step fields to read, by path (`observation/image`) or by group
        (`observation`); None reads all.
      epochs: the number of epochs; None means no end.
      keep_last: whether to also serve last rows that hold only an observation.
      last_row: whether the last row of each episode is a "step" or only an "observation". None takes what the files
        state, and "observation" if they state nothing.
      as_numpy: whether to return NumPy arrays. This does not import TensorFlow.

    Returns:
      A `tf.data.Dataset` of nested dicts with the structure of RLDS steps. The tensors have
      the shape (batch, *row shape); rows of different shapes are a `tf.RaggedTensor`.
      Images are decoded. With `as_numpy`, `Batches`: an iterable of dicts of NumPy arrays
      that can be iterated several times. `len` gives the number of batches of one iteration.

    Raises:
      KabukiError: a file cannot be read, the fields of the files differ, or an argument is
        invalid. Errors can also occur during the iteration. A `tf.data.Dataset` then raises
        a TensorFlow error with the same text.
    """
    make = functools.partial(StepSamples, keep_last=keep_last)
    return _loader(path, batch_size, shuffle, seed, epochs, as_numpy, _select(fields), make, last_row=last_row)


@overload
def load_transitions(
    path: Paths,
    batch_size: int,
    shuffle: bool = ...,
    seed: int | None = ...,
    *,
    n_step: int = ...,
    gamma: float = ...,
    fields: str | Sequence[str] | None = ...,
    epochs: int | None = ...,
    last_row: LastRow | None = ...,
    as_numpy: Literal[True],
) -> Batches: ...
@overload
def load_transitions(
    path: Paths,
    batch_size: int,
    shuffle: bool = ...,
    seed: int | None = ...,
    *,
    n_step: int = ...,
    gamma: float = ...,
    fields: str | Sequence[str] | None = ...,
    epochs: int | None = ...,
    last_row: LastRow | None = ...,
    as_numpy: Literal[False] = ...,
) -> tf.data.Dataset: ...
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
    """Loads batches of transitions. A transition never spans two episodes.

        for batch in kabuki_rlds.load_transitions("hopper.hdf5", 256, shuffle=True, n_step=3, gamma=0.99):
            target = batch["reward"] + 0.99 * batch["discount"] * value(batch["next_observation"])

    A transition has the `observation` and `action` of its step, `reward`, `discount`,
    `next_observation`, `is_terminal` (whether the next observation is terminal) and
    `is_last` (whether it is the last transition of its episode).

    With n = `n_step`, the transition of step t has

        reward            r[t] + gamma d[t] r[t+1] + gamma^2 d[t] d[t+1] r[t+2] + … n terms
        discount          gamma^(n-1) d[t] d[t+1] … d[t+n-1]
        next_observation  the observation of step t+n

    Near the end of an episode there are fewer terms, and the next observation is the last
    one. So the target is `reward + gamma * discount * value(next_observation)` for any n.

    If the last row of an episode is a step, no observation follows it. If the episode
    terminated, this step is served with discount 0, whatever the file stores; its next
    observation is its own observation, which the discount masks. If the episode was
    truncated, the step is skipped, and a warning says how many steps are.

    Args:
      path: as for `load_steps`.
      batch_size: the number of transitions in a batch. The last batch of an epoch may be smaller.
      shuffle: whether to serve the transitions in random order, each once per epoch.
      seed: as for `load_steps`.
      n_step: the number of steps of a transition.
      gamma: the discount factor per step, applied from the second step of a transition on.
      fields: additional step fields to serve, from the first step of the transition. If it
        names fields of `observation/` or `action/`, the other fields of that group are not served.
      epochs: the number of epochs; None means no end.
      last_row: as for `load_steps`.
      as_numpy: as for `load_steps`.

    Returns:
      As for `load_steps`. `reward` and `discount` keep their dtypes, except that n-step values of
      integers are float64. Time and memory hardly depend on n.

    Raises:
      KabukiError: as for `load_steps`, or a field that transitions need is missing.
    """
    # A limit on n avoids overflows and changes nothing: no episode is longer.
    n_step = min(_count("n_step", n_step), _LONGEST)
    if not (isinstance(gamma, numbers.Real) and math.isfinite(gamma) and gamma >= 0):
        raise InvalidArgumentError(f"gamma is {gamma}, expected a finite number >= 0")
    returns = Returns(n_step, gamma) if n_step > 1 else None
    make = functools.partial(TransitionSamples, n_step=n_step)
    return _loader(
        path, batch_size, shuffle, seed, epochs, as_numpy, _select_for_transitions(fields), make, returns, last_row
    )


@overload
def load_windows(
    path: Paths,
    batch_size: int,
    length: int,
    shuffle: bool = ...,
    seed: int | None = ...,
    *,
    pad: bool = ...,
    fields: str | Sequence[str] | None = ...,
    epochs: int | None = ...,
    last_row: LastRow | None = ...,
    as_numpy: Literal[True],
) -> Batches: ...
@overload
def load_windows(
    path: Paths,
    batch_size: int,
    length: int,
    shuffle: bool = ...,
    seed: int | None = ...,
    *,
    pad: bool = ...,
    fields: str | Sequence[str] | None = ...,
    epochs: int | None = ...,
    last_row: LastRow | None = ...,
    as_numpy: Literal[False] = ...,
) -> tf.data.Dataset: ...
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
    """Loads batches of windows: `length` consecutive rows of an episode, including last observations.

        for batch in kabuki_rlds.load_windows("hopper.hdf5", 64, length=20, pad=True):
            loss = mean(batch["mask"] * error(batch["observation"], batch["action"]))

    Two batches of `batch_size * length` rows are in memory: the current and the next one.
    An encoded image is decoded once per batch. Without `shuffle` that is about once per row,
    with `shuffle` about `length` times. Files converted with `images="arrays"` need no decoding.

    Args:
      path: as for `load_steps`.
      batch_size: the number of windows in a batch. The last batch of an epoch may be smaller.
      length: the number of rows of a window.
      shuffle: whether to serve the windows in random order, each once per epoch.
      seed: as for `load_steps`.
      pad: whether a window begins at every row of an episode. Rows past the end of the
        episode are zeros. If False, only complete windows are served.
      fields: as for `load_steps`.
      epochs: the number of epochs; None means no end.
      last_row: as for `load_steps`.
      as_numpy: as for `load_steps`.

    Returns:
      As for `load_steps`, with the shape (batch, length, *row shape) and two masks, bool,
      (batch, length): `mask` is true for rows with an action, `observation_mask` for rows
      with an observation. They differ for last rows that hold only an observation.

    Raises:
      KabukiError: as for `load_steps`, or a field is named `mask` or `observation_mask`.
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
        require("a tf.data.Dataset", "tensorflow", otherwise="as_numpy=True returns NumPy arrays without it")
    if epochs is not None:
        epochs = _count("epochs", epochs)
    if seed is not None:
        seed = _count("seed", seed, least=0)
    files = path_list(path)
    if not files:
        raise InvalidArgumentError("path is empty; give at least one file")
    paths = [os.path.abspath(local_path(file)) for file in files]
    check_choice(last_row)
    with Table(paths, select, returns, last_row) as table:
        try:
            samples = make(table.fields)
        except KabukiError as e:
            raise e.within(paths[0]) from e
        batches = Batches(
            paths,
            table.stored,
            returns,
            samples,
            batch_size,
            shuffle,
            seed,
            epochs,
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


def _count(name: str, value: int, least: int = 1) -> int:
    if not isinstance(value, numbers.Integral) or value < least:
        raise InvalidArgumentError(f"{name} is {value}, expected an integer >= {least}")
    # A NumPy integer with few bits would overflow in products.
    return int(value)


def _select(fields: str | Sequence[str] | None) -> RowSelection:
    return lambda schema, path: schema.select(fields, path)


def _select_for_transitions(fields: str | Sequence[str] | None) -> RowSelection:
    """Selects the fields that transitions need, and those named by `fields`."""

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
