"""The loaders: batches of steps, of transitions and of windows of a Kabuki file."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from kabuki_rlds.convention import ACTION, IS_LAST, OBSERVATION
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.schema import Field
from kabuki_rlds.training.batches import Batches
from kabuki_rlds.training.samples import Samples, Steps, Transitions, Windows, needed
from kabuki_rlds.training.table import Table

if TYPE_CHECKING:
    import tensorflow as tf

Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def load_steps(
    path: Paths,
    batch_size: int,
    shuffle: bool = False,
    seed: int | None = None,
    *,
    fields: Sequence[str] | None = None,
    epochs: int | None = 1,
    keep_last: bool = False,
    as_numpy: bool = False,
) -> tf.data.Dataset | Batches:
    """Batches of steps to act on.

    The last row of each episode holds an observation alone, and is left out.

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
      keep_last: serve the last rows of episodes too.
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
    select = functools.partial(_selected, fields=fields)
    make = functools.partial(_steps, keep_last=keep_last)
    return _loader(path, batch_size, shuffle, seed, epochs, as_numpy, select, make)


def load_transitions(
    path: Paths,
    batch_size: int,
    shuffle: bool = False,
    seed: int | None = None,
    *,
    n_step: int = 1,
    gamma: float = 1.0,
    fields: Sequence[str] | None = None,
    epochs: int | None = 1,
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
      as_numpy: give NumPy arrays.

    Returns:
      As `load_steps`. `reward` and `discount` keep their dtypes; n-step ones of integers are float64.

    Raises:
      KabukiError: as `load_steps`, or the file lacks a field that a transition needs.
    """
    _check_count("n_step", n_step)
    select = functools.partial(_selected_for_transitions, fields=fields)
    make = functools.partial(Transitions, n_step=n_step, gamma=gamma)
    return _loader(path, batch_size, shuffle, seed, epochs, as_numpy, select, make)


def load_windows(
    path: Paths,
    batch_size: int,
    length: int,
    shuffle: bool = False,
    seed: int | None = None,
    *,
    pad: bool = False,
    fields: Sequence[str] | None = None,
    epochs: int | None = 1,
    as_numpy: bool = False,
) -> tf.data.Dataset | Batches:
    """Batches of runs of `length` consecutive rows of one episode, its last row among them.

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
      as_numpy: give NumPy arrays.

    Returns:
      As `load_steps`, but (batch, length, *shape of a row), and with `mask`: bool,
      (batch, length), whether a row is one of the episode.

    Raises:
      KabukiError: as `load_steps`, or a field is called `mask`.
    """
    _check_count("length", length)
    select = functools.partial(_selected, fields=fields)
    make = functools.partial(Windows, length=length, pad=pad)
    return _loader(path, batch_size, shuffle, seed, epochs, as_numpy, select, make)


def _loader(
    path: Paths,
    batch_size: int,
    shuffle: bool,
    seed: int | None,
    epochs: int | None,
    as_numpy: bool,
    select: Callable[[Mapping[str, Field]], Sequence[str]],
    make: Callable[[Mapping[str, Field]], Samples],
) -> tf.data.Dataset | Batches:
    _check_count("batch_size", batch_size)
    if epochs is not None:
        _check_count("epochs", epochs)
    if seed is not None and seed < 0:
        raise KabukiError(f"seed is {seed}; it is a whole number from 0 on, or None")
    files = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    if not files:
        raise KabukiError("no files were given to load")
    paths = [os.path.abspath(os.path.expanduser(file)) for file in files]
    with Table(paths, select) as table:
        samples = make(table.fields)
    batches = Batches(paths, select, samples, batch_size, shuffle, seed, epochs)
    if as_numpy:
        return batches
    from kabuki_rlds.training import tensors

    return tensors.dataset(batches)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise KabukiError(f"{name} is {value}; it is a whole number from 1 on")


def _steps(stored: Mapping[str, Field], keep_last: bool) -> Samples:
    return Steps(dict(stored), keep_last)


def _selected(stored: Mapping[str, Field], fields: Sequence[str] | None) -> list[str]:
    """The paths that `fields` names, in the order of the file."""
    if fields is None:
        return list(stored)
    names = [fields] if isinstance(fields, str) else list(fields)
    if not names:
        raise KabukiError("`fields` names no field; leave it out to read all")
    for name in names:
        if not any(_is_in(path, name) for path in stored):
            raise KabukiError(f"there is no step field {name!r}; there are {', '.join(stored)}")
    return [path for path in stored if any(_is_in(path, name) for name in names)]


def _selected_for_transitions(stored: Mapping[str, Field], fields: Sequence[str] | None) -> list[str]:
    """The paths of the fields that make a transition, and of those that `fields` names."""
    always = needed(stored)
    named = [] if fields is None else _selected(stored, fields)
    for group in (OBSERVATION, ACTION):
        if any(_is_in(path, group) for path in named):
            always = [path for path in always if not _is_in(path, group)]
    return [path for path in stored if path != IS_LAST and (path in always or path in named)]


def _is_in(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}/")
