"""Parses recipes from YAML. Errors name the file and the line.

about: a description
for: libero                         # the supported layouts; default: all
assume: {last_observation: repeat}  # semantics that the source format leaves undefined
fill: {reward: 0}                   # constants for missing required fields
split: {train: train, val: valid}   # new split: split or mask of the source
steps:                              # new step fields; operations run in the given order
  observation/image: {from: observation/agentview_rgb, rotate: 180, encode: jpeg}
  action: {from: control}           # renames a field, or a group with all its fields
episode:                            # new episode fields, in the same form
  episode_metadata/file_path: {from: file_path}
drop: [states]                      # fields or groups to drop
rest: keep                          # keep or drop all fields that the recipe does not name
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import os
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.files.paths import local_path
from kabuki_rlds.files.side_files import read_side_file
from kabuki_rlds.transforms.recipes.operations import OPERATIONS, Operation

#: The maximum size of a recipe.
_MAX_BYTES = 1 << 20
_LIBRARY = "library"


@dataclasses.dataclass(frozen=True)
class RecipeField:
    """A field that a recipe makes.

    Attributes:
      path: path of the new field.
      where: file and line of the recipe, and the path, for messages.
      sources: paths of the source fields that it is made from; () for a constant.
      operations: the operations, in the order in which they run.
    """

    path: str
    where: str
    sources: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A parsed recipe.

    Attributes:
      text: the YAML text.
      label: file name of the recipe for messages.
      about: a description.
      layouts: the supported layouts; () means all.
      assume: semantics that the source format leaves undefined.
      fill: constants for required fields that a source does not have.
      splits: name of each new split to the split or mask of the source.
      steps: the new step fields.
      episode: the new episode fields.
      drop: fields or groups of the source to drop: (path, file and line of the recipe).
      keeps_rest: whether fields that the recipe does not name are kept.
      rest_where: file and line of `rest` for messages; only the file if `rest` is not given.
    """

    text: str
    label: str
    about: str
    layouts: tuple[str, ...]
    assume: Mapping[str, str]
    fill: Mapping[str, float]
    splits: Mapping[str, str]
    steps: tuple[RecipeField, ...]
    episode: tuple[RecipeField, ...]
    drop: tuple[tuple[str, str], ...]
    keeps_rest: bool
    rest_where: str


def library() -> dict[str, Recipe]:
    """Name to recipe, for the built-in recipes."""
    folder = importlib.resources.files(__package__) / _LIBRARY
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): parse(f.read_text(), f.name) for f in files}


def load_recipe(recipe: str | os.PathLike[str]) -> Recipe:
    """Reads a recipe.

    Args:
      recipe: path of a YAML file, or name of a built-in recipe.

    Raises:
      KabukiError: the recipe does not exist or is invalid. The message names the line.
    """
    path = local_path(recipe)
    if not path.is_file():
        known = library()
        if os.fspath(recipe) not in known:
            raise InvalidArgumentError(f"{recipe}: is not a file and not a built-in recipe ({', '.join(known)})")
        return known[os.fspath(recipe)]
    try:
        return parse(read_side_file(path, _MAX_BYTES).decode(), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidArgumentError(f"{recipe}: cannot be read: {e}") from e


def parse(text: str, label: str) -> Recipe:
    """Parses the text of a recipe. `label` is its file name for messages.

    Raises:
      KabukiError: the recipe is invalid. The message names the line.
    """
    try:
        # Reject aliases: nested aliases let a short text expand to a huge one.
        alias = next((event for event in yaml.parse(text, yaml.SafeLoader) if isinstance(event, yaml.AliasEvent)), None)
        root = None if alias else yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        problem = getattr(e, "problem", None) or "it is nested too deeply"
        raise InvalidArgumentError(f"{_line(label, mark)}: not valid YAML: {problem}") from e
    if alias:
        raise InvalidArgumentError(f"{_line(label, alias.start_mark)}: YAML aliases are not allowed in a recipe")
    if not isinstance(root, yaml.MappingNode):
        raise InvalidArgumentError(
            f"{label}:1: expected a dict with some of the keys about, for, assume, fill, split, steps, episode, drop, "
            "rest"
        )
    return _RecipeParser(label).recipe(root, text)


def _line(label: str, mark: yaml.error.Mark | Any | None) -> str:
    return f"{label}:{mark.line + 1}" if mark else label


class _RecipeParser:
    """Converts the YAML nodes of a recipe to a `Recipe`."""

    def __init__(self, label: str):
        self._label = label

    def _error(self, node: yaml.Node, message: str) -> KabukiError:
        return InvalidArgumentError(f"{self._where(node)}: {message}")

    def _where(self, node: yaml.Node) -> str:
        return f"{self._label}:{node.start_mark.line + 1}"

    def recipe(self, root: yaml.MappingNode, text: str) -> Recipe:
        parts: dict[str, yaml.Node] = {}
        for key, node in self._entries(root, "the recipe"):
            if key not in ("about", "for", "assume", "fill", "split", "steps", "episode", "drop", "rest"):
                raise self._error(
                    node,
                    f"unknown key {key!r}; expected about, for, assume, fill, split, steps, episode, drop or rest",
                )
            if self._value(node) is not None:
                parts[key] = node
        rest = self._text(parts["rest"], "rest") if "rest" in parts else "keep"
        if rest not in ("keep", "drop"):
            raise self._error(parts["rest"], f"rest: expected keep or drop, not {rest!r}")
        return Recipe(
            text=text,
            label=self._label,
            about=self._text(parts["about"], "about") if "about" in parts else "",
            layouts=tuple(name for name, _ in self._texts(parts.get("for"), "for")),
            assume={key: self._text(node, f"assume: {key}") for key, node in self._optional(parts, "assume")},
            fill={key: self._number(node, f"fill: {key}") for key, node in self._optional(parts, "fill")},
            splits=self._splits(parts.get("split")),
            steps=tuple(self._parse_field(*entry) for entry in self._located_entries(parts, "steps")),
            episode=tuple(self._parse_field(*entry) for entry in self._located_entries(parts, "episode")),
            drop=tuple((name, self._where(node)) for name, node in self._texts(parts.get("drop"), "drop")),
            keeps_rest=rest == "keep",
            rest_where=self._where(parts["rest"]) if "rest" in parts else self._label,
        )

    def _splits(self, node: yaml.Node | None) -> dict[str, str]:
        if isinstance(node, yaml.MappingNode):
            return {key: self._text(value, f"split: {key}") for key, value in self._entries(node, "split")}
        return {name: name for name, _ in self._texts(node, "split")}

    def _parse_field(self, path: str, where: str, node: yaml.Node) -> RecipeField:
        if "" in path.split("/"):
            raise InvalidArgumentError(
                f"{where}: {path!r} is not the path of a field; separate names by one `/`, as in observation/state"
            )
        sources: tuple[str, ...] = (path,)
        operations: list[Operation] = []
        # `action:` alone keeps a field as it is.
        entries = [] if self._value(node) is None else list(self._entries(node, path))
        for number, (name, argument) in enumerate(entries):
            what = f"{path}: {name}"
            if name in ("from", "concatenate", "constant") and number:
                raise self._error(argument, f"{what}: must be the first entry, because it sets the input of the field")
            if name in ("from", "concatenate"):
                sources = tuple(text for text, _ in self._texts(argument, what))
                if name == "from" and len(sources) != 1:
                    raise self._error(argument, f"{what}: expected the path of one field")
            if name == "constant":
                sources = ()
            if name == "from":
                continue
            if name not in OPERATIONS:
                raise self._error(
                    argument, f"{path}: unknown operation {name!r}; expected from, {', '.join(OPERATIONS)}"
                )
            try:
                operations.append(OPERATIONS[name](self._value(argument)))
            except (KabukiError, ValueError, TypeError, KeyError) as e:
                raise self._error(argument, f"{what}: {e}") from e
        return RecipeField(path, f"{where}: {path}", sources, tuple(operations))

    def _optional(self, parts: Mapping[str, yaml.Node], name: str) -> Iterator[tuple[str, yaml.Node]]:
        if name in parts:
            yield from self._entries(parts[name], name)

    def _located_entries(self, parts: Mapping[str, yaml.Node], name: str) -> Iterator[tuple[str, str, yaml.Node]]:
        """Yields (key, file and line of the key, value) for each entry of an optional part of the recipe."""
        if name in parts:
            node = parts[name]
            for (key, value), (key_node, _) in zip(self._entries(node, name), node.value, strict=True):
                yield key, self._where(key_node), value

    def _entries(self, node: yaml.Node, what: str) -> Iterator[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"{what}: expected a dict")
        seen = set()
        for key, value in node.value:
            name = self._text(key, what)
            if name in seen:
                raise self._error(key, f"{what}: {name!r} is given twice")
            seen.add(name)
            yield name, value

    def _texts(self, node: yaml.Node | None, what: str) -> list[tuple[str, yaml.Node]]:
        if node is None:
            return []
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return [(self._text(each, what), each) for each in nodes]

    def _text(self, node: yaml.Node, what: str) -> str:
        # Use the text as written, without YAML's types: `none` and `1000` are valid texts.
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, f"{what}: expected a text")
        return str(node.value)

    def _number(self, node: yaml.Node, what: str) -> float:
        try:
            return float(node.value)
        except (TypeError, ValueError):
            raise self._error(node, f"{what}: expected a number, not {self._value(node)!r}") from None

    def _value(self, node: yaml.Node) -> Any:
        try:
            return yaml.constructor.SafeConstructor().construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as e:
            raise self._error(node, f"not a valid value: {e}") from e
