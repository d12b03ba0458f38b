"""A client of a node as small as its use here: many subscriptions over one WebSocket, read in blocks."""

import base64
import hashlib
import hmac
import json
import os
import socket
import struct
import time

# Commands of one frame, below the node's limit for a message.
FRAME_BYTES_MAX = 60_000


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def token(secret, user):
    """A JWT, HS256."""
    head = base64url(b'{"alg":"HS256","typ":"JWT"}')
    body = head + b"." + base64url(json.dumps({"sub": user}).encode())
    return (body + b"." + base64url(hmac.new(secret.encode(), body, hashlib.sha256).digest())).decode()


class Client:
    """One connection."""

    def __init__(self, host, port, secret, user, seconds=60):
        self.socket = socket.create_connection((host, port), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /connection/websocket HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            if not byte:
                raise ConnectionError("the node ended the connection")
            head += byte
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError(head.decode(errors="replace"))
        self.buffer = b""
        self.last_id = 0
        self.send([{"connect": {"token": token(secret, user)}}])
        self.read_until(lambda line: b'"connect"' in line)

    def send(self, commands):
        """Sends commands, many in a frame."""
        lines, size = [], 0
        for command in commands:
            self.last_id += 1
            line = json.dumps({"id": self.last_id, **command}, separators=(",", ":")).encode()
            if size + len(line) > FRAME_BYTES_MAX:
                self.send_frame(b"\n".join(lines))
                lines, size = [], 0
            lines.append(line)
            size += len(line) + 1
        if lines:
            self.send_frame(b"\n".join(lines))

    def send_frame(self, text):
        # A mask of zeros leaves the text as it is.
        if len(text) < 126:
            head = struct.pack("!BB", 0x81, 0x80 | len(text))
        elif len(text) < 65536:
            head = struct.pack("!BBH", 0x81, 0x80 | 126, len(text))
        else:
            head = struct.pack("!BBQ", 0x81, 0x80 | 127, len(text))
        self.socket.sendall(head + bytes(4) + text)

    def frames(self):
        """Payloads of text frames, as they come; pings of the protocol are answered."""
        while True:
            while True:
                frame = self._frame()
                if frame is None:
                    break
                if frame == b"{}":
                    self.send_frame(b"{}")
                else:
                    yield frame
            data = self.socket.recv(1 << 18)
            if not data:
                raise ConnectionError("the node ended the connection")
            self.buffer += data

    def _frame(self):
        buffer = self.buffer
        if len(buffer) < 2:
            return None
        size, at = buffer[1] & 127, 2
        if size == 126:
            if len(buffer) < 4:
                return None
            size, at = struct.unpack_from("!H", buffer, 2)[0], 4
        elif size == 127:
            if len(buffer) < 10:
                return None
            size, at = struct.unpack_from("!Q", buffer, 2)[0], 10
        if len(buffer) < at + size:
            return None
        self.buffer = buffer[at + size:]
        if buffer[0] & 15 == 8:
            raise ConnectionError(f"closed by the node: {buffer[at:at + size]!r}")
        return buffer[at:at + size]

    def lines(self):
        """Replies and pushes, as they come."""
        for frame in self.frames():
            yield from frame.split(b"\n")

    def read_until(self, check):
        """The first line that passes the check."""
        for line in self.lines():
            if b'"error"' in line:
                raise ConnectionError(line.decode())
            if check(line):
                return line
        return None

    def subscribe(self, channels):
        """Subscribes to channels and waits for the replies; what fails for a while is tried again."""
        some = 500
        left = list(channels)
        while left:
            now, left = left[:some], left[some:]
            first = self.last_id + 1
            self.send({"subscribe": {"channel": channel}} for channel in now)
            answered = 0
            for line in self.lines():
                if b'"error"' in line:
                    if b'"temporary":true' not in line:
                        raise ConnectionError(line.decode())
                    left.append(now[json.loads(line)["id"] - first])
                    answered += 1
                answered += b'"subscribe"' in line
                if answered == len(now):
                    break

    def count(self, mark, number, seconds, seen_by=lambda seen: None):
        """Reads until a mark was seen so often; the time of the last, on time.perf_counter."""
        self.socket.settimeout(seconds)
        seen = self.buffer.count(mark)
        tail = self.buffer[-len(mark):]
        self.buffer = b""
        while seen < number:
            data = self.socket.recv(1 << 18)
            if not data:
                raise ConnectionError(f"the node ended the connection after {seen} of {number}")
            seen += (tail + data).count(mark)
            seen_by(seen)
            # A mark that is cut by the end of a read is in the next one; a whole one must not count again.
            tail = data[-(len(mark) - 1):]
        return time.perf_counter()

    def close(self):
        self.socket.close()
