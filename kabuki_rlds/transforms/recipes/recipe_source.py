"""Applies a recipe to a source."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from kabuki_rlds.data import recipe_text
from kabuki_rlds.data.block import Block, Column, take
from kabuki_rlds.data.rules import FLAGS, OBSERVATION, REQUIRED, has_field
from kabuki_rlds.data.schema import BYTES, Field, Schema, is_within
from kabuki_rlds.data.source import Size, Source
from kabuki_rlds.errors import InvalidArgumentError, KabukiError, SchemaMismatchError
from kabuki_rlds.formats.hdf5 import layout
from kabuki_rlds.images.decode import ImageDecoder, decoded
from kabuki_rlds.transforms.recipes.recipe import Recipe, RecipeField
from kabuki_rlds.transforms.required_fields import LeftOut

#: The bytes that the operations make from a block. A recipe can make large rows from small ones.
_MAX_MADE_BYTES = 32 << 20
_NEEDED = tuple(name for name in REQUIRED if name != OBSERVATION)


class RecipeSource:
    """A source with the fields that a recipe makes from another source.

    Args:
      source: the source to read.
      recipe: the recipe to apply.

    Attributes:
      left_out: the required fields that the source has but the recipe does not keep.

    Raises:
      KabukiError: the recipe does not match the source. The message names the line of the recipe.
    """

    def __init__(self, source: Source, recipe: Recipe):
        self._source = source
        self._recipe = recipe = dataclasses.replace(
            recipe,
            steps=_expand_groups(recipe.steps, [*source.schema.steps, *source.schema.metadata]),
            episode=_expand_groups(recipe.episode, source.schema.metadata),
        )
        self.origins = source.origins
        self.num_episodes = source.num_episodes
        self.label = source.label
        self.skipped = source.skipped
        self.files = source.files
        self.last_rows = source.last_rows
        layouts = {origin.format for origin in source.origins}
        if recipe.layouts and not layouts <= set(recipe.layouts):
            raise InvalidArgumentError(
                f"{source.label}: has the layout {', '.join(sorted(layouts))}, but the recipe {recipe.label} is for "
                f"{', '.join(recipe.layouts)}"
            )
        have = source.schema
        for name, where in recipe.drop:
            if not any(is_within(path, name) for path in (*have.steps, *have.metadata)):
                raise InvalidArgumentError(f"{where}: drop: {source.label} has no {name!r}")
        pixels = {
            path: field
            for entry in recipe.steps
            for path in entry.sources
            if entry.operations and (field := have.steps.get(path)) is not None and field.encoded
        }
        self._decoder = ImageDecoder(pixels, source.label) if pixels else None
        self._fields = have.steps | {path: decoded(field) for path, field in pixels.items()}
        self._steps = self._unchanged(have.steps, recipe.steps, FLAGS)
        self._metadata = self._unchanged(have.metadata, recipe.episode, ())
        _check_no_nesting(self._steps, recipe.steps)
        _check_no_nesting(self._metadata, recipe.episode)
        for entry in recipe.steps:
            _check_name(entry, layout.check_step_path)
        for entry in recipe.episode:
            _check_name(entry, layout.check_path)
        #: Bytes per row of everything that the operations make.
        self._made_row_bytes = 0
        # Step fields can be made from step fields or from episode fields, episode fields only from episode fields.
        steps = {entry.path: self._field(entry, self._fields | have.metadata) for entry in recipe.steps}
        metadata = {entry.path: self._field(entry, have.metadata) for entry in recipe.episode}
        self.schema = Schema(
            {path: have.steps[path] for path in self._steps} | steps,
            {path: have.metadata[path] for path in self._metadata} | metadata,
            info=have.info,
        )
        self.left_out = {
            name: self._left_out(name)
            for name in REQUIRED
            if has_field(have.steps, name) and not has_field(self.schema.steps, name)
        }

    def _left_out(self, name: str) -> LeftOut:
        """The reason why the recipe does not keep a required field of the source."""
        recipe = self._recipe
        paths = [path for path in self._source.schema.steps if is_within(path, name)]
        drops = [(dropped, where) for dropped, where in recipe.drop if any(is_within(path, dropped) for path in paths)]
        uses = [entry for entry in recipe.steps if any(path in entry.sources for path in paths)]
        stated = {path for dropped, _ in drops for path in paths if is_within(path, dropped)}
        stated |= {path for entry in uses for path in entry.sources}
        remedy = f"add `{name}:` under `steps`"
        if not stated.issuperset(paths):
            return LeftOut(f"{recipe.rest_where}: rest: drop", remedy, is_stated=False)
        if drops:
            return LeftOut(f"{drops[0][1]}: drop", f"remove {drops[0][0]!r} from `drop`", is_stated=True)
        return LeftOut(uses[0].where, remedy, is_stated=True)

    def _unchanged(self, have: Collection[str], entries: tuple[RecipeField, ...], always: Collection[str]) -> list[str]:
        """The fields that the recipe keeps without a change.

        Args:
          have: the fields of the source.
          entries: the entries of the recipe.
          always: the fields to keep even with `rest: drop`.
        """
        recipe = self._recipe
        gone = {each.path for each in entries}
        gone |= {path for path in have for name, _ in recipe.drop if is_within(path, name)}
        # Do not keep a field that another field is made from, unless it is required and has no replacement.
        replaced = {_top(each.path) for each in entries}
        used = {
            path for each in entries for path in each.sources if _top(path) not in _NEEDED or _top(path) in replaced
        }
        return [p for p in have if p not in gone and (p in always or (recipe.keeps_rest and p not in used))]

    def _field(self, entry: RecipeField, have: Mapping[str, Field]) -> Field:
        """The type of a field that the recipe makes from the fields `have`.

        Raises:
          KabukiError: a source field does not exist, or an operation does not support its type.
        """
        missing = next((path for path in entry.sources if path not in have), None)
        if missing is not None:
            itself = missing in [each.path for each in (*self._recipe.steps, *self._recipe.episode)]
            hint = "; the recipe makes this field, but only fields of the source can be used here" if itself else ""
            raise SchemaMismatchError(
                f"{self.label} has no {missing!r} (it has {', '.join(have)}){hint}", file=entry.where, fields=(missing,)
            )
        fields = [have[path] for path in entry.sources]
        of_steps = self._source.schema.steps
        if len({path in of_steps for path in entry.sources}) > 1:
            raise InvalidArgumentError(f"{entry.where}: step fields and episode fields cannot be combined")
        for path, field in zip(entry.sources, fields, strict=True):
            if path not in of_steps and not (field.is_fixed or field.dtype == BYTES):
                raise InvalidArgumentError(
                    f"{entry.where}: the episode field {path!r}, {field.describe()}, varies in shape; a recipe can use "
                    "only episode fields of fixed shape"
                )
        try:
            for operation in entry.operations:
                fields = [operation.field(fields)]
                fields[0].check_size("the result", entry.where)
                known = [size for size in fields[0].shape if size is not None]
                self._made_row_bytes += math.prod(known) * fields[0].dtype.itemsize
        except ValueError as e:
            raise KabukiError(f"{entry.where}: {e}") from e
        (field,) = fields
        return field

    def size(self) -> Size:
        size = self._source.size()
        sample = None if size.sample is None else next(self._transform(iter([size.sample])), None)
        return dataclasses.replace(size, sample=sample, image_fields=())

    def piece(self, first: int, stop: int) -> RecipeSource:
        return RecipeSource(self._source.piece(first, stop), self._recipe)

    def pieces(self, num_bytes: int) -> list[RecipeSource]:
        return [RecipeSource(piece, self._recipe) for piece in self._source.pieces(num_bytes)]

    def name_of(self, episode: int) -> str:
        return self._source.name_of(episode)

    def close(self) -> None:
        self._source.close()

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        if only is None:
            return self._transform(self._source.blocks())
        recipe = dataclasses.replace(
            self._recipe, steps=tuple(entry for entry in self._recipe.steps if entry.path in only), episode=()
        )
        kept = [path for path in self._steps if path in only]
        needed = {*kept, *(path for entry in recipe.steps for path in entry.sources)}
        narrowed = copy.copy(self)
        narrowed._recipe, narrowed._steps, narrowed._metadata = recipe, kept, []
        # A source that reads selected fields returns no decoded images and no episode fields.
        is_whole = self._decoder is not None or not needed <= self._source.schema.steps.keys()
        return narrowed._transform(self._source.blocks(None if is_whole else needed))

    def _transform(self, blocks: Iterator[Block]) -> Iterator[Block]:
        open_episode: dict[str, np.ndarray] = {}
        begun = 0
        # The threads end when this generator does. Do not wait for them: the garbage collector may close it anywhere.
        threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "kabuki-recipe")
        for block in self._split(blocks):
            steps = block.steps if self._decoder is None else self._decoder.decode(block.steps, threads)
            # The episode of each step: 0 is the one continued from the previous block, then 1, 2, ….
            episode_of = np.cumsum(block.begins[:-1])
            of_steps = begun + block.episode_of
            begin_here = np.arange(begun, begun + block.num_episodes)
            begun += block.num_episodes
            columns: dict[str, Column] = {path: block.steps[path] for path in self._steps}
            for entry in self._recipe.steps:
                if entry.sources and entry.sources[0] not in steps:
                    of_episodes = self._episode_column(entry, block, begin_here)
                    before = open_episode.get(entry.path, of_episodes[:1])
                    known = np.concatenate([before, of_episodes])
                    # Without a continued episode, `known` begins with episode 1.
                    at = episode_of if len(before) else episode_of - 1
                    columns[entry.path] = take(known, at)
                    open_episode[entry.path] = known[-1:]
                else:
                    columns[entry.path] = self._apply(entry, [steps[path] for path in entry.sources], of_steps)
            metadata: dict[str, Column] = {path: block.metadata[path] for path in self._metadata}
            for entry in self._recipe.episode:
                metadata[entry.path] = self._episode_column(entry, block, begin_here)
            yield dataclasses.replace(block, steps=columns, metadata=metadata)

    def _split(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Splits blocks so that the operations make at most `_MAX_MADE_BYTES` from one, or one row."""
        most = max(1, _MAX_MADE_BYTES // max(1, self._made_row_bytes))
        for block in blocks:
            count = block.num_steps
            if count <= most:
                yield block
                continue
            for start in range(0, count, most):
                stop = min(start + most, count)
                # An episode that begins after the last row belongs to the last part.
                first, end = np.searchsorted(block.starts, [start, stop if stop < count else count + 1]).tolist()
                yield block.part(slice(start, stop), slice(first, end))

    def _episode_column(self, entry: RecipeField, block: Block, episodes: np.ndarray) -> np.ndarray:
        column = self._apply(entry, [block.metadata[path] for path in entry.sources], episodes)
        assert isinstance(column, np.ndarray)
        return column

    def _apply(self, entry: RecipeField, columns: list[Column], episodes: np.ndarray) -> Column:
        """Applies the operations to the columns. `episodes` has the episode index of each row, for messages."""
        if not entry.operations:
            return columns[0]
        arrays = [column for column in columns if isinstance(column, np.ndarray)]
        try:
            return _apply_operations(entry, arrays, 0, len(episodes))
        except ValueError as e:
            row, why = _first_failing_row(entry, arrays, len(episodes), e)
            raise KabukiError(f"{entry.where}: {self.name_of(int(episodes[row]))}: {why}") from e


def _apply_operations(entry: RecipeField, arrays: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
    """Applies the operations to the rows from `start` to `stop`."""
    parts = [array[start:stop] for array in arrays]
    for operation in entry.operations:
        parts = [operation.apply(parts, stop - start)]
    return np.ascontiguousarray(parts[0])


def _first_failing_row(
    entry: RecipeField, arrays: Sequence[np.ndarray], count: int, error: ValueError
) -> tuple[int, ValueError]:
    """Finds the first row that makes the operations fail, by bisection. Returns (row, error)."""
    start, stop = 0, count
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            _apply_operations(entry, arrays, start, middle)
            start = middle
        except ValueError as e:
            stop, error = middle, e
    return start, error


def source_for_evidence(source: Source, recipe: Recipe) -> Source:
    """The source whose values decide whether last rows are steps (see `kabuki_rlds.data.last_row`).

    A recipe may overwrite fields that the decision needs: a constant discount breaks rule 4. So this applies only the
    entries of the recipe that make a required field which the source does not have, for example by a rename.
    """

    def adds_required(entry: RecipeField) -> bool:
        return (
            _top(entry.path) in _NEEDED and bool(entry.sources) and not has_field(source.schema.steps, _top(entry.path))
        )

    steps = tuple(entry for entry in recipe.steps if adds_required(entry))
    if not steps:
        return source
    return RecipeSource(source, dataclasses.replace(recipe, steps=steps, episode=(), drop=(), keeps_rest=True))


def _expand_groups(entries: Sequence[RecipeField], have: Collection[str]) -> tuple[RecipeField, ...]:
    """The entries of a recipe. An entry that renames or keeps a group is replaced by one entry per field."""
    expanded: list[RecipeField] = []
    for each in entries:
        (group,) = each.sources if len(each.sources) == 1 else ("",)
        inner = [path for path in have if path != group and is_within(path, group)]
        if each.operations or group in have or not inner:
            expanded.append(each)
            continue
        for path in inner:
            rest = path.removeprefix(group)
            expanded.append(RecipeField(f"{each.path}{rest}", f"{each.where}{rest}", (path,), ()))
    return tuple(expanded)


def _top(path: str) -> str:
    """The first component of a path."""
    return path.partition("/")[0]


def _check_name(entry: RecipeField, check: Callable[[str], None]) -> None:
    """Checks that a file can hold a field of this name.

    Raises:
      KabukiError: it cannot. The message names the line of the recipe.
    """
    try:
        check(entry.path)
    except KabukiError as e:
        raise e.within(entry.where) from e


def _check_no_nesting(kept: Collection[str], entries: Sequence[RecipeField]) -> None:
    """Checks that no path is both a field and a group: HDF5 can hold `action` or `action/arm`, not both.

    Raises:
      KabukiError: a path is both. The message names the line of the recipe.
    """
    for number, each in enumerate(entries):
        for path in (*kept, *(other.path for other in entries[:number])):
            if not (is_within(path, each.path) or is_within(each.path, path)):
                continue
            remedy = "give this field another name"
            if path in kept and is_within(path, each.path):
                remedy = f"keep the other under another name, `{recipe_text.renamed(path.replace('/', '_'), path)}`"
            raise InvalidArgumentError(
                f"{each.where}: a file cannot hold both {each.path!r} and {path!r}, because a path is either a field "
                f"or a group; {remedy}"
            )
