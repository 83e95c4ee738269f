"""`learner.main` over many command lines in one process, offline, with small data and models under their hub names.

Run as `python -m tests.helpers.dry_runs HOME` with HF_HOME=HOME; command lines come in and what they printed goes out
as JSON. The models have the real shapes, and files of weights that take no room.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from common.labels.candidates import with_candidates
from learner.main import main
from tests.benchmarks.gpu_learner import TEXT, VISION
from tests.helpers.hub import put_data, put_model
from tests.helpers.makers import noise

SETS = ("imagenet", "caltech", "dtd", "eurosat", "food", "flowers", "pets", "cars", "sun", "ucf", "fgvc")
LABELS = ("banded", "blotchy", "braided", "bubbly", "bumpy")
ROWS = 20
COUNTING = "How many items are there in the image?"
GEOMETRY = "As shown in the figure, angle A = 80.0, angle B = 60.0, then the size of angle C is ()"

QWEN2_5_VL_3B_TEXT = TEXT | {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
}
QWEN2_5_VL_3B_VISION = {"depth": 32, "hidden_size": 1280, "out_hidden_size": 2048, "intermediate_size": 3420}


def fill(home: Path) -> None:
    """What the recipes name, in the columns and splits it is published with."""
    import transformers

    from learner.embedded.tokenizer import build_processor, token_ids

    processor = build_processor([], size_limit=300)
    ids: dict[str, Any] = {"tie_word_embeddings": True, **token_ids(processor.tokenizer)}
    two = transformers.Qwen2VLConfig(text_config=TEXT, vision_config=VISION, **ids)
    put_model(home, "Qwen/Qwen2-VL-2B-Instruct", two, processor)
    three = transformers.Qwen2_5_VLConfig(text_config=QWEN2_5_VL_3B_TEXT, vision_config=QWEN2_5_VL_3B_VISION, **ids)
    parts = (processor.image_processor, processor.tokenizer, processor.video_processor)
    own = transformers.Qwen2_5_VLProcessor(*parts, chat_template=processor.chat_template)
    put_model(home, "Qwen/Qwen2.5-VL-3B-Instruct", three, own)
    question = with_candidates("What type of texture is in the photo?", LABELS)
    classified = [_row(question, LABELS[row % len(LABELS)], seed=row) for row in range(ROWS)]
    for name in SETS:
        put_data(home, f"afdsafas/{name}-4shot-fewshot", {"train": classified})
    put_data(home, "afdsafas/dtd-4shot-b2n", {"train": classified})
    counted = [_row(COUNTING, f"<answer> {3 + row % 8} </answer>", size=(480, 320), seed=row) for row in range(ROWS)]
    put_data(home, "leonardPKU/clevr_cogen_a_train", {"train": counted})
    measured = [_row(GEOMETRY, f"<answer> {40 + row}° </answer>", size=(140, 108), seed=row) for row in range(ROWS)]
    put_data(home, "leonardPKU/GEOQA_R1V_Train_8K", {"train": measured})


def _row(problem: str, solution: str, *, size: tuple[int, int] = (64, 48), seed: int) -> dict[str, Any]:
    image = {"bytes": noise(size, seed=seed), "path": None}
    return {
        "problem": problem,
        "image": image,
        "image_width": size[0],
        "image_height": size[1],
        "solution": solution,
    }


def answered(words: list[str]) -> dict[str, Any]:
    """Exit code and what was printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
    print("\n" + json.dumps([answered(words) for words in json.load(sys.stdin)]))
