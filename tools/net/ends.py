"""Programs that run inside a namespace of a path: `ends.py NAME ARGUMENT...`. The last line of each is JSON."""

import concurrent.futures
import errno
import json
import socket
import struct
import sys
import time
import urllib.parse
import urllib.request

# Python's files of compiled modules would stay in the tree.
sys.dont_write_bytecode = True

from paths import BARE_PORT, CLIENT, KEY, MIB, PORT, SECRET, SERVER  # noqa: E402

from client import Client, token  # noqa: E402


def end_call(method, params):
    request = urllib.request.Request(f"http://127.0.0.1:8001/api/{method}", params.encode(),
                                     {"X-API-Key": KEY, "Content-Type": "application/json"})
    print(urllib.request.urlopen(request, timeout=30).read().decode())


def end_fill(channel, count, size):
    """Publications of a history, a batch a call."""
    data = "x" * int(size)
    for _ in range(int(count)):
        end_call("publish", json.dumps({"channel": channel, "data": data}))


def end_bare(size):
    """Bare TCP: each connection gets so many bytes for one."""
    listener = socket.create_server((SERVER, BARE_PORT))
    print("ready", flush=True)
    data = bytes(int(size))
    while True:
        connection, _ = listener.accept()
        connection.recv(1)
        connection.sendall(data)
        connection.close()


def read_for(connection, size):
    buffer, left = bytearray(MIB), size
    while left > 0:
        count = connection.recv_into(buffer)
        if not count:
            raise ConnectionError(f"{left} bytes are missing")
        left -= count


def end_get(size):
    """Seconds that so many bytes of a bare stream take, from the request on."""
    connection = socket.create_connection((SERVER, BARE_PORT), timeout=120)
    began = time.monotonic()
    connection.sendall(b"x")
    read_for(connection, int(size))
    print(json.dumps(time.monotonic() - began))


def end_recover(channel, epoch, size):
    """Seconds that a recovery takes, from the command to its last byte."""
    client = Client(SERVER, PORT, SECRET, "u", 120)
    began = time.monotonic()
    client.send([{"subscribe": {"channel": channel, "recover": True, "offset": 0, "epoch": epoch}}])
    read_for(client.socket, int(size))
    print(json.dumps(time.monotonic() - began))


def end_told(count):
    """Clients that stay until the node ends them: how many were told by a close frame, and how many just cut."""
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        clients = list(pool.map(lambda number: Client(SERVER, PORT, SECRET, f"u{number}", 120), range(int(count))))
    print("ready", flush=True)
    told = 0
    for client in clients:
        try:
            client.read_until(lambda line: False)
        except ConnectionError as end:
            told += "closed by the node" in str(end)
    print(json.dumps([told, len(clients) - told]))


def end_stay(kind):
    """One client that stays, and says when it is connected and pinged."""
    if kind == "websocket":
        client = Client(SERVER, PORT, SECRET, "u", None)
        print("ready", flush=True)
        while data := client.socket.recv(MIB):
            if data.endswith(b"{}"):
                client.send_frame(b"{}")
                print("ping", flush=True)
        return
    command = urllib.parse.quote(json.dumps({"token": token(SECRET, "u")}))
    stream = urllib.request.urlopen(f"http://{SERVER}:{PORT}/connection/uni_sse?cf_connect={command}")
    print("ready", flush=True)
    for line in stream:
        print("ping" if line.strip() == b"data: {}" else line, flush=True)


def end_sink():
    """Reads all that one connection sends."""
    listener = socket.create_server((CLIENT, BARE_PORT))
    print("ready", flush=True)
    connection, _ = listener.accept()
    buffer = bytearray(MIB)
    while connection.recv_into(buffer):
        pass
    print("{}")


def end_zerocopy(size, flag):
    """Microseconds of CPU for a kilobyte that is sent, in sends of so many bytes, and the share of zero-copy sends of
    which the kernel says that it has copied them. Its constants are of linux/socket.h and linux/errqueue.h."""
    msg_zerocopy, msg_errqueue, so_zerocopy, copied_code = 0x4000000, 0x2000, 60, 1
    flag = msg_zerocopy if flag == "zerocopy" else 0
    # With a timeout Python would wait for data, which never come, before it looks for completions.
    connection = socket.create_connection((CLIENT, BARE_PORT))
    connection.setsockopt(socket.SOL_SOCKET, so_zerocopy, 1)
    data, total = memoryview(bytes(int(size))), 512 * MIB
    done = copied = sent = sends = 0

    def completions():
        nonlocal done, copied
        try:
            while True:
                _, ancillary, _, _ = connection.recvmsg(1, 512, msg_errqueue | socket.MSG_DONTWAIT)
                for _, _, error in ancillary:
                    _, _, _, code, _, first, last = struct.unpack("=IBBBBII", error[:16])
                    done += last - first + 1
                    copied += (last - first + 1) * (code == copied_code)
        except BlockingIOError:
            pass

    began = time.process_time()
    while sent < total:
        try:
            sent += connection.send(data, flag)
            sends += 1
        except OSError as full:
            # Pages of sends that are not complete count against a limit (net.core.optmem_max).
            if full.errno != errno.ENOBUFS:
                raise
        if flag and sends % 16 == 0:
            completions()
    while flag and done < sends:
        completions()
    took = time.process_time() - began
    print(json.dumps([took * 1e6 / (sent / 1000), copied / max(done, 1)]))


def end_slow(clients, messages, size):
    """Clients that subscribe and then read nothing, while so many messages are published."""
    clients = [Client(SERVER, PORT, SECRET, f"u{number}", 120) for number in range(int(clients))]
    for client in clients:
        client.send([{"subscribe": {"channel": "slow"}}])
        client.read_until(lambda line: b'"subscribe"' in line)
        # Otherwise the kernel of the clients takes megabytes for each, and the node keeps nothing.
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    print(json.dumps(len(clients)), flush=True)
    # Until the other end says that it has measured.
    sys.stdin.read()


if __name__ == "__main__":
    globals()[f"end_{sys.argv[1]}"](*sys.argv[2:])
