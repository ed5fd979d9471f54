"""Writes a first draft of a recipe for a source."""

from __future__ import annotations

import json

from kabuki_rlds.data.rules import ACTION, FLAGS, IS_TERMINAL, REWARD, has_field
from kabuki_rlds.data.schema import Field
from kabuki_rlds.data.source import Source


def draft(source: Source) -> str:
    """The YAML text of a recipe that keeps all fields unchanged.

    Comments give the type of each field, and operations that the user may want.
    """
    formats = sorted({origin.format for origin in source.origins} - {""})
    lines = [f"about: {json.dumps('drafted for ' + source.label)}"]
    if formats:
        lines.append(f"for: [{', '.join(formats)}]")
    missing = [name for name in (ACTION, REWARD) if not has_field(source.schema.steps, name)]
    if IS_TERMINAL not in source.schema.steps and "discount" not in source.schema.steps:
        missing.append(IS_TERMINAL)
    if missing:
        lines += ["fill:", *(f"  {name}: 0" for name in missing)]
    lines.append(
        "# Each entry: the new field, and the source field after `from`. Edit: rename, remove, add operations."
    )
    lines.append("steps:")
    for path, field in source.schema.steps.items():
        if path not in FLAGS:
            lines += _entry(path, field)
    if source.schema.metadata:
        lines += ["  # A step field with the text of an episode field:"]
        from_name = "{from: file_path, match: '([^/]+)[.]hdf5$', replace: {_: ' '}}"
        known = "language_instruction" in source.schema.metadata
        lines += [f"  # language_instruction: {'{from: language_instruction}' if known else from_name}"]
        lines.append("episode:")
        for path, field in source.schema.metadata.items():
            lines += _entry(path, field)
    lines += ["# Fields that are not listed above: keep or drop.", "rest: drop", ""]
    return "\n".join(lines)


def _entry(path: str, field: Field) -> list[str]:
    lines = [f"  {json.dumps(path)}:  # {field.describe()}", f"    from: {json.dumps(path)}"]
    if len(field.shape) == 3 and field.dtype == "uint8":
        channels_first = field.shape[-1] not in (1, 3, 4) and field.shape[0] in (1, 3, 4)
        lines += ["    # transpose: [1, 2, 0]"] if channels_first else []
        if channels_first or field.shape[-1] in (1, 3, 4):
            lines += ["    # rotate: 180", "    # resize: [256, 256]", "    # encode: {jpeg: 95}"]
    elif field.dtype == "float64":
        lines.append("    # cast: float32")
    return lines
