"""A source as a recipe has it."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
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
from kabuki_rlds.transforms.recipes.recipe import MadeField, Recipe
from kabuki_rlds.transforms.required_fields import LeftOut

_NEEDED = tuple(name for name in REQUIRED if name != OBSERVATION)


class RecipeSource:
    """Yields a source's blocks with the fields that a recipe makes of them.

    Args:
      source: what is to be read.
      recipe: what becomes of its fields.

    Attributes:
      left_out: the required fields that the source has and the recipe does not keep.

    Raises:
      KabukiError: the recipe does not fit the source, and which line is why.
    """

    def __init__(self, source: Source, recipe: Recipe):
        self._source = source
        self._recipe = recipe = dataclasses.replace(
            recipe,
            steps=_each_field(recipe.steps, [*source.schema.steps, *source.schema.metadata]),
            episode=_each_field(recipe.episode, source.schema.metadata),
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
                f"{source.label}: laid out as {', '.join(sorted(layouts))}, but the recipe {recipe.label} is for "
                f"{', '.join(recipe.layouts)}"
            )
        have = source.schema
        for name, where in recipe.drop:
            if not any(is_within(path, name) for path in (*have.steps, *have.metadata)):
                raise InvalidArgumentError(f"{where}: drop: {source.label} has no {name!r}")
        pixels = {
            path: field
            for made in recipe.steps
            for path in made.sources
            if made.operations and (field := have.steps.get(path)) is not None and field.encoded
        }
        self._decoder = ImageDecoder(pixels, source.label) if pixels else None
        self._fields = have.steps | {path: decoded(field) for path, field in pixels.items()}
        self._steps = self._kept(have.steps, recipe.steps, FLAGS)
        self._metadata = self._kept(have.metadata, recipe.episode, ())
        _check_apart(self._steps, recipe.steps)
        _check_apart(self._metadata, recipe.episode)
        for made in recipe.steps:
            _check_name(made, layout.check_step_path)
        for made in recipe.episode:
            _check_name(made, layout.check_path)
        # An episode field that a step field was made from is there already, on each step.
        steps = {made.path: self._field(made, self._fields | have.metadata) for made in recipe.steps}
        metadata = {made.path: self._field(made, have.metadata) for made in recipe.episode}
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
        """Why the recipe keeps nothing of a required field that the source has."""
        recipe = self._recipe
        paths = [path for path in self._source.schema.steps if is_within(path, name)]
        drops = [(dropped, where) for dropped, where in recipe.drop if any(is_within(path, dropped) for path in paths)]
        uses = [made for made in recipe.steps if any(path in made.sources for path in paths)]
        stated = {path for dropped, _ in drops for path in paths if is_within(path, dropped)}
        stated |= {path for made in uses for path in made.sources}
        remedy = f"add `{name}:` under `steps`"
        if not stated.issuperset(paths):
            return LeftOut(f"{recipe.rest_where}: rest: drop", remedy, is_stated=False)
        if drops:
            return LeftOut(f"{drops[0][1]}: drop", f"remove {drops[0][0]!r} from `drop`", is_stated=True)
        return LeftOut(uses[0].where, remedy, is_stated=True)

    def _kept(self, have: Collection[str], made: tuple[MadeField, ...], always: Collection[str]) -> list[str]:
        """The fields that stay as they are."""
        recipe = self._recipe
        gone = {each.path for each in made}
        gone |= {path for path in have for name, _ in recipe.drop if is_within(path, name)}
        # What something else was made from is not kept beside it, unless it is required and nothing takes its place.
        replaced = {_top(each.path) for each in made}
        used = {path for each in made for path in each.sources if _top(path) not in _NEEDED or _top(path) in replaced}
        return [p for p in have if p not in gone and (p in always or (recipe.keeps_rest and p not in used))]

    def _field(self, made: MadeField, have: Mapping[str, Field]) -> Field:
        """What a recipe makes of the fields that there are."""
        lacking = next((path for path in made.sources if path not in have), None)
        if lacking is not None:
            itself = lacking in [each.path for each in (*self._recipe.steps, *self._recipe.episode)]
            hint = "; the recipe makes it, and a field can be made only from fields of the source" if itself else ""
            raise SchemaMismatchError(
                f"{self.label} has no {lacking!r} (it has {', '.join(have)}){hint}", file=made.where, fields=(lacking,)
            )
        fields = [have[path] for path in made.sources]
        of_steps = self._source.schema.steps
        if len({path in of_steps for path in made.sources}) > 1:
            raise InvalidArgumentError(
                f"{made.where}: made of fields of the steps and of the episodes, which cannot be joined"
            )
        for path, field in zip(made.sources, fields, strict=True):
            if path not in of_steps and not (field.is_fixed or field.dtype == BYTES):
                raise InvalidArgumentError(
                    f"{made.where}: the episode field {path!r}, {field.describe()}, varies in size"
                )
        try:
            for operation in made.operations:
                fields = [operation.field(fields)]
        except ValueError as e:
            raise KabukiError(f"{made.where}: {e}") from e
        (field,) = fields
        return field

    def size(self) -> Size:
        size = self._source.size()
        sample = None if size.sample is None else next(self._made(iter([size.sample])), None)
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
            return self._made(self._source.blocks())
        recipe = dataclasses.replace(
            self._recipe, steps=tuple(made for made in self._recipe.steps if made.path in only), episode=()
        )
        kept = [path for path in self._steps if path in only]
        needed = {*kept, *(path for made in recipe.steps for path in made.sources)}
        narrowed = copy.copy(self)
        narrowed._recipe, narrowed._steps, narrowed._metadata = recipe, kept, []
        # Images that are decoded, and fields of the episodes, come only with everything else.
        is_whole = self._decoder is not None or not needed <= self._source.schema.steps.keys()
        return narrowed._made(self._source.blocks(None if is_whole else needed))

    def _made(self, blocks: Iterator[Block]) -> Iterator[Block]:
        open_episode: dict[str, np.ndarray] = {}
        begun = 0
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "kabuki-recipe") as threads:
            for block in blocks:
                steps = block.steps if self._decoder is None else self._decoder.decode(block.steps, threads)
                # Which of the episodes of the block each step is of; 0 is the one that it goes on with.
                episode_of = np.cumsum(block.begins[:-1])
                of_steps = begun + block.episode_of
                begin_here = np.arange(begun, begun + block.num_episodes)
                begun += block.num_episodes
                columns: dict[str, Column] = {path: block.steps[path] for path in self._steps}
                for made in self._recipe.steps:
                    if made.sources and made.sources[0] not in steps:
                        of_episodes = self._of_episodes(made, block, begin_here)
                        before = open_episode.get(made.path, of_episodes[:1])
                        known = np.concatenate([before, of_episodes])
                        # In a block that goes on with an episode there may be no other.
                        at = episode_of if len(before) else episode_of - 1
                        columns[made.path] = take(known, at)
                        open_episode[made.path] = known[-1:]
                    else:
                        columns[made.path] = self._apply(made, [steps[path] for path in made.sources], of_steps)
                metadata: dict[str, Column] = {path: block.metadata[path] for path in self._metadata}
                for made in self._recipe.episode:
                    metadata[made.path] = self._of_episodes(made, block, begin_here)
                yield dataclasses.replace(block, steps=columns, metadata=metadata)

    def _of_episodes(self, made: MadeField, block: Block, episodes: np.ndarray) -> np.ndarray:
        column = self._apply(made, [block.metadata[path] for path in made.sources], episodes)
        assert isinstance(column, np.ndarray)
        return column

    def _apply(self, made: MadeField, columns: list[Column], episodes: np.ndarray) -> Column:
        """What the operations make of the columns, given the number of the episode of each row."""
        if not made.operations:
            return columns[0]
        arrays = [column for column in columns if isinstance(column, np.ndarray)]
        try:
            return _applied(made, arrays, 0, len(episodes))
        except ValueError as e:
            row, why = _first_wrong(made, arrays, len(episodes), e)
            raise KabukiError(f"{made.where}: {self.name_of(int(episodes[row]))}: {why}") from e


def _applied(made: MadeField, arrays: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
    """What the operations make of some rows."""
    parts = [array[start:stop] for array in arrays]
    for operation in made.operations:
        parts = [operation.apply(parts, stop - start)]
    return np.ascontiguousarray(parts[0])


def _first_wrong(
    made: MadeField, arrays: Sequence[np.ndarray], count: int, error: ValueError
) -> tuple[int, ValueError]:
    """The first row that the operations refuse, and why."""
    start, stop = 0, count
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            _applied(made, arrays, start, middle)
            start = middle
        except ValueError as e:
            stop, error = middle, e
    return start, error


def as_evidence(source: Source, recipe: Recipe) -> Source:
    """The source before the recipe, to tell whether its last rows are steps (see `last_row`).

    A recipe may change the fields that tell: a constant discount says nothing of rule 4. So only those fields are made
    that the source has under other names.
    """

    def is_only_made(made: MadeField) -> bool:
        return _top(made.path) in _NEEDED and bool(made.sources) and not has_field(source.schema.steps, _top(made.path))

    steps = tuple(made for made in recipe.steps if is_only_made(made))
    if not steps:
        return source
    return RecipeSource(source, dataclasses.replace(recipe, steps=steps, episode=(), drop=(), keeps_rest=True))


def _each_field(entries: Sequence[MadeField], have: Collection[str]) -> tuple[MadeField, ...]:
    """The entries of a recipe, with one for each field of a group where an entry only renames or keeps the group."""
    made: list[MadeField] = []
    for each in entries:
        (group,) = each.sources if len(each.sources) == 1 else ("",)
        inner = [path for path in have if path != group and is_within(path, group)]
        if each.operations or group in have or not inner:
            made.append(each)
            continue
        for path in inner:
            rest = path.removeprefix(group)
            made.append(MadeField(f"{each.path}{rest}", f"{each.where}{rest}", (path,), ()))
    return tuple(made)


def _top(path: str) -> str:
    """The first name of a path."""
    return path.partition("/")[0]


def _check_name(made: MadeField, check: Callable[[str], None]) -> None:
    """Refuses a name that no file can hold.

    Raises:
      KabukiError: it is one, and which line gives it.
    """
    try:
        check(made.path)
    except KabukiError as e:
        raise e.within(made.where) from e


def _check_apart(kept: Collection[str], made: Sequence[MadeField]) -> None:
    """Refuses a field at the path of a group: HDF5 holds `action` or `action/arm`, not both.

    Raises:
      KabukiError: there is one, and which line makes it.
    """
    for number, each in enumerate(made):
        for path in (*kept, *(other.path for other in made[:number])):
            if not (is_within(path, each.path) or is_within(each.path, path)):
                continue
            remedy = "give this field another name"
            if path in kept and is_within(path, each.path):
                remedy = f"keep the other under another name, `{recipe_text.renamed(path.replace('/', '_'), path)}`"
            raise InvalidArgumentError(
                f"{each.where}: a file cannot hold both {each.path!r} and {path!r}, since a path is either a field or "
                f"a group; {remedy}"
            )
