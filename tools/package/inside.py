#!/usr/bin/env python3
"""Small clients that run beside an installed node, in the system of a test.

  health                 status and body of /health at the internal port
  api KEY                status of a call of the server API
  metric NAME            value of a metric
  through COMMAND        connects again and again while a command runs; counts connected and refused clients
  stop-shard PID SECONDS a thread of a shard stands still for so long"""

import base64
import ctypes
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207


def get(path, method="GET", headers={}, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", 8001, timeout=10)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def connect():
    """A client: None when it is connected, else why not."""
    try:
        with socket.create_connection(("127.0.0.1", 8000), timeout=30) as client:
            key = base64.b64encode(os.urandom(16)).decode()
            head = ["GET /connection/websocket HTTP/1.1", "Host: localhost", "Upgrade: websocket",
                    "Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", "", ""]
            client.sendall("\r\n".join(head).encode())
            first = client.recv(4096).split(b"\r\n")[0].decode()
            return None if " 101 " in first else first or "closed"
    except OSError as fault:
        return str(fault)


def through(command):
    results, done = [], threading.Event()

    def keep_connecting():
        while not done.is_set():
            results.append(connect())
            time.sleep(0.01)

    threads = [threading.Thread(target=keep_connecting) for _ in range(4)]
    [thread.start() for thread in threads]
    while len(results) < 10:
        time.sleep(0.01)
    subprocess.run(command, shell=True, check=True)
    enough = len(results) + 20
    while len(results) < enough:
        time.sleep(0.01)
    done.set()
    [thread.join() for thread in threads]
    why = [result for result in results if result]
    print(json.dumps({"connected": len(results) - len(why), "refused": len(why), "why": why[:5]}))


def stop_shard(pid, seconds):
    tasks = f"/proc/{pid}/task"
    task = next(task for task in os.listdir(tasks) if open(f"{tasks}/{task}/comm").read().strip() == "shard-0")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    for request in [PTRACE_SEIZE, PTRACE_INTERRUPT]:
        if libc.ptrace(request, int(task), 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")
    # Its end lets the thread go on, where the process is still there.
    time.sleep(float(seconds))


name, arguments = sys.argv[1], sys.argv[2:]
if name == "health":
    print(*get("/health"))
elif name == "api":
    print(get("/api/info", "POST", {"X-API-Key": arguments[0], "Content-Type": "application/json"}, "{}")[0])
elif name == "metric":
    lines = [line.split() for line in get("/metrics")[1].splitlines() if line.startswith(arguments[0])]
    print(int(sum(float(line[-1]) for line in lines)))
elif name == "through":
    through(arguments[0])
else:
    stop_shard(*arguments)
