#!/usr/bin/env python3
"""Runs a node in the root of an image, as a container does: own mounts, processes and network, user
65532, no other file than those of the image. Call it in such namespaces, with the folder of the root."""

import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

ROOT = sys.argv[1]
USER = 65532
# systemd's and Docker's default filters answer unshare(2) so where CAP_SYS_ADMIN is missing.
FORBID_UNSHARE = [(0x20, 0, 0, 0), (0x15, 0, 1, 272), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]


def check(condition, text):
    if not condition:
        raise SystemExit(f"wrong: {text}")


def run(*command):
    subprocess.run(command, check=True)


class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def enter(cgroups=(), forbid_unshare=False):
    for cgroup in cgroups:
        with open(f"{cgroup}/cgroup.procs", "w") as procs:
            procs.write("0")
    os.chroot(ROOT)
    os.chdir("/")
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    if forbid_unshare:
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in FORBID_UNSHARE))
        program = Program(len(FORBID_UNSHARE), ctypes.addressof(code))
        assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0


class Node:
    """A node by the image's entry point, command and environment."""

    ENVIRONMENT = {"ROOST_HEALTH_ENABLED": "true", "ROOST_LOG_FORMAT": "json"}

    def __init__(self, environment={}, arguments=(), **enter_with):
        self.environment = {**self.ENVIRONMENT, **environment}
        self.process = subprocess.Popen(
            ["/roost", "serve", *arguments], env=self.environment, text=True, stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, preexec_fn=lambda: enter(**enter_with))
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if "listening on" in line:
                break
        else:
            raise SystemExit(f"no start: {''.join(self.lines)}")
        self.start = json.loads(self.lines[-1])
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def health(self):
        return subprocess.run(["/roost", "health"], env=self.environment, capture_output=True, text=True,
                              preexec_fn=enter)

    def end(self):
        done = self.health()
        check(done.returncode == 0, f"roost health: {done}")
        self.process.send_signal(signal.SIGTERM)
        check(self.process.wait(20) == 0, "the end")
        check(self.health().returncode == 1, "healthy after its end")


def field(node, name):
    found = node.start.get("fields", node.start)
    return found.get(name, node.start.get(name))


def plain():
    node = Node()
    check(field(node, "shards") == len(os.sched_getaffinity(0)), node.start)
    node.end()
    return "serves, healthy, drains on SIGTERM"


def forbidden():
    node = Node(forbid_unshare=True)
    check(any("unshare(2) is forbidden" in line for line in node.lines), node.lines)
    node.end()
    return "serves where unshare(2) is forbidden"


def limited():
    """With a limit of memory and half a core."""
    # The process id is the namespace's own, 1 most often.
    name = f"roost-test-{time.time_ns()}"
    node = None
    limit = 512 << 20
    v1 = "/sys/fs/cgroup/memory"
    if os.path.exists(f"{v1}/memory.limit_in_bytes"):
        files = [(f"{v1}/{name}", "memory.limit_in_bytes", limit),
                 (f"/sys/fs/cgroup/cpu/{name}", "cpu.cfs_quota_us", 50_000)]
    else:
        folder = f"/sys/fs/cgroup/{name}"
        files = [(folder, "memory.max", limit), (folder, "cpu.max", "50000 100000")]
    folders = sorted({folder for folder, _, _ in files})
    try:
        try:
            for folder in folders:
                os.mkdir(folder)
            for folder, file, value in files:
                with open(f"{folder}/{file}", "w") as opened:
                    opened.write(str(value))
        except OSError as fault:
            return f"LEFT OUT: limits of a cgroup: {fault}"
        node = Node(cgroups=folders)
        check(field(node, "memory_limit_bytes") == limit // 100 * 80, node.start)
        check(field(node, "shards") == 1, node.start)
        node.end()
        return "80 % of the cgroup's memory, and as many shards as it grants cores"
    finally:
        if node and node.process.poll() is None:
            node.process.kill()
            node.process.wait()
        for folder in folders:
            if os.path.isdir(folder):
                os.rmdir(folder)


def name_server():
    """A server for names, which are listed when they are looked up: redis.example.test is 127.0.0.1."""
    asked = []
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))

    def answer():
        while True:
            question, peer = server.recvfrom(512)
            end = question.index(b"\0", 12)
            name, kind = question[12:end], question[end + 1:end + 3]
            asked.append(name)
            is_known = kind == b"\0\1" and b"redis" in name
            head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_known else b"\0\0") + b"\0\0\0\0"
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if is_known else b""
            server.sendto(head + question[12:end + 5] + record, peer)

    threading.Thread(target=answer, daemon=True).start()
    return asked


def resolver():
    """That of a static program needs no file of the image: without nsswitch.conf, and with one that
    names modules which are not there."""
    for sources in [None, "files dns", "files mdns4_minimal [NOTFOUND=return] resolve [!UNAVAIL=return] dns"]:
        path = f"{ROOT}/etc/nsswitch.conf"
        if os.path.exists(path):
            os.remove(path)
        if sources:
            with open(path, "w") as file:
                file.write(f"hosts: {sources}\n")
        for name, right in [("redis.example.test", "127.0.0.1\n"), ("nobody.example.test", None)]:
            done = subprocess.run(["/resolve", name], env={}, capture_output=True, text=True, preexec_fn=enter)
            check((done.stdout == right) if right else done.returncode == 1, f"{sources}: {name}: {done}")
    return "a static program resolves names over DNS"


def broker():
    """The node looks the name of its broker up."""
    redis = subprocess.Popen(["redis-server", "--port", "6379", "--bind", "127.0.0.1", "--save", ""],
                             stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", 6379)).close()
                break
            except OSError:
                time.sleep(0.1)
        node = Node({"ROOST_ENGINE_TYPE": "redis", "ROOST_ENGINE_REDIS_ADDRESS": "redis://redis.example.test:6379"})
        check(any(b"redis" in name for name in asked), asked)
        node.end()
    finally:
        redis.kill()
    return "the node finds its broker by name"


run("mount", "--make-rprivate", "/")
run("ip", "link", "set", "lo", "up")
for folder, command in [("proc", ["mount", "-t", "proc", "proc"]), ("sys", ["mount", "--rbind", "/sys"]),
                        ("dev", ["mount", "--rbind", "/dev"])]:
    os.makedirs(f"{ROOT}/{folder}", exist_ok=True)
    run(*command, f"{ROOT}/{folder}")
with open(f"{ROOT}/etc/resolv.conf", "w") as file:
    file.write("nameserver 127.0.0.1\n")
asked = name_server()
for scenario in [resolver, plain, forbidden, limited, broker]:
    print(f"  {scenario()}")
