"""What `learner.evaluate` writes: every answer as it is judged, then all measures and a table to read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config.schema import Config, config_hash, flatten
from common.labels.answers import first_answer
from learner.evaluation.measures import measure_all
from learner.evaluation.sets import EvaluationSet
from learner.evaluation.verdicts import Answer, Verdict
from learner.storage.files import append_whole, finite, replace_text
from learner.storage.run_folder import environment
from learner.text import printable

_COLUMNS = ("accuracy", "lenient", "closed_set", "macro_f1", "invalid_rate", "out_of_list_rate", "ece", "brier")


class Results:
    """answers.jsonl grows set by set; evaluation.json and evaluation.md are there once all are done."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: dict[str, Config] = {}  # by name, in the order they were added
        self._about: dict[str, dict[str, Any]] = {}  # by model
        self._verdicts: dict[str, dict[str, Sequence[Verdict]]] = {}  # by model and set
        self._digests: dict[str, str] = {}  # of rows, by set

    def add_model(self, name: str, config: Config, path: str) -> None:
        """Note a model whose answers come next.

        Args:
            path: folder or hub id its weights are read from.
        """
        self._models[name] = config
        self._about[name] = {
            "config": flatten(config),
            "config_hash": config_hash(config),
            "revision": config.model.revision,
            "weights": weights_digest(Path(path)),
        }
        self._verdicts[name] = {}

    def add_set(self, model: str, one: EvaluationSet, rows: Sequence[Verdict]) -> None:
        """Write the answers of one model to one set. Raises OSError."""
        self._verdicts[model][one.name] = rows
        self._digests.setdefault(one.name, rows_digest(one, len(rows)))
        lines = [json.dumps(finite(line)) for row in rows for line in answer_lines(model, one.name, row)]
        append_whole(self._folder / "answers.jsonl", "".join(f"{line}\n" for line in lines).encode())

    def finish(self, cls_rl_file: Path | None) -> str:
        """Write the measures, and return the table of them. Raises OSError."""
        lines = [
            {"model": name, **line}
            for name, config in self._models.items()
            for line in measure_all(self._verdicts[name], config)
        ]
        table = "\n\n".join(["\n".join(measures_table(lines)), *matrix(lines)])
        whole = {
            "lines": lines,
            "models": self._about,
            "rows": self._digests,
            "environment": environment(next(iter(self._models.values()))),
        }
        replace_text(self._folder / "evaluation.json", json.dumps(finite(whole), indent=1, default=str) + "\n")
        replace_text(self._folder / "evaluation.md", table + "\n")
        if cls_rl_file:
            (of_model,) = self._verdicts.values()
            (rows,) = of_model.values()
            replace_text(cls_rl_file.absolute(), json.dumps(cls_rl_json(rows), indent=2, ensure_ascii=False) + "\n")
        return table


def answer_lines(model: str, name: str, row: Verdict) -> Iterator[dict[str, Any]]:
    """The greedy answer, which is sample 0, with the candidates' log-probs; then those sampled, from 1 on."""
    head = {"model": model, "set": name, "id": row.id, "label": row.label}
    closed: dict[str, Any] = {}
    if row.closed:
        logprobs = dict(zip(row.closed.candidates, row.closed.logprobs, strict=True))
        closed = {"closed_set": row.closed.choice(), "logprobs": logprobs}
    for number, answer in enumerate((row.greedy, *row.samples)):
        yield {**head, "sample": number, **_verdicts(answer), **(closed if number == 0 else {})}


def _verdicts(answer: Answer) -> dict[str, Any]:
    return {
        "completion": answer.text,
        "named": answer.named or None,
        "strict": answer.strict,
        "lenient": answer.lenient,
        "well_formed": answer.well_formed,
    }


def cls_rl_json(rows: Sequence[Verdict]) -> dict[str, Any]:
    """Greedy answers as CLS-RL's evaluation writes them: accuracy in percent under its lenient rule, then the rows."""
    results = [
        {
            "question": row.problem,
            "ground_truth": row.label,
            "model_output": row.greedy.text,
            "extracted_answer": first_answer(row.greedy.text),
            "correct": row.greedy.lenient,
        }
        for row in rows
    ]
    return {"accuracy": 100 * sum(row.greedy.lenient for row in rows) / len(rows), "results": results}


def rows_digest(one: EvaluationSet, count: int) -> str:
    """32 hex digits of the first `count` rows: every question, label and pixel."""
    import xxhash

    content = xxhash.xxh3_128()
    for index in range(count):
        example = one.source[index]
        content.update(json.dumps([example.problem, example.label]).encode())
        content.update(b"" if example.image is None else repr(example.image.shape).encode() + example.image.tobytes())
    return content.hexdigest()


def weights_digest(path: Path) -> str | None:
    """32 hex digits of the weight files in a folder; None for a hub id, which its revision names."""
    import xxhash

    if not path.is_dir():
        return None
    content = xxhash.xxh3_128()
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                content.update(block)
    return content.hexdigest()


def measures_table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: a line a model and set; accuracies with their intervals, null as a dash."""
    extra = sorted(
        {f"{family}/{k}" for line in lines for family in ("pass_at", "majority_at") for k in line.get(family, ())}
    )
    yield "| model | set | rows | " + " | ".join([*_COLUMNS, *extra]).replace("_", " ") + " |"
    yield "|" + "---|" * (3 + len(_COLUMNS) + len(extra))
    for line in lines:
        cells = [_cell(line, key) for key in (*_COLUMNS, *extra)]
        yield f"| {_safe(line['model'])} | {_safe(line['set'])} | {line['rows']} | " + " | ".join(cells) + " |"


def matrix(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Strict accuracies, models down and sets across; nothing for a single row or column."""
    models, sets = (list(dict.fromkeys(line[key] for line in lines)) for key in ("model", "set"))
    if len(models) < 2 or len(sets) < 2:
        return []
    known = {(line["model"], line["set"]): line["accuracy"] for line in lines}
    head = ["| accuracy | " + " | ".join(map(_safe, sets)) + " |", "|---|" + "---|" * len(sets)]
    body = [
        f"| {_safe(model)} | "
        + " | ".join(f"{known[model, one]:.3f}" if (model, one) in known else "-" for one in sets)
        + " |"
        for model in models
    ]
    return ["\n".join([*head, *body])]


def _cell(line: Mapping[str, Any], key: str) -> str:
    family, _, k = key.partition("/")
    value = line.get(family, {}).get(k) if k else line.get(key)
    if value is None:
        return "-"
    bounds = line["intervals"].get(key)
    return f"{value:.3f}" + (f" ({bounds[0]:.3f}-{bounds[1]:.3f})" if bounds else "")


def _safe(text: str) -> str:
    return printable(text).replace("|", "\\|")
