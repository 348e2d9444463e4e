#!/usr/bin/env python3
"""Writes one key of 1 MiB again and again, on three disks of 2 GiB, for an hour.

Shows that neither the log nor the disk fills, and that writes are not rejected for long. As root: each node has a file
system of its own, in a file. Usage: small-disk.py SERVER [SECONDS]
"""
import http.client
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

DISK_BYTES = 2 << 30
VALUE_BYTES = 1 << 20
LOG_BYTES_MAX = 1 << 30
REJECTED_SECONDS_MAX = 5
NODES = (1, 2, 3)
PORT = 26100
# Between writes, so that disks shared with others keep up.
PAUSE_SECONDS = 0.02
REPORT_SECONDS = 60


def request(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
    response = connection.getresponse()
    return response.status, response.read()


def wait_for(port):
    for _ in range(100):
        try:
            return request(port, "GET", "/livez")
        except OSError:
            time.sleep(0.1)
    sys.exit(f"no node listens on port {port}")


def bytes_in(directory):
    """The length of the log, and what all files take on the disk."""
    log = used = 0
    for file in directory.rglob("*"):
        try:
            found = file.stat()
        except FileNotFoundError:
            continue  # It was purged meanwhile.
        if file.is_file():
            used += found.st_blocks * 512
            log += found.st_size if file.suffix == ".wal" else 0
    return log, used


class Writer:
    """A client that sends the next write after the last one, and goes to another node if one is lost."""

    def __init__(self):
        self.node, self.connection = 0, None
        self.done, self.failed = 0, {}
        self.rejected_since, self.longest_rejected = None, 0.0

    def write(self, value):
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", PORT + NODES[self.node], timeout=20)
            self.connection.request("PUT", "/v1/kv/big", value)
            response = self.connection.getresponse()
            response.read()
            outcome = response.status
        except (OSError, http.client.HTTPException) as error:
            outcome, self.connection, self.node = type(error).__name__, None, (self.node + 1) % len(NODES)
        if outcome == 200:
            self.done += 1
            if self.rejected_since is not None:
                self.longest_rejected = max(self.longest_rejected, time.monotonic() - self.rejected_since)
                self.rejected_since = None
        else:
            self.failed[outcome] = self.failed.get(outcome, 0) + 1
            self.rejected_since = self.rejected_since or time.monotonic()


def main(server, seconds):
    root = pathlib.Path(tempfile.mkdtemp(prefix="rkv-small-disk-"))
    mounts, processes, writer, most_log, most_used = [], [], Writer(), 0, 0
    try:
        for node in NODES:
            image, mount = root / f"{node}.img", root / str(node)
            mount.mkdir()
            with open(image, "wb") as file:
                file.truncate(DISK_BYTES)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
            subprocess.run(["mount", "-o", "loop", image, mount], check=True)
            mounts.append(mount)
            arguments = ["--id", str(node), "--http-addr", f"127.0.0.1:{PORT + node}", "--data-dir", mount / "data"]
            with open(root / f"{node}.log", "w") as log:
                processes.append(subprocess.Popen([server, *arguments], stdout=log, stderr=log))
        for node in NODES:
            wait_for(PORT + node)
        members = json.dumps([[node, f"127.0.0.1:{PORT + node}"] for node in NODES])
        status, answer = request(PORT + 1, "POST", "/init", members)
        assert status == 200, answer
        values = [os.urandom(VALUE_BYTES) for _ in range(4)]
        start = reported = time.monotonic()
        while time.monotonic() - start < seconds:
            writer.write(values[writer.done % len(values)])
            time.sleep(PAUSE_SECONDS)
            if time.monotonic() - reported < REPORT_SECONDS and writer.done % 100:
                continue
            for log, used in map(bytes_in, mounts):
                most_log, most_used = max(most_log, log), max(most_used, used)
            if time.monotonic() - reported >= REPORT_SECONDS:
                reported = time.monotonic()
                print(f"{reported - start:.0f} s: {writer.done} writes, log at most {most_log >> 20} MiB", flush=True)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        for mount in mounts:
            subprocess.run(["umount", mount], check=False)
    if writer.rejected_since is not None:
        writer.longest_rejected = max(writer.longest_rejected, time.monotonic() - writer.rejected_since)
    print(f"{writer.done} writes of 1 MiB; others: {writer.failed or 'none'}")
    print(f"longest time without a write: {writer.longest_rejected:.2f} s (at most {REJECTED_SECONDS_MAX})")
    print(f"log: at most {most_log >> 20} MiB (1,024); all files: at most {most_used >> 20} MiB of 2,048")
    is_good = writer.done and most_log and most_log <= LOG_BYTES_MAX and writer.longest_rejected <= REJECTED_SECONDS_MAX
    if not is_good:
        sys.exit(f"a bound was exceeded; the nodes' logs are in {root}")
    subprocess.run(["rm", "-r", root], check=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 3600)
