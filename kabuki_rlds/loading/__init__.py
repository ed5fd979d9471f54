"""Batches and datasets to train on, and random access to episodes."""

from kabuki_rlds.loading.batches import Batches
from kabuki_rlds.loading.loaders import load_steps, load_transitions, load_windows

__all__ = ["Batches", "load_steps", "load_transitions", "load_windows"]
