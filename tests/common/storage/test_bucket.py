"""A folder in a bucket, against a real S3 server: what is refused, what is written and read, what an error says."""

from __future__ import annotations

import hashlib
import pickle
import socket
import threading
import time
from pathlib import Path

import pytest

from common.config.cli import parse
from common.errors import ConfigError, RunFolderError
from common.storage.bucket import BucketFolder, hurry, is_url
from common.storage.output import (
    FolderOutput,
    WriteReport,
    WrittenFile,
    describe_folder,
    find_unseen,
    open_output,
    read_folder,
    write_folder,
)
from learner.storage.run_bucket import RunBucket
from tests.helpers.s3 import S3Server

pytestmark = pytest.mark.slow

REFUSED = [
    ("http://bucket/x", "unknown scheme http:"),
    ("hdfs://host/x", "unknown scheme hdfs:"),
    ("file:///shared/x", "unknown scheme file:"),
    ("S4://bucket/x", "unknown scheme s4:"),
    ("s3:/bucket/x", "unknown scheme s3:"),
    ("s3://bucket", "no folder in a bucket"),
    ("s3://bucket/", "no folder in a bucket"),
    ("s3:///x", "no folder in a bucket"),
    ("s3://bucket/../other/x", "no folder in a bucket"),
    ("s3://bucket/a//x", "no folder in a bucket"),
    ("s3://bucket/x?endpont=a", "unknown option endpont"),
    ("gs://bucket/x?region=a", "unknown option region"),
    ("s3://AKIA1:hunter2@bucket/x", "keys stand in it"),
    ("s3://AKIA1@bucket/x", "keys stand in it"),
]


@pytest.mark.parametrize(("url", "why"), REFUSED)
def test_a_url_that_names_no_folder_in_a_bucket_is_refused(url: str, why: str) -> None:
    with pytest.raises(RunFolderError, match="cannot be used") as caught:
        BucketFolder.parse(url)
    told = str(caught.value)
    assert why in told
    assert "AKIA1" not in told and "hunter2" not in told


@pytest.mark.parametrize("key", ["run_dir", "resume"])
@pytest.mark.parametrize(("url", "why"), REFUSED)
def test_it_is_refused_as_the_configuration_is_read(key: str, url: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([f"{key}={url}"])
    told = str(caught.value)
    assert f"{key} = " in told and why in told
    assert "AKIA1" not in told and "hunter2" not in told


@pytest.mark.parametrize("folder", ["runs/x", "/shared/x", "runs/x: y", "./s3", "a:b", "C:x", "runs/s3://b"])
def test_a_folder_is_no_url(folder: str) -> None:
    assert not is_url(folder)


@pytest.mark.parametrize("url", ["s3://bucket/a/b", "s3://bucket/a?region=eu-west-1", "gs://bucket/a?anonymous=true"])
def test_a_url_is_written_as_it_was_given(url: str) -> None:
    folder = BucketFolder.parse(url + ("/" if "?" not in url else ""))
    assert str(folder) == url
    assert (folder / "x").parent == folder and (folder / "x").name == "x"
    assert pickle.loads(pickle.dumps(folder)) == folder
    assert parse([f"run_dir={url}"]).config.run_dir == url


def test_objects_are_written_listed_read_and_deleted(s3: S3Server) -> None:
    folder = BucketFolder.parse("s3://runs/objects")  # endpoint and keys from the environment
    assert folder.list_objects() == {}
    folder.write("a/b", b"12345")
    folder.write("c", b"")
    folder.write("c", b"6")
    assert {name: found.bytes for name, found in folder.list_objects().items()} == {"a/b": 5, "c": 1}
    assert folder.read("a/b") == b"12345"
    assert folder.hash_object("a/b") == hashlib.sha256(b"12345").hexdigest()
    folder.delete("a/b")
    folder.delete("a/b")
    assert s3.names("objects") == ["c"]
    with pytest.raises(FileNotFoundError, match="no such object"):
        folder.read("a/b")
    for outside in ("../x", "/etc/passwd", "a/../../x", ""):
        with pytest.raises(OSError, match="no name inside"):
            folder.read(outside)


def test_a_large_file_is_hashed_on_its_way_and_checked_on_its_way_back(s3: S3Server) -> None:
    place, data = s3.place("large"), bytes(range(256)) * 100_000
    output = open_output(place)
    with output.open("deep/weights") as file:
        for start in range(0, len(data), 1 << 22):
            file.write(memoryview(data)[start : start + (1 << 22)])
    assert output.files == [WrittenFile(name="deep/weights", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())]
    with read_folder(place, output.files) as folder:
        assert (folder / "deep/weights").read_bytes() == data
    assert not folder.exists()
    place.write("deep/weights", data[:-1] + b"x")
    with pytest.raises(OSError, match="size or sha256 differ"), read_folder(place, output.files):
        pytest.fail("a damaged file is not handed on")


def test_a_folder_is_written_to_a_bucket_and_seen_there(s3: S3Server, tmp_path: Path) -> None:
    place = s3.place("folder")
    with write_folder(place) as folder:
        output = FolderOutput(folder)
        with output.open("sub/a") as file:
            file.write(b"12")
        report = WriteReport(by="rank 0", host="far", files=describe_folder(folder))
    assert s3.names("folder") == ["sub/a"]
    assert find_unseen(place, [report]) is None
    place.write("sub/a", b"123")
    assert "sees 3 bytes" in str(find_unseen(place, [report]))
    place.delete("sub/a")
    assert "rank 0 on far wrote sub/a (2 bytes)" in str(find_unseen(place, [report]))


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("AWS_ACCESS_KEY_ID", "nobody", "INVALID_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SIGNATURE_DOES_NOT_MATCH"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "Could not connect"),
        ("AWS_ENDPOINT_URL", "http://no.such.host.invalid", "Could not resolve"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_refused_within_ten_seconds(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    place = BucketFolder.parse(f"s3://runs/probe?region=eu-{len(variable)}-{len(value)}")  # a connection of its own
    began = time.monotonic()
    with pytest.raises(RunFolderError, match="cannot be used") as caught:
        RunBucket.probe(place)
    assert time.monotonic() - began < 11
    assert told in str(caught.value) and "s3://runs/probe" in str(caught.value)
    assert "rollcall-secret" not in str(caught.value)


@pytest.mark.parametrize("written", ["{0}", "http://{0}", "http%3A%2F%2F{0}/"])
def test_an_endpoint_in_the_url_may_have_its_scheme(s3: S3Server, written: str) -> None:
    host = s3.environment["AWS_ENDPOINT_URL"].removeprefix("http://")
    scheme = "" if "http" in written else "&scheme=http"
    assert BucketFolder.parse(f"s3://runs/x?endpoint_override={written.format(host)}{scheme}").probe() is None


def test_another_bucket_and_a_server_that_hangs_are_refused_too(s3: S3Server) -> None:
    with pytest.raises(RunFolderError, match=r"s3://nobucket/x(.|\n)*NO_SUCH_BUCKET"):
        RunBucket.probe(BucketFolder.parse("s3://nobucket/x"))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(RunFolderError, match="no answer"):
            RunBucket.probe(BucketFolder.parse(f"s3://runs/x?endpoint_override=127.0.0.1:{port}&scheme=http"))
        assert time.monotonic() - began < 11
        began = time.monotonic()
        with hurry(), pytest.raises(OSError, match="no answer in 3 s"):
            BucketFolder.parse(f"s3://runs/x?endpoint_override=127.0.0.1:{port}&scheme=http").list_objects()
        assert time.monotonic() - began < 4
    RunBucket.probe(s3.place("probe"))
    assert s3.names("probe") == []
    assert threading.active_count() < 50
