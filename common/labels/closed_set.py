"""The candidates of a row as token ids, as an engine would sample them, so that a model can score each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.errors import DataError
from common.labels.answers import Mode, nfc
from common.types import Prompt

Answer = tuple[int, ...]  # ids of one whole answer
_MARK = "answer"  # an assistant's turn, to see what the chat template puts after it
_OPENING: Mapping[Mode, str] = {
    "no_think": "",
    "think": "</think>\n<answer>",
    "think_after_answer": "<answer>",
    "adaptive": "<answer>",
}
_THOUGHT_ENDS = ("</think>", "<answer>")  # whichever comes first


class ClosedSet:
    """Writes candidates as answers of one model in one mode."""

    def __init__(self, processor: Any, *, mode: Mode, ends: Collection[int], banned: Collection[int]) -> None:
        """Prepare for one model and mode.

        Args:
            processor: of the model.
            ends: ids that end an answer, as in `common.models.processor.eos_token_ids`.
            banned: ids to which neither engine nor learner gives any probability.
        """
        self._tokenizer, self._mode, self._banned = processor.tokenizer, mode, frozenset(banned)
        self._turn = end_of_turn(processor, ends)
        self._end = () if mode == "think_after_answer" else (self._turn,)
        self._known: dict[tuple[str, str], Answer] = {}

    def answers(self, candidates: Sequence[str], *, opening: str | None = None) -> tuple[Answer, ...]:
        """Return (K,) the ids of each candidate as a whole answer.

        An answer ends with the end of turn, in think-after-answer with the answer block. Candidate "cat" is `cat<end>`
        in no-think, and `</think>\\n<answer>cat</answer><end>` in think.

        Args:
            opening: text before the candidate; by default what begins the mode's answer. See `after_thought`.

        Raises:
            DataError: a candidate cannot be said in the model's tokens, or two are the same answer.
        """
        opening = _OPENING[self._mode] if opening is None else opening
        made = tuple((*self._ids(candidate, opening), *self._end) for candidate in candidates)
        _refuse_twins(candidates, made)
        return made

    def completion(self, text: str) -> Answer:
        """Return the ids of `text` as a whole turn of the assistant, with its end.

        Raises:
            DataError: it cannot be said in the model's tokens.
        """
        return (*self._ids(text, ""), self._turn)

    def after_thought(self, prompt: Prompt, completion: Sequence[int]) -> tuple[Prompt, str]:
        """Return `prompt` with the thought of a sampled completion added, and the text with which its answers begin.

        The thought ends where the completion closes it; without that where it begins to answer, or where it stops. In
        modes that answer first, and in adaptive without a thought, nothing is added.
        """
        ids = [token for token in completion if token not in self._end]
        text = self._text(ids)
        thinks = self._mode == "think" or (self._mode == "adaptive" and "</think>" in text)
        if not thinks:
            return prompt, _OPENING[self._mode]

        # The thought in whole tokens. The rest of its text, less than a token, goes into the opening.
        cut = min(at for at in (*map(text.find, _THOUGHT_ENDS), len(text)) if at >= 0)
        kept = self._count_tokens_within(ids, text[:cut])
        thought, said = tuple(ids[:kept]), self._text(ids[:kept])
        longer = replace(prompt, token_ids=prompt.token_ids + thought, text_ids=prompt.text_ids + thought)
        return longer, text[len(said) : cut] + _OPENING["think"]

    def _ids(self, candidate: str, opening: str) -> Answer:
        key = (candidate, opening)
        if key not in self._known:
            if len(self._known) > 65536:  # there is no end of different thoughts
                self._known.clear()
            self._known[key] = self._encode_answer(candidate, opening)
        return self._known[key]

    def _encode_answer(self, candidate: str, opening: str) -> Answer:
        """Return the ids of one answer. Raises DataError when they do not decode to it again, or are banned."""
        text = f"{opening}{candidate}</answer>" if opening else candidate
        ids = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        back, barred = self._text(ids), sorted(self._banned.intersection(ids))
        if not candidate.strip() or nfc(back) != nfc(text) or barred:
            raise DataError(
                f"candidate {candidate!r} cannot be an answer of this model",
                got=f"banned tokens {barred}" if barred else f"its tokens read {back!r}",
                remedy="take special tokens and odd characters out of the label",
            )
        return ids

    def _count_tokens_within(self, ids: Sequence[int], text: str) -> int:
        """Return how many of the first `ids` decode to a beginning of `text`: a token may reach over its end."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(self._text(ids[:middle])) <= len(text) else (low, middle - 1)
        while not text.startswith(self._text(ids[:low])):  # the last token is a part of a character
            low -= 1
        return low

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def end_of_turn(processor: Any, ends: Collection[int]) -> int:
    """Return the id that ends an assistant's turn in the chat template; the tokenizer's EOS where none does.

    Args:
        ends: ids that end an answer; an engine stops at each of them.
    """
    said = [{"type": "text", "text": _MARK}]
    chat = [{"role": "user", "content": [{"type": "text", "text": "?"}]}, {"role": "assistant", "content": said}]
    text: str = processor.apply_chat_template(chat, tokenize=False, processor_kwargs={"padding": False})
    tail = processor.tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
    eos: int = processor.tokenizer.eos_token_id
    return next((token for token in tail if token in ends), eos)


def _refuse_twins(candidates: Sequence[str], answers: Sequence[Answer]) -> None:
    """Raise DataError for two candidates with the same ids."""
    seen: dict[Answer, str] = {}
    for candidate, answer in zip(candidates, answers, strict=True):
        if answer in seen:
            raise DataError(
                "two candidates of a list are one answer to the model",
                got=f"{seen[answer]!r} and {candidate!r}",
                remedy="name each class once in the list",
            )
        seen[answer] = candidate
