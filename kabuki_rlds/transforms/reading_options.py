"""The options for reading sources: recipe, assumptions, constants for missing fields, and the type of last rows."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.last_row import LastRow, LastRows, check_choice
from kabuki_rlds.data.source import Source
from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.files.paths import StrPath, path_list
from kabuki_rlds.formats.open import open_sources
from kabuki_rlds.transforms.required_fields import CompletedSource, decide_last_rows

if TYPE_CHECKING:
    from kabuki_rlds.transforms.recipes.recipe import Recipe

_log = logging.getLogger("kabuki_rlds")


class ReadingOptions:
    """Combines the options of the user with those of the recipe. The user's options take precedence.

    Args:
      recipe: path of a YAML file, or name of a built-in recipe; None leaves the fields as they are.
      assume: semantics that the source format leaves undefined: {"dones": "terminal"}.
      fill: constants for required fields that a source does not have: {"reward": 0.0}.
      last_row: whether the last row of each episode is a "step" or an "observation"; None decides this from the
        source (see `kabuki_rlds.data.last_row`).

    Attributes:
      recipe: the parsed recipe, or None.
      assume: the user's `assume`.
      recipe_assume: the recipe's `assume`, without the keys that the user sets.
      fill: the constants of the recipe and of the user.
      splits: name of each split that the recipe makes to the split or mask of the source.

    Raises:
      KabukiError: the recipe does not exist or is invalid, or `last_row` has another value.
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
        """Opens datasets with `open_sources`, without the recipe applied. Closes them at the end of the `with`.

        Args:
          paths: as for `convert`.
          split: a split of the recipe, if it makes splits; else as for `convert`. None means the only split.
          data_dir: as for `convert`.
          images: as for `convert`.
          skip_bad: whether to skip damaged episodes.

        Raises:
          KabukiError: a dataset cannot be opened, or `split` is None and the recipe makes several splits.
        """
        with contextlib.ExitStack() as stack:
            opened = open_sources(
                path_list(paths),
                split=self._split_of(split),
                data_dir=data_dir,
                images=images,
                skip_bad=skip_bad,
                assume=self.assume,
                recipe_assume=self.recipe_assume,
            )
            for source in opened:
                stack.callback(source.close)
            for source in opened:
                source.last_rows = self._last_rows(source)
            yield opened

    def _split_of(self, split: str | None) -> str | None:
        """The split or mask of the source to read.

        Args:
          split: the split that the user wants; None means the only split of the recipe.

        Raises:
          KabukiError: `split` is None and the recipe makes several splits.
        """
        if split is not None:
            return self.splits.get(split, split)
        if len(self.splits) > 1:
            names = ", ".join(self.splits)
            raise InvalidArgumentError(f"the recipe makes the splits {names}; choose one with {argument('split')}")
        return next(iter(self.splits.values()), None)

    def apply_recipe(self, source: Source) -> Source:
        """The source with the recipe applied, or the source itself if there is no recipe.

        Raises:
          KabukiError: the recipe does not match the source.
        """
        if self.recipe is None:
            return source
        from kabuki_rlds.transforms.recipes.recipe_source import RecipeSource

        return RecipeSource(source, self.recipe)

    def complete(self, source: Source, conform: bool = False) -> CompletedSource:
        """The source with the recipe applied and with all required fields.

        Args:
          source: the source.
          conform: whether to correct values that break rules 4 and 5.

        Raises:
          KabukiError: the recipe does not match the source, or a required field is still missing.
        """
        if self.recipe is None:
            return CompletedSource(source, self.fill, conform)
        from kabuki_rlds.transforms.recipes.recipe_source import RecipeSource

        shaped = RecipeSource(source, self.recipe)
        return CompletedSource(shaped, self.fill, conform, shaped.left_out, self.decide(source))

    def decide(self, source: Source) -> LastRows:
        """Decides whether the last row of each episode is a step.

        Reads the whole source if neither the user nor the source states it.
        """
        if source.last_rows is not None:
            return source.last_rows
        if self.recipe is not None:
            from kabuki_rlds.transforms.recipes.recipe_source import source_for_evidence

            source = source_for_evidence(source, self.recipe)
        return decide_last_rows(source)

    def derive(self, source: Source) -> CompletedSource:
        """The source with the recipe applied, and with the required fields that can be derived from others.

        Raises:
          KabukiError: the recipe does not match the source.
        """
        return CompletedSource(self.apply_recipe(source), derivable_only=True)

    def _last_rows(self, source: Source) -> LastRows | None:
        """Whether last rows are steps: as the user states, else as the source states; None if neither states it."""
        if self.last_row is None:
            return source.last_rows
        said = LastRows.by_user(self.last_row, source.num_episodes)
        stated = source.last_rows
        if stated is not None and (stated.is_step != said.is_step).any():
            _log.warning(
                "%s: last rows are treated as %ss because of %s, although the source says: %s",
                source.label, self.last_row, argument("last_row"), stated,
            )  # fmt: skip
        return said

    def to_json(self) -> dict[str, Any]:
        """All options, as JSON. Equal options have equal JSON."""
        return {
            "recipe": None if self.recipe is None else self.recipe.text,
            "assume": {**self.recipe_assume, **self.assume},
            "fill": self.fill,
            "last_row": self.last_row,
        }
