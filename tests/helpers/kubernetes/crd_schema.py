"""The fields of KubeRay's schemas that our manifests use, and nothing else.

    python -m tests.helpers.kubernetes.crd_schema [crds-v1.json.gz]

writes `tests/deploy/kuberay-v1.json` anew out of the full schemas. Committed, so that a clone without them checks too.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from tests.helpers.kuberay import COMPACT, CRDS
from tests.helpers.kubernetes.render import RUNS, Document, render

GROUP = "ray.io/"


def read_full(path: Path) -> dict[str, Any]:
    """Return the full schemas by kind."""
    schemas: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return schemas


def list_rays_documents() -> list[Document]:
    """Return every document of the operator's kinds that some folder of ours renders to."""
    return [one for folder in RUNS for one in render(folder) if one["apiVersion"].startswith(GROUP)]


def make_compact(full: dict[str, Any], documents: list[Document]) -> dict[str, Any]:
    """Return the schemas by kind, without the properties that no document has.

    >>> schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    >>> make_compact({"K": schema}, [{"kind": "K", "a": 1}])["K"]["properties"]
    {'a': {'type': 'integer'}}
    """
    kinds = sorted({one["kind"] for one in documents})
    return {kind: _keep_used(full[kind], [one for one in documents if one["kind"] == kind]) for kind in kinds}


def _keep_used(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    kept = dict(schema)
    if isinstance(fields := schema.get("properties"), dict):
        objects = [value for value in values if isinstance(value, dict)]
        used = {name: [one[name] for one in objects if name in one] for name in fields}
        kept["properties"] = {name: _keep_used(fields[name], found) for name, found in used.items() if found}
        if "required" in schema:  # of what has a default, a document may say nothing
            kept["required"] = [name for name in schema["required"] if used[name]]
    if isinstance(items := schema.get("items"), dict):
        kept["items"] = _keep_used(items, [item for value in values if isinstance(value, list) for item in value])
    if isinstance(others := schema.get("additionalProperties"), dict):
        inside = [item for value in values if isinstance(value, dict) for item in value.values()]
        kept["additionalProperties"] = _keep_used(others, inside)
    kept.pop("x-kubernetes-validations", None)  # CEL, which no validator here reads
    return kept


def dump(schemas: dict[str, Any]) -> str:
    """Return the text of the committed file."""
    return json.dumps(schemas, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    COMPACT.write_text(
        dump(make_compact(read_full(Path(sys.argv[1]) if sys.argv[1:] else CRDS), list_rays_documents()))
    )
