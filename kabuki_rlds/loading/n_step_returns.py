"""Computes n-step returns and discounts as columns.

They are computed for consecutive rows together, not for each sample, in about log2(n)
passes over the rows. Memory use does not depend on n.
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

#: The fields that n-step returns are computed from, and that they replace.
RETURNS: Final = (REWARD, DISCOUNT)


@dataclasses.dataclass(frozen=True)
class Returns:
    """The n-step return and discount that replace the reward and discount of each row.

        reward    r[t] + gamma d[t] r[t+1] + gamma^2 d[t] d[t+1] r[t+2] + … n terms
        discount  gamma^(n-1) d[t] d[t+1] … d[t+n-1]

    Near the end of an episode there are only as many terms as steps remain.

    Attributes:
      n_step: the number of steps n, at least 2.
      gamma: the discount factor per step, applied from the second step on.
    """

    n_step: int
    gamma: float

    def field(self, stored: Field) -> Field:
        """The type of the returns or discounts for a stored reward or discount field. Integers become float64."""
        # Returns of integer rewards are not integers.
        return dataclasses.replace(stored, dtype=np.dtype(np.float64)) if stored.dtype.kind in "biu" else stored

    def of(self, rewards: np.ndarray, discounts: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(returns, discounts) of consecutive rows, in the shapes of the arguments.

        Args:
          rewards: float64, (rows, rewards per row).
          discounts: float64, (rows, 1).
          left: the number of steps from each row to the end of its episode: int64, (rows,).
        """
        done, steps = None, 0
        span, length = (rewards, discounts), 1
        for bit in reversed(f"{self.n_step:b}"):
            # Combine spans of 1, 2, 4, … steps to n steps, as in exponentiation by squaring.
            if bit == "1":
                done = span if done is None else self._concatenate(done, steps, span, left)
                steps += length
            if steps < self.n_step:
                span, length = self._concatenate(span, length, span, left), 2 * length
        assert done is not None
        return done

    def _concatenate(
        self, first: tuple[np.ndarray, np.ndarray], steps: int, then: tuple[np.ndarray, np.ndarray], left: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(returns, discounts) of the spans `first`, which are `steps` long, followed by the spans `then`."""
        rows = max(len(left) - steps, 0)
        # A span that reaches the end of its episode is not extended.
        live = (left[:rows] > steps)[:, None]
        total, factor = (values.copy() for values in first)
        with np.errstate(invalid="ignore", over="ignore"):
            factor[:rows] *= np.where(live, self.gamma, 1)
            np.add(total[:rows], factor[:rows] * then[0][steps:], out=total[:rows], where=live)
            np.multiply(factor[:rows], then[1][steps:], out=factor[:rows], where=live)
        return total, factor


class ReturnReader:
    """Reads n-step returns or discounts from a file. It has the interface of `FixedReader`.

    Args:
      path: "reward" for returns, "discount" for discounts.
      returns: how to compute them.
      field: the type of the result.
      rewards: the reader of the stored rewards.
      discounts: the reader of the stored discounts.
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
        #: The number of rows that are read together.
        self.run_rows = self._readers[path].run_rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """The rows `start` to `stop`: (stop - start, *row shape)."""
        if start >= stop:
            return np.empty((0, *self._shape), self._dtype)
        end = int(min(stop + self._returns.n_step - 1, self._ends[np.searchsorted(self._ends, stop - 1, side="right")]))
        rows = np.arange(start, end)
        left = self._stops[np.searchsorted(self._ends, rows, side="right")] - rows
        discounts = self._column(DISCOUNT, start, end)
        # The discounts do not depend on rewards.
        rewards = self._column(REWARD, start, end) if self._path == REWARD else discounts[:, :0]
        total, factor = self._returns.of(rewards, discounts, left)
        column = total if self._path == REWARD else factor
        return column[: stop - start].astype(self._dtype).reshape(stop - start, *self._shape)

    def take_into(self, out: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        """Writes row `rows[i]` to `out[places[i]]`. `rows` must be ascending."""
        cuts = np.flatnonzero(np.diff(rows // self.run_rows)) + 1
        for a, b in itertools.pairwise([0, *cuts.tolist(), len(rows)]):
            first = int(rows[a])
            out[places[a:b]] = self.read(first, int(rows[b - 1]) + 1)[rows[a:b] - first]

    def _column(self, path: str, start: int, end: int) -> np.ndarray:
        return self._readers[path].read(start, end).astype(np.float64).reshape(end - start, -1)
