"""Groups of given answers, which no engine samples: every candidate of a row (exact), or its label (sft).

The candidates are plain branches over the prompt, all in one pack. In a label trie they would share their first tokens.
That would save 2 % of a pack's tokens for lists of 100 ImageNet names (312 of prompt, 272 of branches), 0.4 % for lists
of 30, and 22 % only for a hundred aircraft variants. It would need an attention layout of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common.config.schema import Config
from common.data.faults import BadRowError, refuse
from common.data.sources import ExampleSource
from common.errors import DataError
from common.labels.answers import Mode, is_right, is_well_formed
from common.labels.candidates import candidates
from common.labels.closed_set import Answer, ClosedSet
from common.types import Example, Group, Prompt, request_seed
from learner.trainer.given_answers import build_given_group

THOUGHT = "thought"  # column of a row: the thought that goes with its label


class OfflineGroups:
    """Makes the groups of given answers that the configured method learns from."""

    def __init__(self, config: Config, closed_set: ClosedSet) -> None:
        self._config, self._closed_set = config, closed_set

    def check(self, source: ExampleSource) -> None:
        """Raise one DataError naming the rows without an answer, or with one that engines could not sample."""
        faults: list[tuple[str, BadRowError]] = []
        for example in self._rows(source):
            try:
                self._insist(example)
            except BadRowError as fault:
                faults.append((example.id, fault))
        refuse(source.name, len(source), faults)

    def divide(self, prompts: Sequence[Prompt], step: int) -> tuple[list[Prompt], list[Prompt]]:
        """Return the prompts of a step that engines sample, and those with given answers, both in order.

        They are drawn by (run, step, prompt), so a resumed run draws the same.
        """
        seed = self._config.seed
        drawn = sorted(prompts, key=lambda prompt: request_seed(seed, step, f"sampled {prompt.id}"))
        sampled = {prompt.id for prompt in drawn[: self._config.sampled_prompts]}
        return (
            [prompt for prompt in prompts if prompt.id in sampled],
            [prompt for prompt in prompts if prompt.id not in sampled],
        )

    def group(self, prompt: Prompt) -> Group:
        """Return the group of given answers for a prompt. Raises DataError for one that `check` would refuse."""
        try:
            texts, answers = self._answers(prompt.example)
        except BadRowError as fault:
            raise DataError(f"{prompt.id} cannot be learnt from", got=fault.reason, remedy=fault.remedy) from fault
        return build_given_group(prompt, answers, texts)

    def _rows(self, source: ExampleSource) -> Iterator[Example]:
        """Yield the rows of a source; pictures are decoded only where columns beside the label are needed."""
        if self._config.method == "sft" and self._config.data.mode != "no_think":
            yield from (source[index] for index in range(len(source)))
            return
        for row in source.outlines:
            yield Example(id=row.id, problem=row.problem, image=None, label=row.label, columns={})

    def _insist(self, example: Example) -> None:
        """Raise BadRowError for a row that cannot be learnt from."""
        try:
            texts, answers = self._answers(example)
        except DataError as error:
            raise BadRowError(f"{error.what}: {error.got}", remedy=error.remedy) from error
        longest, limit = max(range(len(answers)), key=lambda k: len(answers[k])), self._config.rollout
        if len(answers[longest]) > limit.max_completion_tokens:
            raise BadRowError(
                f"answer {texts[longest]!r} of {len(answers[longest])} tokens is over {limit.max_completion_tokens}",
                remedy="raise rollout.max_completion_tokens: engines could never say it",
            )

    def _answers(self, example: Example) -> tuple[Sequence[str], Sequence[Answer]]:
        """Return the answers of a row, as texts and as token ids."""
        if self._config.method == "sft":
            text = _word_label(example, self._config.data.mode)
            return [text], [self._closed_set.completion(text)]
        offered = candidates(example.problem)
        if offered is None:
            raise BadRowError(
                "its question offers no list of candidates", remedy="add one, or learn with method: grpo or sft"
            )
        return offered, self._closed_set.answers(offered)


def _word_label(example: Example, mode: Mode) -> str:
    """Return the completion that says the label of a row, in the format of the mode."""
    said, thought = f"<answer>{example.label}</answer>", example.columns.get(THOUGHT)
    if mode == "no_think":
        said = example.label
    elif mode == "think_after_answer":
        said = f"{said}\n<reason>{thought or ''}</reason>"
    elif mode == "think" or thought:
        said = f"<think>{thought or ''}</think>\n{said}"
    if not (is_well_formed(said, mode) and is_right(said, example.label, mode=mode)):
        raise BadRowError(
            f"{said!r} is no answer in {mode} mode",
            remedy=f"give rows plain text in column {THOUGHT}, or set data.mode to no_think",
        )
    return said
