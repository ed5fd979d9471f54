"""Batches to train on, read from Kabuki files.

load_steps          steps
load_transitions    observation, action, reward, discount and next observation, n steps on
load_windows        runs of consecutive steps of one episode, for sequence models
"""

from kabuki_rlds.training.batches import Batches
from kabuki_rlds.training.loaders import load_steps, load_transitions, load_windows

__all__ = ["Batches", "load_steps", "load_transitions", "load_windows"]
