"""Offline-RL datasets between RLDS and HDF5, in the Kabuki format.

convert    datasets to one Kabuki HDF5 file
build      Kabuki files to an RLDS dataset
validate   a file against each rule of the format
compare    a file with the datasets that it came from
inspect    what is in a file
load       files as a `tf.data.Dataset` of RLDS episodes
load_steps, load_transitions, load_windows    batches to train on
"""

from kabuki_rlds.build import Built, build
from kabuki_rlds.compare import Difference, compare
from kabuki_rlds.convention import Violation
from kabuki_rlds.convert import Conversion, convert
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.inspect import Summary, inspect
from kabuki_rlds.load import load
from kabuki_rlds.training import load_steps, load_transitions, load_windows
from kabuki_rlds.validate import validate

__version__ = "0.1.0"

__all__ = [
    "Built",
    "Conversion",
    "Difference",
    "KabukiError",
    "Summary",
    "Violation",
    "build",
    "compare",
    "convert",
    "inspect",
    "load",
    "load_steps",
    "load_transitions",
    "load_windows",
    "validate",
]
