"""The layouts that are known, and which of them a file has."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from kabuki_rlds.data.rules import FLAGS
from kabuki_rlds.data.skipped_episodes import skip_damaged
from kabuki_rlds.data.source import Source
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files.paths import local_path
from kabuki_rlds.formats.demos import minari_arrow
from kabuki_rlds.formats.demos.aloha import Aloha
from kabuki_rlds.formats.demos.d4rl import D4rl, D4rlSource
from kabuki_rlds.formats.demos.libero import Libero
from kabuki_rlds.formats.demos.minari import Minari
from kabuki_rlds.formats.demos.robomimic import Robomimic
from kabuki_rlds.formats.demos.robosuite import Robosuite
from kabuki_rlds.formats.demos.source import DemosSource, Layout
from kabuki_rlds.formats.hdf5.layout import EPISODES, FORMAT, text_attribute
from kabuki_rlds.formats.safe_hdf5.open_file import open_file

#: In the order in which they are asked, since the first that recognises a file has it.
LAYOUTS = (Libero(), Robosuite(), Robomimic(), Minari(), Aloha(), D4rl())
_MINARI_ARROW = minari_arrow.MinariArrow()


def layout_of(path: pathlib.Path) -> Layout | D4rl | None:
    """The layout of an HDF5 file, or of a folder with a Minari dataset in Arrow or Parquet; None if it has none.

    Raises:
      KabukiError: it cannot be opened.
    """
    if not os.path.isfile(path):
        return _MINARI_ARROW if os.path.isdir(path) and minari_arrow.recognises(path) else None
    with open_file(path, quiet=True) as file:
        if text_attribute(file, "format") == FORMAT:
            return None
        return next((layout for layout in LAYOUTS if layout.recognises(file)), None)


def refuse(path: str | os.PathLike[str]) -> None:
    """Refuses a file that is laid out as others do, where a Kabuki file is wanted.

    Raises:
      KabukiError: it is one, or cannot be opened.
    """
    layout = layout_of(local_path(path))
    if layout is not None:
        raise KabukiError(
            f"{path}: laid out as {layout.name}'s, and no Kabuki file; `convert` makes one of it, and `recipe` prints "
            "its fields"
        )


def unknown(path: pathlib.Path, why: KabukiError) -> KabukiError:
    """What to say of a file that cannot be read as Kabuki's: that it is in no layout, where it is not Kabuki's either.

    Args:
      path: the file.
      why: what is wrong with it as a Kabuki file.
    """
    if not path.is_file():
        return why
    with contextlib.suppress(KabukiError), open_file(path, quiet=True) as file:
        if text_attribute(file, "format") != FORMAT and not {*FLAGS, EPISODES} & set(file):
            names = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
            has = ", ".join(list(file)[:8]) or "nothing"
            return KabukiError(
                f"{path}: neither a Kabuki file nor laid out as {names} (it has {has}); the README says how a few "
                "lines of h5py make one"
            )
    return why


def open_files(
    layout: Layout | D4rl,
    files: Sequence[pathlib.Path],
    *,
    split: str | None,
    assume: Mapping[str, str],
    asked: Collection[str],
    images: Literal["arrays", "encoded"],
    skip_bad: bool,
) -> Source:
    """Opens files that are all in one layout, or the one file that makes a source.

    Raises:
      KabukiError: one cannot be read, or has not the split.
    """
    if isinstance(layout, D4rl):
        (path,) = files
        flat = D4rlSource(path, split=split, assume=assume, images=images, asked=asked, skip_bad=skip_bad)
        return skip_damaged(flat) if skip_bad else flat
    source = DemosSource(layout, files, split=split, assume=assume, images=images, asked=asked, skip_bad=skip_bad)
    return skip_damaged(source) if skip_bad else source
