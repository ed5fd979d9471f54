"""TFDS features as JSON text, changed without TFDS.

A node is a dict: of fields (`featuresDict`), a list (`sequence`), or one field with its shape (`image`, `tensor`, …).
(Source: TFDS's `feature.proto`.)
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from kabuki_rlds.data.schema import Field

#: (whether it is a field of the steps, path) to field.
_Wide: TypeAlias = Mapping[tuple[bool, str], Field]
#: The features of a source, with the fields of its steps and of its episodes.
_Other: TypeAlias = tuple[str, Mapping[str, Field], Mapping[str, Field]]


def with_shapes(features: str, wide: _Wide, others: Sequence[_Other]) -> str:
    """The features with some fields of wider shapes.

    Args:
      features: the features.
      wide: the fields as they are to be, with None for dimensions that vary.
      others: sources whose features may have such a field already.

    Returns:
      the features, or "" if they cannot express such a field.
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
    """The node of the field in the features of a source where it has this shape."""
    for features, steps, metadata in others:
        theirs = (steps if in_steps else metadata).get(path)
        if theirs is not None and theirs.shape == field.shape:
            return _node(json.loads(features), in_steps, path)
    return None


def _node(tree: Any, in_steps: bool, path: str) -> dict[str, Any]:
    """The node of a field.

    Raises:
      KeyError: there is none.
    """
    names = [*(["steps"] if in_steps else []), *path.split("/")]
    node = {"featuresDict": tree["content"]}
    for name in names:
        while "sequence" in node:
            node = node["sequence"]["feature"]
        node = node["featuresDict"]["features"][name]
    return node


def _widen_image(node: dict[str, Any], field: Field) -> None:
    """Gives an image, or a list of images, dimensions that vary.

    Raises:
      KeyError: it is not an image.
    """
    while "sequence" in node:
        node = node["sequence"]["feature"]
    kind = "video" if "video" in node else "image"
    dimensions = node[kind]["shape"]["dimensions"]
    sizes = field.shape[len(field.shape) - len(dimensions) :]
    node[kind]["shape"]["dimensions"] = ["-1" if size is None else str(size) for size in sizes]
