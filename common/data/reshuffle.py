"""Class lists that change at every visit of a row, so that the place of a class in the list teaches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from common.data.draws import generator
from common.data.sources import ExampleSource, Outline
from common.errors import DataError
from common.labels.candidates import read_list, replace_list
from common.types import Example


class Reshuffle:
    """Rewrites the list of a question. Options, open-ended questions and the rest of the row stay as they are.

    A list depends on (seed, visit, row id) alone, so a resumed run asks the same questions as one left alone.
    """

    def __init__(self, source: ExampleSource, *, seed: int, anew: bool) -> None:
        """Collect the classes that rows of `source` have or offer, if lists are to be drawn `anew` from them.

        Without `anew` only the order of a list changes.

        Raises DataError when no question of `source` has a list.
        """
        problems = dict.fromkeys(outline.problem for outline in source.outlines)
        lists = [offered for offered in map(read_list, problems) if offered]
        if not lists:
            raise DataError(
                f"no question of {source.name} has a class list",
                got=f"data.reshuffle is set, and the first question is {source.outlines[0].problem!r}",
                remedy="set data.reshuffle to none",
            )
        self._seed = seed
        known = {*source.labels, *(label for offered in lists for label in offered)}
        self.pool = tuple(sorted(known)) if anew else ()  # what lists are drawn from

    def __call__(self, example: Example, visit: int) -> Example:
        """Return the example as it is asked at this visit, the number of the epoch."""
        return replace(example, problem=self._problem(example, visit))

    def visits(self, source: ExampleSource, count: int) -> Iterator[Outline]:
        """Yield the rows of `source` as their first `count` visits ask them."""
        for visit in range(count):
            for outline in source.outlines:
                yield replace(outline, problem=self._problem(outline, visit))

    def _problem(self, row: Example | Outline, visit: int) -> str:
        offered = read_list(row.problem)
        if offered is None:
            return row.problem
        draw = generator("reshuffle", self._seed, visit, row.id)
        if self.pool:
            offered = self._redraw(offered, row.label, draw.permutation(len(self.pool)).tolist())
        return replace_list(row.problem, [offered[place] for place in draw.permutation(len(offered)).tolist()])

    def _redraw(self, offered: list[str], label: str, order: list[int]) -> list[str]:
        """Return as many labels as before, with the right one where it was offered before."""
        kept = [label] if label in offered else []
        others = [self.pool[place] for place in order if self.pool[place] != label]
        return [*kept, *others[: len(offered) - len(kept)]]
