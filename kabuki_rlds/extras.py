"""Imports optional packages. Each is installed by an extra of setup.cfg."""

from __future__ import annotations

import importlib

from kabuki_rlds.errors import MissingDependencyError

#: Maps each top-level module to the extra that installs it.
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

    Args:
      purpose: the task that needs the modules. The error message begins with it.
      modules: names of modules.
      otherwise: an alternative to the modules, for the end of the error message.

    Raises:
      MissingDependencyError: a module cannot be imported. The message contains the command that installs it.

    Example:
      require("reading an RLDS dataset", "tensorflow", "tensorflow_datasets")
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as e:
            package = module.partition(".")[0]
            remedy = f"pip install 'kabuki_rlds[{_EXTRAS[package]}]'" + (otherwise and f"; {otherwise}")
            raise MissingDependencyError(f"{purpose} needs {package} ({e}): {remedy}") from e
