"""Offline-RL datasets between RLDS and HDF5, in the Kabuki format.

convert    datasets to one Kabuki HDF5 file
validate   a file against each rule of the format
inspect    what is in a file
"""

from kabuki_rlds.convention import Violation
from kabuki_rlds.convert import Conversion, convert
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.inspect import Summary, inspect
from kabuki_rlds.validate import validate

__version__ = "0.1.0"

__all__ = ["Conversion", "KabukiError", "Summary", "Violation", "convert", "inspect", "validate"]
