"""Offline-RL datasets between RLDS and HDF5, in the Kabuki format.

convert    datasets to one Kabuki HDF5 file
build      datasets to an RLDS dataset
export     a dataset to robomimic's, Minari's or D4RL's layout
validate   a dataset against the rules of the format
compare    a file with the datasets that it came from
inspect    what is in a dataset
open       any source, for random access to its episodes
load       files as a `tf.data.Dataset` of RLDS episodes
load_steps, load_transitions, load_windows    batches to train on
dataset    samples by index, for PyTorch and Grain
record     an environment, as it is used
Logger     what a loop of one's own does
EnvLoggerBackend    what EnvLogger records

The public names are those of this module, as `dir(kabuki_rlds)` lists them. Everything else is internal and may change
in any release.
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
    # Not in `__all__`: `import *` would fail where EnvLogger is not.
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
    # Its base class is EnvLogger's, which is not always installed.
    if name == "EnvLoggerBackend":
        require(
            "EnvLoggerBackend",
            "envlogger.backends.backend_writer",
            otherwise="it exists for Python 3.11 on Linux x86-64; kabuki_rlds.record does without it",
        )
        from kabuki_rlds.recording.envlogger_backend import EnvLoggerBackend

        return EnvLoggerBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "EnvLoggerBackend", *(name for name in globals() if name.startswith("__"))])
