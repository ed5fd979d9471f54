"""Imports optional packages, each of which an extra of setup.cfg installs."""

from __future__ import annotations

import importlib

from kabuki_rlds.errors import MissingDependencyError

#: Top-level module to the extra that installs it.
_EXTRAS = {
    "tensorflow": "tensorflow",
    "tensorflow_datasets": "tensorflow",
    "pyarrow": "arrow",
    "envlogger": "envlogger",
    "gymnasium": "environments",
    "mujoco": "environments",
}


def require(purpose: str, *modules: str, otherwise: str = "") -> None:
    """Imports optional modules. Call this before the first `import` of one of them.

        require("reading an RLDS dataset", "tensorflow", "tensorflow_datasets")

    Args:
      purpose: what needs them, the subject of the error message.
      modules: names of modules.
      otherwise: what to do without them, for the end of the message.

    Raises:
      MissingDependencyError: one of them cannot be imported. The message contains the command that installs it.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as e:
            package = module.partition(".")[0]
            remedy = f"pip install 'kabuki_rlds[{_EXTRAS[package]}]'" + (otherwise and f"; {otherwise}")
            raise MissingDependencyError(f"{purpose} needs {package} ({e}): {remedy}") from e
