"""Groups of given answers, which no engine sampled: every candidate of a row (exact), or its label (sft).

The candidates of a row are plain branches over its prompt, all in one pack. A trie of labels, in which candidates would
share their first tokens, needs an attention layout of its own and saves little: 2 % of a pack's tokens for lists of 100
ImageNet names (312 tokens of prompt, 272 of branches), 0.4 % for lists of 30, 22 % for a hundred aircraft variants.
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
from common.types import Completion, Example, Group, Prompt, ScoredGroup, request_seed

THOUGHT = "thought"  # the column of a row that holds the thought or reason to give with its label


class OfflineGroups:
    """Makes the groups of given answers that the configured method learns from."""

    def __init__(self, config: Config, closed_set: ClosedSet) -> None:
        self._config, self._closed_set = config, closed_set

    def check(self, source: ExampleSource) -> None:
        """Raise one DataError naming the rows without a usable answer, or whose answer is too long for an engine."""
        faults: list[tuple[str, BadRowError]] = []
        for example in self._list_rows(source):
            try:
                self._check_row(example)
            except BadRowError as fault:
                faults.append((example.id, fault))
        refuse(source.name, len(source), faults)

    def divide(self, prompts: Sequence[Prompt], step: int) -> tuple[list[Prompt], list[Prompt]]:
        """Divide the prompts of a step into those that engines sample and those with given answers, both in order.

        Which prompts are sampled is drawn from run, step and prompt alone, so a resumed run draws the same.
        """
        seed = self._config.seed
        drawn = sorted(prompts, key=lambda prompt: request_seed(seed, step, f"sampled {prompt.id}"))
        sampled = {prompt.id for prompt in drawn[: self._config.sampled_prompts]}
        return (
            [prompt for prompt in prompts if prompt.id in sampled],
            [prompt for prompt in prompts if prompt.id not in sampled],
        )

    def make_group(self, prompt: Prompt) -> Group:
        """Make the group of one prompt. Raises DataError for a row that `check` would refuse."""
        try:
            texts, answers = self._make_answers(prompt.example)
        except BadRowError as fault:
            raise DataError(f"{prompt.id} cannot be learnt from", got=fault.reason, remedy=fault.remedy) from fault
        return build_given_group(prompt, answers, texts)

    def _list_rows(self, source: ExampleSource) -> Iterator[Example]:
        """Yield the rows, without pictures where problem and label suffice: decoding them again takes long."""
        if self._config.method == "sft" and self._config.data.mode != "no_think":
            yield from (source[index] for index in range(len(source)))
            return
        for row in source.outlines:
            yield Example(id=row.id, problem=row.problem, image=None, label=row.label, columns={})

    def _check_row(self, example: Example) -> None:
        """Raise BadRowError when the row has no usable answer, or one that is too long."""
        try:
            texts, answers = self._make_answers(example)
        except DataError as error:
            raise BadRowError(f"{error.what}: {error.got}", remedy=error.remedy) from error
        longest, limit = max(range(len(answers)), key=lambda k: len(answers[k])), self._config.rollout
        if len(answers[longest]) > limit.max_completion_tokens:
            raise BadRowError(
                f"answer {texts[longest]!r} of {len(answers[longest])} tokens is over {limit.max_completion_tokens}",
                remedy="raise rollout.max_completion_tokens: engines could never say it",
            )

    def _make_answers(self, example: Example) -> tuple[Sequence[str], Sequence[Answer]]:
        """Return the texts of a row's given answers, and their token ids. Raises BadRowError or DataError."""
        if self._config.method == "sft":
            text = _word_label(example, self._config.data.mode)
            return [text], [self._closed_set.completion(text)]
        offered = candidates(example.problem)
        if offered is None:
            raise BadRowError(
                "its question offers no list of candidates", remedy="add one, or learn with method: grpo or sft"
            )
        return offered, self._closed_set.answers(offered)


def build_given_group(prompt: Prompt, answers: Sequence[Answer], texts: Sequence[str]) -> Group:
    """Return `answers` as the completions of one group; their log-probs, which no engine gave, are 0.

    Args:
        texts: each answer in words, without special tokens.
    """
    completions = tuple(
        Completion(token_ids=ids, logprobs=(0.0,) * len(ids), text=text, finish_reason="stop")
        for ids, text in zip(answers, texts, strict=True)
    )
    return Group(
        prompt_id=prompt.id, completions=completions, origin="given", seed=0, engine_id=None, weights_version=0
    )


def build_unscored_group(prompt: Prompt, answers: Sequence[Answer]) -> ScoredGroup:
    """Return the same for a learner that only scores: without text, with rewards of 0."""
    group = build_given_group(prompt, answers, [""] * len(answers))
    return ScoredGroup(prompt=prompt, group=group, rewards_by_name={}, rewards=(0.0,) * len(answers))


def _word_label(example: Example, mode: Mode) -> str:
    """Return the label as a completion of the mode: `cat`, or `<think>striped</think>\n<answer>cat</answer>`."""
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
