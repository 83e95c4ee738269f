"""A real S3 server: SeaweedFS, on ports of this machine alone, up in some four seconds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.storage.bucket import BucketFolder

KEY, SECRET, BUCKET = "rollcall", "rollcall-secret", "runs"
PROGRAM = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
_PORTS = ("master", "volume", "filer", "s3")
_UP_S = 60.0


@dataclass(slots=True)
class S3Server:
    """A server with one bucket, which may be ended and started again."""

    folder: Path
    ports: dict[str, int]
    address: str = "127.0.0.1"  # where it listens for clients
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it, as AWS's own tools read it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3']}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def place(self, path: str, *, host: str = "127.0.0.1") -> BucketFolder:
        """The folder `path` of the bucket, as a process finds it that sees this machine at the address `host`."""
        return BucketFolder.parse(f"s3://{BUCKET}/{path}?endpoint_override={host}:{self.ports['s3']}&scheme=http")

    def names(self, path: str) -> list[str]:
        """Every object below `path`, sorted; the lock of a live run too."""
        return sorted(self.place(path).list_objects())

    def start(self) -> None:
        """Start the server and wait until its bucket is there."""
        assert PROGRAM is not None
        words = [
            PROGRAM,
            "-logtostderr=true",
            "server",
            f"-ip={self.address}",
            f"-ip.bind={self.address}",
            f"-dir={self.folder}",
        ]
        words += ["-s3", f"-s3.config={self.folder / 's3.json'}", "-s3.iam=false", "-s3.autoCreateBucket=false"]
        words += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64", "-volume.max=50"]
        words += [f"-{name}.port={port}" for name, port in self.ports.items() if "." not in name]
        words += [f"-{name}={port}" for name, port in self.ports.items() if "." in name]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)
        deadline = time.monotonic() + _UP_S
        while not self._make_bucket():
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "no S3 server"
            time.sleep(0.2)

    def kill(self) -> None:
        """End the server at once; what it holds is on disk."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(20)
            self.process = None

    def _make_bucket(self) -> bool:
        from pyarrow import fs

        files: Any = fs.S3FileSystem(
            access_key=KEY,
            secret_key=SECRET,
            region="us-east-1",
            scheme="http",
            endpoint_override=f"127.0.0.1:{self.ports['s3']}",
            allow_bucket_creation=True,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )
        try:
            files.create_dir(BUCKET)
        except OSError:
            return False
        return True


@contextmanager
def serve(folder: Path, *, address: str = "127.0.0.1") -> Iterator[S3Server]:
    """A server whose data lie in `folder`, ended at the end of the block.

    With the address 0.0.0.0 other hosts of a test reach it too.
    """
    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    server = S3Server(folder, _find_ports(), address)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def count_attempt(place: BucketFolder, step: int) -> tuple[int, bool]:
    """How many files of the checkpoint of `step` are there, and whether its manifest is."""
    names = (place / f"checkpoints/step-{step:06}").list_objects()
    return len(names) - ("manifest.json" in names), "manifest.json" in names


def assert_nothing_left_over(place: BucketFolder) -> None:
    """One attempt a checkpoint, the one that its manifest names; no lock, no probe."""
    names = place.list_objects()
    assert not [name for name in names if name.startswith(".")]
    attempts = {match[0] for name in names if (match := re.match(r"checkpoints/step-\d+/[0-9a-f]{16}", name))}
    manifests = [name for name in names if name.endswith("/manifest.json")]
    named = {f"{Path(name).parent}/{json.loads(place.read(name))['attempt']}" for name in manifests}
    assert attempts == named
    assert len(manifests) in (2, 3)  # the newest two and the best


def _find_ports() -> dict[str, int]:
    """Free ports by the name of the server's flag, its gRPC ports too, all different."""
    names = [*_PORTS, *(f"{name}.port.grpc" for name in _PORTS)]
    probes = [socket.socket() for _ in names]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = {name: int(probe.getsockname()[1]) for name, probe in zip(names, probes, strict=True)}
    for probe in probes:
        probe.close()
    return ports
