"""The public names of the package are exactly those of its `__init__`."""

from __future__ import annotations

import importlib
import pkgutil
import typing

import kabuki_rlds


def test_dir_lists_the_public_names() -> None:
    listed = {name for name in dir(kabuki_rlds) if not name.startswith("__")}
    assert listed == {*kabuki_rlds.__all__, "EnvLoggerBackend"}


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in kabuki_rlds.__all__:
        assert getattr(kabuki_rlds, name).__doc__, name


def test_no_public_name_shadows_a_module() -> None:
    modules = [info.name for info in pkgutil.walk_packages(kabuki_rlds.__path__, "kabuki_rlds.")]
    assert not {f"kabuki_rlds.{name}" for name in kabuki_rlds.__all__} & set(modules)
    assert importlib.import_module("kabuki_rlds.commands.convert").convert is kabuki_rlds.convert


def test_loaders_state_exact_return_types() -> None:
    for loader in (kabuki_rlds.load_steps, kabuki_rlds.load_transitions, kabuki_rlds.load_windows):
        stated = {str(each.__annotations__["as_numpy"]): each.__annotations__["return"]
                  for each in typing.get_overloads(loader)}  # fmt: skip
        assert stated == {"Literal[True]": "Batches", "Literal[False]": "tf.data.Dataset"}
