"""Edits TFDS features in their JSON form, without importing TFDS.

A node of the JSON tree is a dict. Its key says what the node is: a dict of fields (`featuresDict`), a list
(`sequence`), or a field with its shape (`image`, `tensor`, …). (Source: TFDS's `feature.proto`.)
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from kabuki_rlds.data.schema import Field

#: (True for a step field, False for an episode field; path) to field.
_Wide: TypeAlias = Mapping[tuple[bool, str], Field]
#: The features of a source as JSON, its step fields and its episode fields.
_Other: TypeAlias = tuple[str, Mapping[str, Field], Mapping[str, Field]]


def with_shapes(features: str, wide: _Wide, others: Sequence[_Other]) -> str:
    """Replaces the shapes of some fields in the features.

    Args:
      features: the features as JSON.
      wide: the fields with their new shapes; None is a dimension that varies.
      others: other sources. Where one of them already has a field with the new shape, its node is copied.

    Returns:
      the changed features as JSON, or "" if TFDS features cannot express the new shape.
    """
    try:
        tree = json.loads(features)
        for (in_steps, path), field in wide.items():
            node = _node(tree, in_steps, path)
            donor = _donor(in_steps, path, field, others)
            if donor is not None:
                node.clear()
                node.update(copy.deepcopy(donor))
            else:
                _widen_image(node, field)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return json.dumps(tree, sort_keys=True)


def _donor(in_steps: bool, path: str, field: Field, others: Sequence[_Other]) -> dict[str, Any] | None:
    """The node of the same field in another source that has the new shape; None if there is no such source."""
    for features, steps, metadata in others:
        theirs = (steps if in_steps else metadata).get(path)
        if theirs is not None and theirs.shape == field.shape:
            return _node(json.loads(features), in_steps, path)
    return None


def _node(tree: Any, in_steps: bool, path: str) -> dict[str, Any]:
    """The node of a field.

    Raises:
      KeyError: the field is not in the features.
    """
    names = [*(["steps"] if in_steps else []), *path.split("/")]
    node = {"featuresDict": tree["content"]}
    for name in names:
        while "sequence" in node:
            node = node["sequence"]["feature"]
        node = node["featuresDict"]["features"][name]
    return node


def _widen_image(node: dict[str, Any], field: Field) -> None:
    """Sets the shape of an image, or of the images in a list, to that of `field`; -1 is a dimension that varies.

    Raises:
      KeyError: the node is not an image or a list of images.
    """
    while "sequence" in node:
        node = node["sequence"]["feature"]
    kind = "video" if "video" in node else "image"
    dimensions = node[kind]["shape"]["dimensions"]
    sizes = field.shape[len(field.shape) - len(dimensions) :]
    node[kind]["shape"]["dimensions"] = ["-1" if size is None else str(size) for size in sizes]
