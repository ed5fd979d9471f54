"""What a recipe says, read from YAML, each field with the line that it stands on.

about: what it is for
for: libero                         # the layouts that it is for; without it any
assume: {last_observation: repeat}  # what files in a layout of others do not say
fill: {reward: 0}                   # constants for required fields that are lacking
split: {train: train, val: valid}   # split of the result: split or mask of the source
steps:                              # step fields, each made by operations in this order
observation/image: {from: observation/agentview_rgb, rotate: 180, encode: jpeg}
action: {from: control}             # a group is renamed with all its fields
episode:                            # episode fields likewise
episode_metadata/file_path: {from: file_path}
drop: [states]                      # fields to leave out, or groups
rest: keep                          # or drop: what the recipe does not name
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
from kabuki_rlds.transforms.recipes.operations import OPERATIONS, Operation

#: The largest recipe that is read.
_MAX_BYTES = 1 << 20
_LIBRARY = "library"


@dataclasses.dataclass(frozen=True)
class MadeField:
    """One field of the result.

    Attributes:
      path: its path.
      where: the file and the line that say so, and the path, for a message.
      sources: the fields that it is made from; none for a constant.
      operations: what is done with them.
    """

    path: str
    where: str
    sources: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes:
      text: its YAML.
      label: what to call it in a message.
      about: what it is for.
      layouts: the layouts that it is for; none for any.
      assume: what files in a layout of others do not say.
      fill: constants for required fields that a source lacks.
      splits: split of the result to the split or the mask of the source that it is.
      steps: the step fields.
      episode: the episode fields.
      drop: fields or groups of the source to leave out, each with where it says so.
      keeps_rest: whether what it does not name is kept.
      rest_where: the file and the line of `rest`, for a message; the file where it is not given.
    """

    text: str
    label: str
    about: str
    layouts: tuple[str, ...]
    assume: Mapping[str, str]
    fill: Mapping[str, float]
    splits: Mapping[str, str]
    steps: tuple[MadeField, ...]
    episode: tuple[MadeField, ...]
    drop: tuple[tuple[str, str], ...]
    keeps_rest: bool
    rest_where: str


def library() -> dict[str, Recipe]:
    """The recipes that come with the package, by name."""
    folder = importlib.resources.files(__package__) / _LIBRARY
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): parse(f.read_text(), f.name) for f in files}


def load_recipe(recipe: str | os.PathLike[str]) -> Recipe:
    """Reads a recipe.

    Args:
      recipe: a YAML file, or the name of a recipe that comes with the package.

    Raises:
      KabukiError: there is none, or it is not one, and which line is why.
    """
    path = local_path(recipe)
    if not path.is_file():
        known = library()
        if os.fspath(recipe) not in known:
            raise InvalidArgumentError(f"{recipe}: no such recipe: neither a file nor one of {', '.join(known)}")
        return known[os.fspath(recipe)]
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidArgumentError(f"{recipe}: too large for a recipe")
        return parse(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidArgumentError(f"{recipe}: cannot be read: {e}") from e


def parse(text: str, label: str) -> Recipe:
    """Reads a recipe from its text.

    Raises:
      KabukiError: it is none, and which line is why.
    """
    try:
        # An alias within an alias makes a short text long.
        alias = next((event for event in yaml.parse(text, yaml.SafeLoader) if isinstance(event, yaml.AliasEvent)), None)
        root = None if alias else yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        raise InvalidArgumentError(
            f"{_line(label, mark)}: no YAML: {getattr(e, 'problem', None) or 'it nests too deep'}"
        ) from e
    if alias:
        raise InvalidArgumentError(f"{_line(label, alias.start_mark)}: a recipe has no aliases")
    if not isinstance(root, yaml.MappingNode):
        raise InvalidArgumentError(
            f"{label}:1: a recipe is a dict: about, for, assume, fill, split, steps, episode, drop, rest"
        )
    return _RecipeParser(label).recipe(root, text)


def _line(label: str, mark: yaml.error.Mark | Any | None) -> str:
    return f"{label}:{mark.line + 1}" if mark else label


class _RecipeParser:
    """Reads the nodes of a recipe's YAML."""

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
                    node, f"{key!r}: a recipe has about, for, assume, fill, split, steps, episode, drop and rest"
                )
            if self._value(node) is not None:
                parts[key] = node
        rest = self._text(parts["rest"], "rest") if "rest" in parts else "keep"
        if rest not in ("keep", "drop"):
            raise self._error(parts["rest"], f"rest: keep or drop, not {rest!r}")
        return Recipe(
            text=text,
            label=self._label,
            about=self._text(parts["about"], "about") if "about" in parts else "",
            layouts=tuple(name for name, _ in self._texts(parts.get("for"), "for")),
            assume={key: self._text(node, f"assume: {key}") for key, node in self._optional(parts, "assume")},
            fill={key: self._number(node, f"fill: {key}") for key, node in self._optional(parts, "fill")},
            splits=self._splits(parts.get("split")),
            steps=tuple(self._made(*entry) for entry in self._placed(parts, "steps")),
            episode=tuple(self._made(*entry) for entry in self._placed(parts, "episode")),
            drop=tuple((name, self._where(node)) for name, node in self._texts(parts.get("drop"), "drop")),
            keeps_rest=rest == "keep",
            rest_where=self._where(parts["rest"]) if "rest" in parts else self._label,
        )

    def _splits(self, node: yaml.Node | None) -> dict[str, str]:
        if isinstance(node, yaml.MappingNode):
            return {key: self._text(value, f"split: {key}") for key, value in self._entries(node, "split")}
        return {name: name for name, _ in self._texts(node, "split")}

    def _made(self, path: str, where: str, node: yaml.Node) -> MadeField:
        if "" in path.split("/"):
            raise InvalidArgumentError(
                f"{where}: {path!r} is not the path of a field; `/` separates names, like observation/state"
            )
        sources: tuple[str, ...] = (path,)
        operations: list[Operation] = []
        # `action:` alone keeps a field as it is.
        entries = [] if self._value(node) is None else list(self._entries(node, path))
        for number, (name, argument) in enumerate(entries):
            what = f"{path}: {name}"
            if name in ("from", "concatenate", "constant") and number:
                raise self._error(argument, f"{what}: stands first, since it says what the field is made from")
            if name in ("from", "concatenate"):
                sources = tuple(text for text, _ in self._texts(argument, what))
                if name == "from" and len(sources) != 1:
                    raise self._error(argument, f"{what}: the path of one field")
            if name == "constant":
                sources = ()
            if name == "from":
                continue
            if name not in OPERATIONS:
                raise self._error(argument, f"{path}: no operation {name!r}; there is from, {', '.join(OPERATIONS)}")
            try:
                operations.append(OPERATIONS[name](self._value(argument)))
            except (KabukiError, ValueError, TypeError, KeyError) as e:
                raise self._error(argument, f"{what}: {e}") from e
        return MadeField(path, f"{where}: {path}", sources, tuple(operations))

    def _optional(self, parts: Mapping[str, yaml.Node], name: str) -> Iterator[tuple[str, yaml.Node]]:
        if name in parts:
            yield from self._entries(parts[name], name)

    def _placed(self, parts: Mapping[str, yaml.Node], name: str) -> Iterator[tuple[str, str, yaml.Node]]:
        """The entries of a part of the recipe that may be absent: the key, the line that it is on, and its value."""
        if name in parts:
            node = parts[name]
            for (key, value), (key_node, _) in zip(self._entries(node, name), node.value, strict=True):
                yield key, self._where(key_node), value

    def _entries(self, node: yaml.Node, what: str) -> Iterator[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"{what}: a dict is wanted here")
        seen = set()
        for key, value in node.value:
            name = self._text(key, what)
            if name in seen:
                raise self._error(key, f"{what}: {name!r} stands here twice")
            seen.add(name)
            yield name, value

    def _texts(self, node: yaml.Node | None, what: str) -> list[tuple[str, yaml.Node]]:
        if node is None:
            return []
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return [(self._text(each, what), each) for each in nodes]

    def _text(self, node: yaml.Node, what: str) -> str:
        # As it is written: `none` and `1000` are texts where a text is wanted.
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, f"{what}: a text is wanted here")
        return str(node.value)

    def _number(self, node: yaml.Node, what: str) -> float:
        try:
            return float(self._text(node, what))
        except ValueError:
            raise self._error(node, f"{what}: a number is wanted here, not {node.value!r}") from None

    def _value(self, node: yaml.Node) -> Any:
        try:
            return yaml.constructor.SafeConstructor().construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as e:
            raise self._error(node, f"not a value: {e}") from e
