"""Loads batches of steps, transitions or windows from Kabuki files."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from kabuki_rlds.data.last_row import LastRow
from kabuki_rlds.data.rules import ACTION, IS_LAST, OBSERVATION
from kabuki_rlds.data.schema import Schema, is_within
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.loading.batches import Batches
from kabuki_rlds.loading.make_batches import Paths, make_batches
from kabuki_rlds.loading.n_step_returns import Returns
from kabuki_rlds.loading.offsets import Offsets, OffsetSamples, Pad, check_pad, offset_windows
from kabuki_rlds.loading.sample_order import Order, Share, count
from kabuki_rlds.loading.samples import Samples, StepSamples, TransitionSamples, WindowSamples, needed
from kabuki_rlds.loading.table import RowSelection, Table

if TYPE_CHECKING:
    import tensorflow as tf

#: More than the steps of any episode; adding it to a row index does not overflow int64.
_LONGEST = 1 << 62


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
    offsets: Mapping[str, Offsets] | None = ...,
    pad: Pad | None = ...,
    rank: int = ...,
    world: int = ...,
    drop_last: bool = ...,
    state: Mapping[str, Any] | None = ...,
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
    offsets: Mapping[str, Offsets] | None = ...,
    pad: Pad | None = ...,
    rank: int = ...,
    world: int = ...,
    drop_last: bool = ...,
    state: Mapping[str, Any] | None = ...,
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
    offsets: Mapping[str, Offsets] | None = None,
    pad: Pad | None = None,
    rank: int = 0,
    world: int = 1,
    drop_last: bool = False,
    state: Mapping[str, Any] | None = None,
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
      offsets: path of a field or group to the offsets at which it is read, in steps or seconds, as for
        `kabuki_rlds.dataset`. Such a field has the shape (batch, offsets, *row shape).
      pad: how to fill rows outside of the episode, as for `kabuki_rlds.dataset`.
      rank: the number of this process, from 0, if several processes load one dataset.
      world: the number of these processes. Each sample is served by one of them. With `shuffle` they need
        the same `seed`.
      drop_last: whether to serve only complete batches. All processes then serve the same number of batches.
      state: what `Batches.state` returned. The first iteration continues after that position.
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
    check_pad(pad)
    if keep_last and offsets:
        raise InvalidArgumentError(
            "keep_last: with offsets, each sample is a step with an action; leave out one of the two"
        )

    def make(table: Table) -> Samples:
        if offsets is None:
            return StepSamples(table.fields, keep_last)
        samples = OffsetSamples(table.fields, offset_windows(table, offsets, table.label), pad)
        samples.check_long_enough(table.episodes, table.label)
        return samples

    order = Order(shuffle, seed, epochs, Share(rank, world, drop_last), state)
    return make_batches(path, batch_size, order, as_numpy, _select(fields), make, last_row=last_row)


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
    rank: int = ...,
    world: int = ...,
    drop_last: bool = ...,
    state: Mapping[str, Any] | None = ...,
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
    rank: int = ...,
    world: int = ...,
    drop_last: bool = ...,
    state: Mapping[str, Any] | None = ...,
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
    rank: int = 0,
    world: int = 1,
    drop_last: bool = False,
    state: Mapping[str, Any] | None = None,
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
      rank: as for `load_steps`.
      world: as for `load_steps`.
      drop_last: as for `load_steps`.
      state: as for `load_steps`.
      last_row: as for `load_steps`.
      as_numpy: as for `load_steps`.

    Returns:
      As for `load_steps`. `reward` and `discount` keep their dtypes, except that n-step values of
      integers are float64. Time and memory hardly depend on n.

    Raises:
      KabukiError: as for `load_steps`, or a field that transitions need is missing.
    """
    # A limit on n avoids overflows and changes nothing: no episode is longer.
    n_step = min(count("n_step", n_step), _LONGEST)
    if not (isinstance(gamma, numbers.Real) and math.isfinite(gamma) and gamma >= 0):
        raise InvalidArgumentError(f"gamma is {gamma}, expected a finite number >= 0")
    returns = Returns(n_step, gamma) if n_step > 1 else None
    order = Order(shuffle, seed, epochs, Share(rank, world, drop_last), state)
    return make_batches(
        path,
        batch_size,
        order,
        as_numpy,
        _select_for_transitions(fields),
        lambda table: TransitionSamples(table.fields, n_step),
        returns,
        last_row,
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
    rank: int = ...,
    world: int = ...,
    drop_last: bool = ...,
    state: Mapping[str, Any] | None = ...,
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
    rank: int = ...,
    world: int = ...,
    drop_last: bool = ...,
    state: Mapping[str, Any] | None = ...,
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
    rank: int = 0,
    world: int = 1,
    drop_last: bool = False,
    state: Mapping[str, Any] | None = None,
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
      rank: as for `load_steps`.
      world: as for `load_steps`.
      drop_last: as for `load_steps`.
      state: as for `load_steps`.
      last_row: as for `load_steps`.
      as_numpy: as for `load_steps`.

    Returns:
      As for `load_steps`, with the shape (batch, length, *row shape) and two masks, bool,
      (batch, length): `mask` is true for rows with an action, `observation_mask` for rows
      with an observation. They differ for last rows that hold only an observation.

    Raises:
      KabukiError: as for `load_steps`, or a field is named `mask` or `observation_mask`.
    """
    length = min(count("length", length), _LONGEST)
    order = Order(shuffle, seed, epochs, Share(rank, world, drop_last), state)
    return make_batches(
        path,
        batch_size,
        order,
        as_numpy,
        _select(fields),
        lambda table: WindowSamples(table.fields, length, pad),
        last_row=last_row,
    )


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
