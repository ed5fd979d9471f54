"""Combines the schemas of several sources, files or episodes into one.

A field must have the same type and shape everywhere: a difference usually means that data from different robots are
mixed. Some sizes may differ: the height and width of images, the length of arrays of text or of image files, and
dimensions that one of the schemas declares as variable (None). Such a field is stored with rows of different shapes,
and a warning names it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

import numpy as np

from kabuki_rlds.data.block import Block, Column, as_ragged
from kabuki_rlds.data.features_json import with_shapes
from kabuki_rlds.data.schema import BYTES, Field, Schema, names_of_some
from kabuki_rlds.errors import SchemaMismatchError

_log = logging.getLogger("kabuki_rlds")


class Mismatch(NamedTuple):
    """A field whose type or shape differs from that in the other sources, or that some sources do not have.

    Attributes:
      source: the label of a source that does not match.
      path: the path of the field.
      why: the message.
    """

    source: str
    path: str
    why: str


def join_fields(mine: Field, theirs: Field, *, of_any_length: bool = False) -> Field | None:
    """A field that can hold the rows of two fields, or None if their types or shapes are not compatible.

    Args:
      mine: the first field.
      theirs: the second field.
      of_any_length: whether the first dimension may differ, as for lists.
    """
    rank = len(mine.shape)
    if len(theirs.shape) != rank or not dataclasses.replace(theirs, shape=mine.shape).is_same(mine):
        return None
    is_free = mine.dtype == BYTES or mine.encoded
    are_images = mine.holds_images and theirs.holds_images
    shape: list[int | None] = []
    for axis, (a, b) in enumerate(zip(mine.shape, theirs.shape, strict=True)):
        may_differ = a is None or b is None or is_free or (of_any_length and axis == 0)
        may_differ |= are_images and axis in (rank - 3, rank - 2)
        if a != b and not may_differ:
            return None
        shape.append(a if a == b else None)
    file_format = mine.file_format if mine.file_format == theirs.file_format else ""
    kind = "image" if are_images and mine.shape != theirs.shape else mine.kind
    return dataclasses.replace(mine, shape=tuple(shape), kind=kind, file_format=file_format)


def can_hold(wide: Field, field: Field) -> bool:
    """Whether `wide`, a field from `common_schema`, can hold the rows of `field`."""
    if wide.kind == "image" and field.holds_images:
        field = dataclasses.replace(field, kind="image")
    joint = join_fields(field, wide)
    return joint is not None and joint.shape == wide.shape


def common_schema(schemas: Sequence[Schema], labels: Sequence[str]) -> Schema:
    """A schema that can hold the rows of all sources. Its info and the order of its fields come from the first schema.

    Args:
      schemas: the schema of each source.
      labels: the name of each source for messages.

    Raises:
      KabukiError: some sources do not have a field, or a field differs in type or shape.
    """
    every_step, every_metadata = [schema.steps for schema in schemas], [schema.metadata for schema in schemas]
    problems = [
        *_missing("step field", every_step, labels),
        *_missing("episode field", every_metadata, labels),
        *_differing("step field", every_step, labels),
        *_differing("episode field", every_metadata, labels),
    ]
    if problems:
        _refuse(problems, problems[0].source, labels[0])
    return _widen(
        schemas[0], _all_joined("step field", every_step, labels), _all_joined("episode field", every_metadata, labels),
        schemas,
    )  # fmt: skip


def differences(mine: Schema, theirs: Schema, label: str, other_label: str) -> list[Mismatch]:
    """One entry for each field that differs between two schemas; an empty list if they are equal.

    Args:
      mine: the first schema.
      theirs: the second schema.
      label: the name of the first source for messages.
      other_label: the name of the second source for messages.
    """
    found = []
    labels = [label, other_label]
    for what, own, other in (
        ("step field", mine.steps, theirs.steps),
        ("episode field", mine.metadata, theirs.metadata),
    ):
        found += _missing(what, [own, other], labels)
        for path, field in own.items():
            if path in other and not other[path].is_same(field):
                found.append(
                    Mismatch(other_label, path, difference(what, path, field, label, other[path], other_label))
                )
    return found


def check_equal(mine: Schema, theirs: Schema, label: str, other_label: str) -> None:
    """Checks that two schemas have equal fields.

    Raises:
      KabukiError: a field differs. The message lists all that do.
    """
    found = differences(mine, theirs, label, other_label)
    if found:
        _refuse(found, other_label, label)


def _refuse(found: Sequence[Mismatch], label: str, first: str) -> NoReturn:
    why = "; ".join(each.why for each in found)
    error = SchemaMismatchError(f"{label} does not fit {first}: {why}", fields=tuple(each.path for each in found))
    error.file = label
    raise error


def with_common_shapes(schema: Schema, common: Schema, schemas: Sequence[Schema]) -> Schema:
    """`schema` with the shapes of `common`.

    Args:
      schema: one of `schemas`.
      common: the schema that `common_schema` made from `schemas`.
      schemas: the schemas of all sources.
    """
    steps, metadata = (
        {
            path: dataclasses.replace(
                field, shape=wide[path].shape, kind=wide[path].kind, file_format=wide[path].file_format
            )
            for path, field in own.items()
        }
        for own, wide in ((schema.steps, common.steps), (schema.metadata, common.metadata))
    )
    return _widen(schema, steps, metadata, schemas)


def fit_block(block: Block, schema: Schema) -> Block:
    """Converts columns to `Ragged` where `schema`, made by `common_schema`, has a field of varying shape."""
    steps = {path: _fit_column(column, schema.steps.get(path)) for path, column in block.steps.items()}
    metadata = {path: _fit_column(column, schema.metadata.get(path)) for path, column in block.metadata.items()}
    return dataclasses.replace(block, steps=steps, metadata=metadata)


def _fit_column(column: Column, field: Field | None) -> Column:
    if field is None or field.encoded or None not in field.shape or not isinstance(column, np.ndarray):
        return column
    return as_ragged(column)


def _missing(what: str, every: Sequence[Mapping[str, Field]], labels: Sequence[str]) -> list[Mismatch]:
    """One entry for each field that some sources do not have."""
    found = []
    for path in dict.fromkeys(path for fields in every for path in fields):
        has = [label for label, fields in zip(labels, every, strict=True) if path in fields]
        lacks = [label for label, fields in zip(labels, every, strict=True) if path not in fields]
        if lacks:
            other = (lacks if labels[0] in has else has)[0]
            why = f"{what} {path!r} is in {names_of_some(has)}, but not in {names_of_some(lacks)}"
            found.append(Mismatch(other, path, why))
    return found


def _differing(what: str, every: Sequence[Mapping[str, Field]], labels: Sequence[str]) -> list[Mismatch]:
    """One entry for each field whose type or shape differs."""
    found = []
    for path, first in every[0].items():
        joint = first
        for label, fields in zip(labels[1:], every[1:], strict=True):
            theirs = fields.get(path)
            if theirs is None:
                continue
            fits = join_fields(joint, theirs)
            if fits is None:
                found.append(Mismatch(label, path, difference(what, path, first, labels[0], theirs, label)))
                break
            joint = fits
    return found


def difference(what: str, path: str, mine: Field, label: str, theirs: Field, other_label: str) -> str:
    """A message that says how a field differs between two sources."""
    if mine.describe() == theirs.describe():
        return f"{what} {path!r} has different class names in {label} and in {other_label}"
    return f"{what} {path!r} is {mine.describe()} in {label}, but {theirs.describe()} in {other_label}"


def _all_joined(what: str, every: Sequence[Mapping[str, Field]], labels: Sequence[str]) -> dict[str, Field]:
    made = {}
    for path, first in every[0].items():
        joint = first
        for label, fields in zip(labels[1:], every[1:], strict=True):
            fits = join_fields(joint, fields[path])
            assert fits is not None
            if fields[path].shape != joint.shape:
                warn_of_shapes(difference(what, path, first, labels[0], fields[path], label))
            joint = fits
        made[path] = joint
    return made


def warn_of_shapes(why: str) -> None:
    """Warns that a field is stored with rows of different shapes. `why` comes from `difference`."""
    _log.warning("%s; it is stored with rows of different shapes", why)


def _widen(schema: Schema, steps: dict[str, Field], metadata: dict[str, Field], schemas: Sequence[Schema]) -> Schema:
    """`schema` with its fields, and their shapes in the TFDS features, replaced by `steps` and `metadata`."""
    wide = {(True, path): field for path, field in steps.items() if field.shape != schema.steps[path].shape}
    wide |= {(False, path): field for path, field in metadata.items() if field.shape != schema.metadata[path].shape}
    features = schema.features
    if wide and features:
        others = [(each.features, each.steps, each.metadata) for each in schemas if each.features]
        features = with_shapes(features, wide, others)
        if not features:
            _log.warning(
                "the TFDS features of the source do not allow rows of different shapes, so they are not stored; "
                "`build` derives features from the arrays"
            )
    return dataclasses.replace(schema, steps=steps, metadata=metadata, features=features)
