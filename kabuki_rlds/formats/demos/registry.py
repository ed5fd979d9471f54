"""All layouts of demonstrations, and which of them a file has."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Mapping

from kabuki_rlds.data.rules import FLAGS
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.files.paths import StrPath, local_path
from kabuki_rlds.formats.demos.aloha import Aloha
from kabuki_rlds.formats.demos.d4rl import D4rl
from kabuki_rlds.formats.demos.d4rl_sink import D4rlSink
from kabuki_rlds.formats.demos.demo_sink import DemoSink
from kabuki_rlds.formats.demos.layout import Layout
from kabuki_rlds.formats.demos.libero import Libero
from kabuki_rlds.formats.demos.minari import Minari
from kabuki_rlds.formats.demos.minari_arrow import MINARI_ARROW
from kabuki_rlds.formats.demos.minari_sink import MinariSink
from kabuki_rlds.formats.demos.robomimic import Robomimic
from kabuki_rlds.formats.demos.robomimic_sink import RobomimicSink
from kabuki_rlds.formats.demos.robosuite import Robosuite
from kabuki_rlds.formats.hdf5.layout import EPISODES, FORMAT, text_attribute
from kabuki_rlds.formats.safe_hdf5.open_file import open_file

#: The layouts of HDF5 files. The first that recognises a file reads it, so LIBERO's and robosuite's special cases of
#: robomimic's layout come before it.
HDF5_LAYOUTS: tuple[Layout, ...] = (Libero(), Robosuite(), Robomimic(), Minari(), Aloha(), D4rl())

#: The layouts that can be written, by the name that `export` takes.
SINKS: Mapping[str, type[DemoSink]] = {"robomimic": RobomimicSink, "minari": MinariSink, "d4rl": D4rlSink}

#: How many members of a file a message lists.
_LISTED = 8


def find_layout(path: pathlib.Path) -> Layout | None:
    """Returns the layout of an HDF5 file, or of a folder with a Minari dataset in Arrow or Parquet.

    Returns:
      the layout; None for a Kabuki file, and for a path in no known layout.

    Raises:
      KabukiError: the file cannot be opened.
    """
    if not os.path.isfile(path):
        return MINARI_ARROW if os.path.isdir(path) and MINARI_ARROW.recognises(path) else None
    with open_file(path, quiet=True) as file:
        if text_attribute(file, "format") == FORMAT:
            return None
        return next((layout for layout in HDF5_LAYOUTS if layout.recognises(file)), None)


def check_is_not_demos(path: StrPath) -> None:
    """Rejects a file of demonstrations where only a Kabuki file is accepted.

    Raises:
      KabukiError: the file has one of the layouts, or cannot be opened.
    """
    layout = find_layout(local_path(path))
    if layout is not None:
        raise KabukiError(
            f"{path}: laid out as {layout.name}'s, and no Kabuki file; `convert` makes one of it, and `recipe` prints "
            "its fields"
        )


def unknown_format(path: pathlib.Path, error: KabukiError) -> KabukiError:
    """Returns the error for a file that cannot be read as a Kabuki file, and has no known layout.

    Args:
      path: the file.
      error: why it cannot be read as a Kabuki file. It is returned if the file looks like one.
    """
    if not path.is_file():
        return error
    with contextlib.suppress(KabukiError), open_file(path, quiet=True) as file:
        if text_attribute(file, "format") != FORMAT and not {*FLAGS, EPISODES} & set(file):
            names = ", ".join(layout.name for layout in HDF5_LAYOUTS)
            has = ", ".join(list(file)[:_LISTED]) or "nothing"
            reason = error.problem if isinstance(error, DamagedDataError) else str(error)
            return KabukiError(
                f"{path}: neither a Kabuki file ({reason}) nor in the layout of {names} (it has {has}); write a Kabuki "
                "file with h5py, as docs/guides/building-rlds.md shows"
            )
    return error
