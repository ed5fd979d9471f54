"""Everything that reads a file or a dataset from an unknown sender, by name.

A reader takes the path of its input and a folder for its output. It returns normally or raises `KabukiError`. Any other
exception is a fault.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

import kabuki_rlds
from kabuki_rlds.commands.export import LayoutName

#: Batches and samples that are read from one file.
_COUNT = 20
_FILL = dict.fromkeys(("observation", "action", "reward", "discount", "is_terminal"), 0.0)


def convert(path: Path, folder: Path, **options: bool) -> kabuki_rlds.Conversion:
    """Converts, and validates the result: it breaks the rules that `convert` warned of, and no other.

    The attribute `notes` names the rules 3 to 5 that it breaks.
    """
    dest = folder / "out.hdf5"
    result = kabuki_rlds.convert(path, dest, fill=_FILL, overwrite=True, **options)  # type: ignore[arg-type]
    noted = kabuki_rlds.validate(dest)
    assert not any(3 <= violation.rule <= 5 for violation in noted), (noted, result.warnings)
    with h5py.File(dest, "r+") as file:
        file.attrs.pop("notes", None)
    found = kabuki_rlds.validate(dest)
    rules, warned = ({violation.rule for violation in each} for each in (found, result.warnings))
    assert rules == warned, (found, result.warnings)
    return result


def convert_and_skip(path: Path, folder: Path) -> None:
    """Converts all episodes, then without the bad ones. Only damaged episodes may be skipped."""
    rejected = None
    try:
        whole = convert(path, folder)
    except kabuki_rlds.KabukiError as e:
        rejected = e
    result = convert(path, folder, skip_bad_episodes=True)
    if rejected is not None:
        raise rejected
    assert (result.num_episodes, result.skipped) == (whole.num_episodes, []), "skipped an intact episode"


def convert_with_recipe(path: Path, folder: Path) -> None:
    """Converts the HDF5 file in a folder with the recipe beside it."""
    recipe, source = path / "recipe.yaml", next(path.glob("*.hdf5"))
    kabuki_rlds.convert(source, folder / "out.hdf5", recipe=recipe, fill=_FILL, overwrite=True)


def open_and_read(path: Path, folder: Path) -> None:
    with kabuki_rlds.open(path) as episodes:
        for episode in itertools.islice(episodes, _COUNT):
            assert all(len(column) == episode.num_steps for column in _leaves(episode.steps)), episode


def load_steps(path: Path, folder: Path) -> None:
    for batch in itertools.islice(kabuki_rlds.load_steps(path, 4, shuffle=True, seed=0, as_numpy=True), _COUNT):
        assert {len(column) for column in _leaves(batch)} <= {1, 2, 3, 4}


def load_transitions(path: Path, folder: Path) -> None:
    for _ in itertools.islice(kabuki_rlds.load_transitions(path, 4, as_numpy=True), _COUNT):
        pass


def load_windows(path: Path, folder: Path) -> None:
    for _ in itertools.islice(kabuki_rlds.load_windows(path, 4, length=2, pad=True, as_numpy=True), _COUNT):
        pass


def dataset(path: Path, folder: Path) -> None:
    samples = kabuki_rlds.dataset(path, offsets={"action": [0, 1]}, pad="edge")
    samples.__getitems__(range(min(len(samples), _COUNT)))
    for episode in itertools.islice(samples.episodes, _COUNT):
        assert episode.num_steps > 0


def export_to(layout: LayoutName) -> Callable[[Path, Path], object]:
    name = f"{layout}-v0" if layout == "minari" else f"{layout}.hdf5"
    options: Any = {"fill": _FILL, "last_row": "step", "overwrite": True}
    return lambda path, folder: kabuki_rlds.export(path, folder / name, layout, **options)


def _leaves(node: object) -> list:
    return [leaf for inner in node.values() for leaf in _leaves(inner)] if isinstance(node, dict) else [node]


READERS: dict[str, Callable[[Path, Path], object]] = {
    "validate": lambda path, folder: kabuki_rlds.validate(path),
    "inspect": lambda path, folder: kabuki_rlds.inspect(path),
    "convert": convert,
    "convert, skipping": convert_and_skip,
    "convert with recipe": convert_with_recipe,
    "open": open_and_read,
    "load_steps": load_steps,
    "load_transitions": load_transitions,
    "load_windows": load_windows,
    "dataset": dataset,
    "export to robomimic": export_to("robomimic"),
    "export to minari": export_to("minari"),
    "export to d4rl": export_to("d4rl"),
}

LOADERS = ("load_steps", "load_transitions", "load_windows", "dataset")
EXPORTS = ("export to robomimic", "export to minari", "export to d4rl")
#: The readers of Kabuki files, of demonstrations of other projects, and of RLDS datasets.
HDF5 = ("validate", "inspect", "convert", "open", *LOADERS, *EXPORTS)
DEMONSTRATIONS = ("validate", "inspect", "convert, skipping", "open", *EXPORTS)
RLDS = ("inspect", "convert, skipping", "open", *EXPORTS)
