"""A folder in a bucket, as `run_dir=s3://bucket/run` names it. Every process reaches it with its own host's keys."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from common.errors import RunFolderError

OPTIONS = {  # of a URL's query, by scheme
    "s3": frozenset({"region", "scheme", "endpoint_override", "anonymous"}),
    "gs": frozenset({"project_id", "scheme", "endpoint_override", "anonymous"}),
}
CALL_S = 30.0  # a small object is written, read or listed within it
HURRY_S = 3.0  # the same for a run that was told to end
PROBE_S = 10.0  # whether a bucket can be used is known within it
_CHUNK = 8 << 20  # bytes
Value = TypeVar("Value")


def is_url(place: str) -> bool:
    """Return whether text names a URL of any scheme, also a misspelt one (`s3:/x`), and not a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", place) is not None


_limits = [CALL_S]  # the last one holds


@contextmanager
def hurry() -> Iterator[None]:
    """Let every small call within the block take `HURRY_S` at most: a server that hangs must not hold up an end."""
    _limits.append(HURRY_S)
    try:
        yield
    finally:
        _limits.pop()


class Found(NamedTuple):
    """An object as a listing shows it."""

    bytes: int
    changed: datetime  # by the server's clock


@dataclass(frozen=True, slots=True)
class BucketFolder:
    """A folder in a bucket. It holds no connection and no keys, so it may travel to another host."""

    scheme: str  # "s3"
    path: str  # "bucket/runs/x"
    query: str = ""  # "endpoint_override=minio:9000&scheme=http"

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read `s3://bucket/folder?region=eu-central-1`.

        Raises:
            RunFolderError: the scheme or an option is unknown, keys stand in the URL, or it names no folder.
        """
        parts = urlsplit(url)
        place = f"{parts.netloc.rpartition('@')[2]}{parts.path}".strip("/")
        options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
        known = ", ".join(f"{scheme}://BUCKET/FOLDER" for scheme in OPTIONS)
        if parts.scheme not in OPTIONS or not url.startswith(f"{parts.scheme}://"):
            fault, remedy = f"unknown scheme {parts.scheme}:", f"write {known}, or the path of a folder"
        elif "@" in parts.netloc:
            fault, remedy = "keys stand in it", "take them out: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        elif "/" not in place or {"", ".", ".."} & set(place.split("/")) or parts.fragment:
            fault, remedy = "no folder in a bucket", f"write {known}"
        elif not re.fullmatch(r"[\w.-]+", place.partition("/")[0]):
            fault, remedy = "no bucket can have that name", f"write {known}"
        elif strange := sorted(set(options) - OPTIONS[parts.scheme]):
            fault, remedy = f"unknown option {strange[0]}", f"it takes {', '.join(sorted(OPTIONS[parts.scheme]))}"
        else:
            return cls(parts.scheme, place, parts.query)
        raise RunFolderError("this URL cannot be used", got=f"{hide_keys(url)}: {fault}", remedy=remedy)

    def __truediv__(self, name: str) -> BucketFolder:
        return BucketFolder(self.scheme, f"{self.path}/{name}", self.query)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}" + (f"?{self.query}" if self.query else "")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> BucketFolder:
        return BucketFolder(self.scheme, self.path.rpartition("/")[0], self.query)

    def list_objects(self) -> dict[str, Found]:
        """Return every object below the folder, by its name relative to it. Raises OSError."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self.path, recursive=True, allow_not_found=True)
        infos = self._call("listing", lambda files: files.get_file_info(selector))
        start = len(self.path) + 1
        return {info.path[start:]: Found(info.size, info.mtime) for info in infos if info.type == FileType.File}

    def read(self, name: str) -> bytes:
        """Return a small object. Raises FileNotFoundError, or OSError."""

        def read(files: Any) -> bytes:
            with files.open_input_stream(self._key(name)) as stream:
                return bytes(stream.read())

        return self._call(f"reading {name}", read)

    def write(self, name: str, data: bytes) -> None:
        """Write a small object: readers see the old one or the new one, whole. Raises OSError."""

        def write(files: Any) -> None:
            with files.open_output_stream(self._key(name)) as stream:
                stream.write(data)

        self._call(f"writing {name}", write)

    def delete(self, name: str) -> None:
        """Delete an object; do nothing where it is gone. Raises OSError."""

        def delete(files: Any) -> None:
            files.delete_file(self._key(name))

        try:
            self._call(f"deleting {name}", delete)
        except FileNotFoundError:
            return

    @contextmanager
    def open_output(self, name: str) -> Iterator[Any]:
        """Open a stream that becomes the object `name` when the block ends. Raises OSError."""
        with self._explain(f"writing {name}"), _connect(self).open_output_stream(self._key(name)) as stream:
            yield stream

    def read_chunks(self, name: str) -> Iterator[bytes]:
        """Yield an object of any size, part by part. Raises OSError."""
        with self._explain(f"reading {name}"), _connect(self).open_input_stream(self._key(name)) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk

    def hash_object(self, name: str) -> str:
        """Return the sha256 of an object, in hex. Raises OSError."""
        digest = hashlib.sha256()
        for chunk in self.read_chunks(name):
            digest.update(chunk)
        return digest.hexdigest()

    def probe(self) -> str | None:
        """Write, read and delete an object. Return why that failed or took over `PROBE_S`; None where it works."""
        name = f".probe-{secrets.token_hex(8)}"

        def try_it(files: Any) -> None:
            with files.open_output_stream(self._key(name)) as stream:
                stream.write(name.encode())
            with files.open_input_stream(self._key(name)) as stream:
                stream.read()
            files.delete_file(self._key(name))

        try:
            self._call("writing and reading", try_it, within_s=PROBE_S)
        except OSError as error:
            return str(error)
        return None

    def _key(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/"):
            raise OSError(f"{name!r} is no name inside {self}")
        return f"{self.path}/{name}"

    def _call(self, what: str, work: Callable[[Any], Value], *, within_s: float | None = None) -> Value:
        """Do `work` with the file system, in a thread that no exit waits for. Raises OSError, also at the deadline."""
        within_s = within_s or _limits[-1]
        outcome: list[Value] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                with self._explain(what):
                    outcome.append(work(_connect(self)))
            except BaseException as error:  # noqa: BLE001  # raised again by the caller
                errors.append(error)

        thread = threading.Thread(target=run, name=f"bucket: {what}", daemon=True)
        thread.start()
        thread.join(within_s)
        if errors:
            raise errors[0]
        if not outcome:
            raise OSError(f"{what} in {self}: no answer in {within_s:g} s")
        return outcome[0]

    @contextmanager
    def _explain(self, what: str) -> Iterator[None]:
        """Turn any error of pyarrow into an OSError that says what was done where; a missing object stays one."""
        import pyarrow as pa

        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(f"{what} in {self}: no such object") from None
        except (OSError, pa.ArrowException) as error:
            raise OSError(f"{what} in {self}: {_shorten(error)}") from error


def hide_keys(text: str) -> str:
    """Return text with the user and password of every URL in it taken out: `s3://***@bucket/x`."""
    return re.sub(r"(\w:/+)[^/\s?#]*@", r"\1***@", text)


def _shorten(error: Exception) -> str:
    """Return what a server said, without what pyarrow says about the call."""
    text = " ".join(str(error).split())
    _, found, told = text.partition("AWS Error ")
    return re.sub(r" \(Request ID: .*?\)", "", told if found else text)[:300]


@cache
def _open_filesystem(scheme: str, query: str) -> Any:
    """Return pyarrow's file system, with the keys of this process's environment."""
    from pyarrow import fs

    options: dict[str, Any] = dict(parse_qsl(query))
    if "anonymous" in options:
        options["anonymous"] = options["anonymous"].lower() == "true"
    if scheme == "gs":
        return fs.GcsFileSystem(**options, retry_time_limit=timedelta(seconds=10))
    _take_endpoint(options, os.environ)
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=3)
    return fs.S3FileSystem(
        **options, connect_timeout=3, request_timeout=10, retry_strategy=retries, allow_delayed_open=True
    )


def _take_endpoint(options: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Fill in endpoint and region from the variables that AWS's own tools read."""
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_override" not in options:
        options["endpoint_override"] = endpoint
    if "endpoint_override" in options:
        scheme, _, host = options["endpoint_override"].rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or options.get("scheme", "https")}
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if "region" not in options and (region or "endpoint_override" in options):
        options["region"] = region or "us-east-1"  # servers of one's own take any


def _connect(folder: BucketFolder) -> Any:
    if folder.scheme == "s3" and "region" not in folder.query:
        return _open_filesystem(folder.scheme, _add_region(folder.path.partition("/")[0], folder.query))
    return _open_filesystem(folder.scheme, folder.query)


@cache
def _add_region(bucket: str, query: str) -> str:
    """Return the query with the region of an AWS bucket; unchanged where the environment or an endpoint says it."""
    from pyarrow import fs

    options: dict[str, Any] = dict(parse_qsl(query))
    _take_endpoint(options, os.environ)
    if "region" in options:
        return query
    try:
        region = fs.resolve_s3_region(bucket)
    except OSError:  # the call that follows says what is wrong
        return query
    return f"{query}&region={region}" if query else f"region={region}"
