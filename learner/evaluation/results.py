"""What `learner.evaluate` writes: every answer with its verdict, then all measures, and a table of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config.schema import Config, config_hash, flatten
from common.errors import escape_unprintable
from common.labels.answers import first_answer
from common.storage.json_values import replace_nonfinite
from learner.evaluation.measures import measure_all
from learner.evaluation.sets import EvaluationSet
from learner.evaluation.verdicts import Answer, Verdict
from learner.storage.environment import describe_environment
from learner.storage.files import append_whole, replace_text

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
            "weights": digest_weights(Path(path)),
        }
        self._verdicts[name] = {}

    def add_set(self, model: str, one: EvaluationSet, rows: Sequence[Verdict]) -> None:
        """Write the answers of one model to one set. Raises OSError."""
        self._verdicts[model][one.name] = rows
        self._digests.setdefault(one.name, digest_rows(one, len(rows)))
        lines = [json.dumps(replace_nonfinite(line)) for row in rows for line in make_answer_rows(model, one.name, row)]
        append_whole(self._folder / "answers.jsonl", "".join(f"{line}\n" for line in lines).encode())

    def finish(self, cls_rl_file: Path | None) -> str:
        """Write the measures, and return the table of them. Raises OSError."""
        lines = [
            {"model": name, **line}
            for name, config in self._models.items()
            for line in measure_all(self._verdicts[name], config)
        ]
        table = "\n\n".join(["\n".join(make_table(lines)), *make_matrix(lines)])
        whole = {
            "lines": lines,
            "models": self._about,
            "rows": self._digests,
            "environment": describe_environment(next(iter(self._models.values()))),
        }
        replace_text(
            self._folder / "evaluation.json", json.dumps(replace_nonfinite(whole), indent=1, default=str) + "\n"
        )
        replace_text(self._folder / "evaluation.md", table + "\n")
        if cls_rl_file:
            (of_model,) = self._verdicts.values()
            (rows,) = of_model.values()
            replace_text(
                cls_rl_file.absolute(), json.dumps(make_cls_rl_json(rows), indent=2, ensure_ascii=False) + "\n"
            )
        return table


def make_answer_rows(model: str, name: str, row: Verdict) -> Iterator[dict[str, Any]]:
    """Yield a row for the greedy answer, as sample 0 with the log-probs of candidates; then one a sampled answer."""
    head = {"model": model, "set": name, "id": row.id, "label": row.label}
    closed: dict[str, Any] = {}
    if row.closed:
        logprobs = dict(zip(row.closed.candidates, row.closed.logprobs, strict=True))
        closed = {"closed_set": row.closed.choice(), "logprobs": logprobs}
    for number, answer in enumerate((row.greedy, *row.samples)):
        yield {**head, "sample": number, **_make_answer_row(answer), **(closed if number == 0 else {})}


def _make_answer_row(answer: Answer) -> dict[str, Any]:
    return {
        "completion": answer.text,
        "named": answer.named or None,
        "strict": answer.strict,
        "lenient": answer.lenient,
        "well_formed": answer.well_formed,
    }


def make_cls_rl_json(rows: Sequence[Verdict]) -> dict[str, Any]:
    """Return greedy answers as CLS-RL's evaluation writes them: accuracy in percent by its lenient rule, then rows."""
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


def digest_rows(one: EvaluationSet, count: int) -> str:
    """Return 32 hex digits over question, label and picture of the first `count` rows."""
    import xxhash

    content = xxhash.xxh3_128()
    for row in one.source.outlines[:count]:
        content.update(json.dumps([row.problem, row.label, row.image_size]).encode())
        content.update(row.picture)
    return content.hexdigest()


def digest_weights(path: Path) -> str | None:
    """Return 32 hex digits over the weight files in a folder; None for a hub id, whose weights its revision names."""
    import xxhash

    if not path.is_dir():
        return None
    content = xxhash.xxh3_128()
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                content.update(block)
    return content.hexdigest()


def make_table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, one a model and set: measures with their intervals, null as a dash."""
    extra = sorted(
        {f"{family}/{k}" for line in lines for family in ("pass_at", "majority_at") for k in line.get(family, ())}
    )
    yield "| model | set | rows | " + " | ".join([*_COLUMNS, *extra]).replace("_", " ") + " |"
    yield "|" + "---|" * (3 + len(_COLUMNS) + len(extra))
    for line in lines:
        cells = [_format_cell(line, key) for key in (*_COLUMNS, *extra)]
        yield f"| {_escape(line['model'])} | {_escape(line['set'])} | {line['rows']} | " + " | ".join(cells) + " |"


def make_matrix(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return strict accuracies as a table, models down and sets across; nothing for a single row or column."""
    models, sets = (list(dict.fromkeys(line[key] for line in lines)) for key in ("model", "set"))
    if len(models) < 2 or len(sets) < 2:
        return []
    known = {(line["model"], line["set"]): line["accuracy"] for line in lines}
    head = ["| accuracy | " + " | ".join(map(_escape, sets)) + " |", "|---|" + "---|" * len(sets)]
    body = [
        f"| {_escape(model)} | "
        + " | ".join(f"{known[model, one]:.3f}" if (model, one) in known else "-" for one in sets)
        + " |"
        for model in models
    ]
    return ["\n".join([*head, *body])]


def _format_cell(line: Mapping[str, Any], key: str) -> str:
    family, _, k = key.partition("/")
    value = line.get(family, {}).get(k) if k else line.get(key)
    if value is None:
        return "-"
    bounds = line["intervals"].get(key)
    return f"{value:.3f}" + (f" ({bounds[0]:.3f}-{bounds[1]:.3f})" if bounds else "")


def _escape(text: str) -> str:
    return escape_unprintable(text).replace("|", "\\|")
