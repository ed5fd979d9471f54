"""Catch: a ball falls down a board, and the agent moves a paddle on the bottom row to catch it."""

import dm_env
import numpy as np
from dm_env import specs

ROWS, COLUMNS = 10, 5


class Catch(dm_env.Environment):
    """An episode is the fall of one ball. The reward of the last step is 1 if the ball is caught, else -1.

    The observation is the board, float32 (10, 5), with ones at the positions of the ball and
    of the paddle. The actions are 0 (left), 1 (stay) and 2 (right).
    """

    def __init__(self, seed: int):
        self._random = np.random.default_rng(seed)
        self._ball = (0, 0)
        self._paddle = 0

    def reset(self):
        self._ball = (0, int(self._random.integers(COLUMNS)))
        self._paddle = COLUMNS // 2
        return dm_env.restart(self._board())

    def step(self, action):
        self._paddle = min(max(self._paddle + int(action) - 1, 0), COLUMNS - 1)
        row, column = self._ball[0] + 1, self._ball[1]
        self._ball = (row, column)
        if row == ROWS - 1:
            return dm_env.termination(1.0 if column == self._paddle else -1.0, self._board())
        return dm_env.transition(0.0, self._board())

    def observation_spec(self):
        return specs.BoundedArray((ROWS, COLUMNS), np.float32, 0, 1, "board")

    def action_spec(self):
        return specs.DiscreteArray(3, np.int32, "action")

    def _board(self):
        board = np.zeros((ROWS, COLUMNS), np.float32)
        board[self._ball] = 1
        board[ROWS - 1, self._paddle] = 1
        return board
