"""Given answers in place of samples: the right texts as the right tokens, or a refusal that names rows."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import pytest

from common.config.schema import Config
from common.data.sources import ExampleSource, Outline
from common.errors import DataError
from common.labels.answers import Mode, is_right, is_well_formed
from common.labels.candidates import with_candidates
from common.labels.closed_set import ClosedSet
from common.types import Example, Prompt
from learner.trainer.offline_groups import OfflineGroups

LABELS = ("cat", "tiger shark", "tiger")
LISTED = with_candidates("What is it?", LABELS)


@cache
def processor() -> Any:
    from learner.embedded.tokenizer import build_processor

    texts = ["<think>striped.</think>\n<answer>tiger</answer>", "<answer>tiger</answer>\n<reason>striped.</reason>"]
    return build_processor([*texts, *LABELS], size_limit=400)


def writer(method: str, mode: Mode = "no_think", **changes: Any) -> OfflineGroups:
    raw = {"method": method, "data": {"mode": mode}, "learner": {"beta": 0.0}, **changes}
    ends = [processor().tokenizer.eos_token_id]
    return OfflineGroups(Config.model_validate(raw), ClosedSet(processor(), mode=mode, ends=ends, banned=()))


def row(number: int = 0, problem: str = LISTED, label: str = "tiger", **columns: Any) -> Example:
    return Example(id=f"train/{number}", problem=problem, image=None, label=label, columns=columns)


def prompt(example: Example) -> Prompt:
    return Prompt(example=example, text_ids=(1,), token_ids=(1,), images=None)


def source(*rows: Example) -> ExampleSource:
    """Checked rows without a file behind them."""

    class Rows(list[Example]):
        name = "rows"
        outlines = tuple(Outline(id=one.id, problem=one.problem, label=one.label, image_size=None) for one in rows)

    return cast("ExampleSource", Rows(rows))


def test_exact_gives_every_candidate_in_the_order_of_the_list() -> None:
    group = writer("exact").make_group(prompt(row()))
    assert tuple(one.text for one in group.completions) == LABELS
    assert (group.origin, group.engine_id) == ("given", None)
    decode = processor().tokenizer.decode
    assert [decode(list(one.token_ids), skip_special_tokens=True) for one in group.completions] == list(LABELS)
    assert {one.token_ids[-1] for one in group.completions} == {processor().tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("mode", "thought", "said"),
    [
        ("no_think", None, "tiger"),
        ("no_think", "striped.", "tiger"),
        ("think", "striped.", "<think>striped.</think>\n<answer>tiger</answer>"),
        ("think_after_answer", "striped.", "<answer>tiger</answer>\n<reason>striped.</reason>"),
        ("adaptive", "striped.", "<think>striped.</think>\n<answer>tiger</answer>"),
        ("adaptive", None, "<answer>tiger</answer>"),
    ],
)
def test_sft_gives_the_label_as_the_mode_wants_it(mode: Mode, thought: str | None, said: str) -> None:
    example = row(problem="What is it?", thought=thought)
    writer("sft", mode).check(source(example))
    (completion,) = writer("sft", mode).make_group(prompt(example)).completions
    assert completion.text == said
    assert is_right(said, "tiger", mode=mode) and is_well_formed(said, mode)
    assert completion.token_ids[-1] == processor().tokenizer.eos_token_id
    assert completion.token_ids[:-1] == tuple(processor().tokenizer(said)["input_ids"])


SHORT: dict[str, Any] = {"rollout": {"max_completion_tokens": 1}}


@pytest.mark.parametrize(
    ("offline", "example", "named"),
    [
        (writer("exact"), row(problem="What is it?"), "train/0: its question offers no list"),
        (writer("exact"), row(problem=with_candidates("?", ["cat", "cat"])), "are one answer to the model"),
        (writer("exact", **SHORT), row(), "answer 'cat' of 2 tokens is over 1"),
        (writer("sft", **SHORT), row(label="cat"), "answer 'cat' of 2 tokens is over 1"),
        (writer("sft"), row(label="a\nb"), "no answer in no_think mode"),
        (writer("sft", "think"), row(), "no answer in think mode"),
        (writer("sft", "think"), row(thought="a</think>b"), "no answer in think mode"),
        (writer("sft", "think_after_answer"), row(thought=" "), "plain text in column thought"),
    ],
)
def test_rows_without_a_usable_answer_are_refused(offline: OfflineGroups, example: Example, named: str) -> None:
    with pytest.raises(DataError, match="1 of 1 rows of rows cannot be used") as refused:
        offline.check(source(example))
    assert named in str(refused.value)


def test_the_share_that_is_sampled_is_drawn_by_run_step_and_prompt() -> None:
    prompts = [prompt(row(number)) for number in range(16)]
    drawn = {}
    for seed in (1, 2):
        for step in (0, 1):
            offline = writer("exact", seed=seed, exact={"sampled_share": 0.25})
            sampled, given = offline.divide(prompts, step)
            assert len(sampled) == 4
            assert sorted([*sampled, *given], key=prompts.index) == prompts
            assert [one.id for one in sampled] == [one.id for one in prompts if one in sampled], "in prompt order"
            again, _ = offline.divide(prompts[::-1], step)
            assert {one.id for one in again} == {one.id for one in sampled}
            drawn[seed, step] = frozenset(one.id for one in sampled)
    assert len(set(drawn.values())) == 4


@pytest.mark.parametrize(("method", "count"), [("grpo", 16), ("exact", 0), ("sft", 0)])
def test_the_other_methods_sample_all_or_nothing(method: str, count: int) -> None:
    sampled, given = writer(method).divide([prompt(row(number)) for number in range(16)], step=3)
    assert (len(sampled), len(given)) == (count, 16 - count)
