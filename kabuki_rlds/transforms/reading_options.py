"""How datasets are to be read: by a recipe, with what is assumed and filled in where they are silent."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kabuki_rlds.data.last_row import LastRow, LastRows, check_choice
from kabuki_rlds.data.source import Source
from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.files.paths import StrPath, path_list
from kabuki_rlds.formats.open import open_sources
from kabuki_rlds.transforms.required_fields import CompletedSource, decide_by_reading

if TYPE_CHECKING:
    from kabuki_rlds.transforms.recipes.recipe import Recipe

_log = logging.getLogger("kabuki_rlds")


class ReadingOptions:
    """What a recipe says of the sources, and what the user says beside it or instead.

    Args:
      recipe: a YAML file, or the name of a recipe that comes with the package; None leaves the fields as they are.
      assume: what files in a layout of others do not say.
      fill: constants for required fields that a source lacks.
      last_row: what the last row of each episode is; None decides it by the source (see `last_row`).

    Attributes:
      recipe: the recipe, if there is one.
      assume: what the user assumes.
      recipe_assume: what the recipe assumes, and the user does not say otherwise.
      fill: all that is filled in, likewise.
      splits: the splits that the recipe makes, each with the split or the mask of the sources that it is.

    Raises:
      KabukiError: there is no such recipe, or it is not one.
    """

    def __init__(
        self,
        recipe: StrPath | None = None,
        assume: Mapping[str, str] | None = None,
        fill: Mapping[str, float] | None = None,
        last_row: LastRow | None = None,
    ):
        check_choice(last_row)
        self.last_row = last_row
        self.recipe: Recipe | None = None
        self.assume = dict(assume or {})
        self.fill = dict(fill or {})
        self.recipe_assume: Mapping[str, str] = {}
        self.splits: Mapping[str, str] = {}
        if recipe is not None:
            from kabuki_rlds.transforms.recipes.recipe import load_recipe

            self.recipe = load_recipe(recipe)
            self.recipe_assume = {k: v for k, v in self.recipe.assume.items() if k not in self.assume}
            self.fill = {**self.recipe.fill, **self.fill}
            self.splits = self.recipe.splits

    @contextlib.contextmanager
    def open(
        self,
        paths: StrPath | Sequence[StrPath],
        *,
        split: str | None = None,
        data_dir: StrPath | None = None,
        images: Literal["arrays", "encoded"] = "arrays",
        skip_bad: bool = False,
    ) -> Iterator[list[Source]]:
        """Opens datasets, and closes them at the end of the `with`: see `formats.open.open_sources`.

        Args:
          paths: as in `convert`.
          split: a split of the recipe, if it makes any; else as in `convert`. None is the only one there is.
          data_dir: as in `convert`.
          images: likewise.
          skip_bad: leave out damaged episodes.

        Raises:
          KabukiError: a dataset cannot be opened, or the recipe makes several splits and none is named.
        """
        with contextlib.ExitStack() as stack:
            opened = open_sources(
                path_list(paths),
                split=self.split_of(split),
                data_dir=data_dir,
                images=images,
                skip_bad=skip_bad,
                assume=self.assume,
                recipe_assume=self.recipe_assume,
            )
            for source in opened:
                stack.callback(source.close)
            yield opened

    def split_of(self, split: str | None) -> str | None:
        """The split or the mask to read for a split that the user names; None names the only one there is.

        Raises:
          KabukiError: the recipe makes several, and none is named.
        """
        if split is not None:
            return self.splits.get(split, split)
        if len(self.splits) > 1:
            raise InvalidArgumentError(
                f"the recipe makes the splits {', '.join(self.splits)}; --split names the one to take"
            )
        return next(iter(self.splits.values()), None)

    def shape(self, source: Source) -> Source:
        """The source as the recipe has it.

        Raises:
          KabukiError: the recipe does not fit it.
        """
        if self.recipe is None:
            return source
        from kabuki_rlds.transforms.recipes.recipe_source import RecipeSource

        return RecipeSource(source, self.recipe)

    def complete(self, source: Source, conform: bool = False) -> CompletedSource:
        """The source as the recipe has it, with all that is filled in.

        Raises:
          KabukiError: the recipe does not fit it, or it lacks a field still.
        """
        if self.recipe is None:
            return CompletedSource(source, self.fill, conform, last_rows=self.last_rows_of(source))
        from kabuki_rlds.transforms.recipes.recipe_source import RecipeSource

        shaped = RecipeSource(source, self.recipe)
        return CompletedSource(shaped, self.fill, conform, shaped.left_out, self.decide(source))

    def decide(self, source: Source) -> LastRows:
        """Whether the last row of each episode is a step. Reads the source if neither it nor the user says it."""
        known = self.last_rows_of(source)
        if known is not None:
            return known
        if self.recipe is not None:
            from kabuki_rlds.transforms.recipes.recipe_source import as_evidence

            source = as_evidence(source, self.recipe)
        return decide_by_reading(source)

    def derive(self, source: Source) -> CompletedSource:
        """The source as the recipe has it, with the required fields that can be derived.

        Raises:
          KabukiError: the recipe does not fit it.
        """
        return CompletedSource(self.shape(source), last_rows=self.last_rows_of(source), derivable_only=True)

    def last_rows_of(self, source: Source) -> LastRows | None:
        """What the user says of the last rows of a source, else what the source says; None if neither does."""
        if self.last_row is None:
            return source.last_rows
        said = LastRows.by_user(self.last_row, source.num_episodes)
        stated = source.last_rows
        if stated is not None and (stated.is_step != said.is_step).any():
            _log.warning("%s: last rows are taken as %ss as given, although: %s", source.label, self.last_row, stated)
        return said

    def to_json(self) -> dict[str, Any]:
        """All that the result depends on."""
        return {
            "recipe": None if self.recipe is None else self.recipe.text,
            "assume": {**self.recipe_assume, **self.assume},
            "fill": self.fill,
            "last_row": self.last_row,
        }
