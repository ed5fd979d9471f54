"""n-step returns: the rewards and discounts of several steps put together, as columns of their own.

They are computed for whole runs of rows and not for single samples, so that n steps
take about log(n) passes over a run, and no more memory than one step.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Final

import numpy as np

from kabuki_rlds.data.rules import DISCOUNT, REWARD
from kabuki_rlds.data.schema import Field
from kabuki_rlds.formats.hdf5.fixed import FixedReader
from kabuki_rlds.loading.table_episodes import Episodes

#: What returns are made of, and stand in the place of.
RETURNS: Final = (REWARD, DISCOUNT)


@dataclasses.dataclass(frozen=True)
class Returns:
    """What stands in the place of rewards and discounts: those of `n_step` steps, from each row on.

        reward    r[t] + gamma d[t] r[t+1] + gamma^2 d[t] d[t+1] r[t+2] + … n terms
        discount  gamma^(n-1) d[t] d[t+1] … d[t+n-1]

    At the end of an episode there are as many terms as there are steps left.

    Attributes:
      n_step: how many steps, at least 2.
      gamma: the factor of each step after the first.
    """

    n_step: int
    gamma: float

    def field(self, stored: Field) -> Field:
        """What a row is, where a reward or discount is as `stored`: real numbers."""
        # A return is a fraction even where rewards are whole.
        return dataclasses.replace(stored, dtype=np.dtype(np.float64)) if stored.dtype.kind in "biu" else stored

    def of(self, rewards: np.ndarray, discounts: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(returns, discounts) of each of consecutive rows.

        Args:
          rewards: float64, (rows, numbers).
          discounts: float64, (rows, 1).
          left: how many steps the episode has from each row on, int64, (rows,).
        """
        done, steps = None, 0
        span, length = (rewards, discounts), 1
        for bit in reversed(f"{self.n_step:b}"):
            # What n steps bring is put together from spans of 1, 2, 4, … steps.
            if bit == "1":
                done = span if done is None else self._joined(done, steps, span, left)
                steps += length
            if steps < self.n_step:
                span, length = self._joined(span, length, span, left), 2 * length
        assert done is not None
        return done

    def _joined(
        self, first: tuple[np.ndarray, np.ndarray], steps: int, then: tuple[np.ndarray, np.ndarray], left: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns and discounts of `steps` steps, and of those that come then."""
        rows = max(len(left) - steps, 0)
        # Past the end of its episode a return stays what it is.
        live = (left[:rows] > steps)[:, None]
        total, factor = (values.copy() for values in first)
        with np.errstate(invalid="ignore", over="ignore"):
            factor[:rows] *= np.where(live, self.gamma, 1)
            np.add(total[:rows], factor[:rows] * then[0][steps:], out=total[:rows], where=live)
            np.multiply(factor[:rows], then[1][steps:], out=factor[:rows], where=live)
        return total, factor


class ReturnReader:
    """Reads n-step returns or discounts of a file, as if these were its rewards or discounts.

    Args:
      path: which of the two.
      returns: how they are put together.
      rewards, discounts: read the file's.
      episodes: the episodes of the file.
    """

    def __init__(
        self,
        path: str,
        returns: Returns,
        field: Field,
        rewards: FixedReader,
        discounts: FixedReader,
        episodes: Episodes,
    ):
        self._path = path
        self._returns = returns
        self._dtype = field.dtype
        self._shape = tuple(d for d in field.shape if d is not None)
        self._readers = {REWARD: rewards, DISCOUNT: discounts}
        self._ends, self._stops = episodes.ends, episodes.transition_ends
        #: How many rows are read at once, where any of them is wanted.
        self.run_rows = self._readers[path].run_rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, (stop - start, *shape)."""
        if start >= stop:
            return np.empty((0, *self._shape), self._dtype)
        end = int(min(stop + self._returns.n_step - 1, self._ends[np.searchsorted(self._ends, stop - 1, side="right")]))
        rows = np.arange(start, end)
        left = self._stops[np.searchsorted(self._ends, rows, side="right")] - rows
        discounts = self._column(DISCOUNT, start, end)
        # Discounts need no rewards.
        rewards = self._column(REWARD, start, end) if self._path == REWARD else discounts[:, :0]
        total, factor = self._returns.of(rewards, discounts, left)
        column = total if self._path == REWARD else factor
        return column[: stop - start].astype(self._dtype).reshape(stop - start, *self._shape)

    def take_into(self, out: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        """Puts row `rows[i]` at `out[places[i]]`; rows are ascending."""
        cuts = np.flatnonzero(np.diff(rows // self.run_rows)) + 1
        for a, b in itertools.pairwise([0, *cuts.tolist(), len(rows)]):
            first = int(rows[a])
            out[places[a:b]] = self.read(first, int(rows[b - 1]) + 1)[rows[a:b] - first]

    def _column(self, path: str, start: int, end: int) -> np.ndarray:
        return self._readers[path].read(start, end).astype(np.float64).reshape(end - start, -1)
