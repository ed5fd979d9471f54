"""Converts offline-RL datasets between RLDS and HDF5 (the Kabuki format), and loads and records them.

convert    convert datasets to one Kabuki HDF5 file
build      convert datasets to an RLDS dataset
export     write a dataset in the layout of robomimic, Minari or D4RL
validate   check a dataset against the rules of the format
compare    compare a Kabuki file with its sources
inspect    summarise a dataset
open       open any source for random access to its episodes
load       load files as a `tf.data.Dataset` of RLDS episodes
load_steps, load_transitions, load_windows    load batches for training
dataset    load samples by index, for PyTorch and Grain
record     record an environment while an agent acts in it
Logger     record the steps of a custom loop
EnvLoggerBackend    write the steps that EnvLogger records

The public names are those that `dir(kabuki_rlds)` lists. Everything else is internal and may change in any release.
"""

from typing import TYPE_CHECKING, Any

from kabuki_rlds.commands.build import Built, build
from kabuki_rlds.commands.compare import Difference, compare
from kabuki_rlds.commands.convert import Conversion, convert
from kabuki_rlds.commands.export import Exported, export
from kabuki_rlds.commands.inspect import Summary, inspect
from kabuki_rlds.commands.validate import validate
from kabuki_rlds.data.rules import Violation
from kabuki_rlds.errors import (
    DamagedDataError,
    DestinationExistsError,
    InvalidArgumentError,
    KabukiError,
    MissingDependencyError,
    SchemaMismatchError,
    SourceNotFoundError,
)
from kabuki_rlds.extras import require
from kabuki_rlds.loading import Batches, load_steps, load_transitions, load_windows
from kabuki_rlds.loading.map_dataset import MapDataset, dataset
from kabuki_rlds.loading.open_dataset import OpenDataset, StoredEpisode, open
from kabuki_rlds.loading.rlds_dataset import load
from kabuki_rlds.recording.environments import record
from kabuki_rlds.recording.logger import Logger
from kabuki_rlds.version import VERSION

if TYPE_CHECKING:
    # Not in `__all__`: otherwise `import *` fails if EnvLogger is not installed.
    from kabuki_rlds.recording.envlogger_backend import EnvLoggerBackend as EnvLoggerBackend

__version__ = VERSION

__all__ = [
    "Batches",
    "Built",
    "Conversion",
    "DamagedDataError",
    "DestinationExistsError",
    "Difference",
    "Exported",
    "InvalidArgumentError",
    "KabukiError",
    "Logger",
    "MapDataset",
    "MissingDependencyError",
    "OpenDataset",
    "SchemaMismatchError",
    "SourceNotFoundError",
    "StoredEpisode",
    "Summary",
    "Violation",
    "build",
    "compare",
    "convert",
    "dataset",
    "export",
    "inspect",
    "load",
    "load_steps",
    "load_transitions",
    "load_windows",
    "open",
    "record",
    "validate",
]


def __getattr__(name: str) -> Any:
    # The base class is in EnvLogger, an optional package, so the import is deferred.
    if name == "EnvLoggerBackend":
        require(
            "EnvLoggerBackend",
            "envlogger.backends.backend_writer",
            otherwise="EnvLogger supports only Python 3.11 on Linux x86-64; kabuki_rlds.record works without it",
        )
        from kabuki_rlds.recording.envlogger_backend import EnvLoggerBackend

        return EnvLoggerBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "EnvLoggerBackend", *(name for name in globals() if name.startswith("__"))])
