"""What these tests share: certificates, a roost that listens with TLS, and programs that talk to it."""

import os
import pathlib
import queue
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import unittest

PROGRAM = os.environ.get("PROGRAM", "target/release/roost")
# Nothing that is awaited takes longer.
WAIT = 20.0
KEY = "a key of the server API"


def openssl(*arguments, **options):
    """Runs OpenSSL's command and returns what it has said."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60, **options)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return done.stdout


class Authority:
    """Makes certificates in a folder, all signed by one authority."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.file = self.folder / "authority.pem"
        self.key = self.folder / "authority.key"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-days", "2", "-subj", "/CN=authority", "-keyout", self.key, "-out", self.file)

    def sign(self, name, names, kind="ec", days=2, subject=None):
        """A certificate `name`.pem with its key `name`.key, for these hosts."""
        key, request, out = (self.folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
        made = {"ec": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "rsa": ["rsa:2048"]}[kind]
        openssl("req", "-newkey", *made, "-nodes", "-subj", subject or f"/CN={name}", "-keyout", key,
                "-out", request)
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("basicConstraints=CA:FALSE\n" + (
            f"subjectAltName={','.join(names)}\n" if names else ""))
        openssl("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self.key, "-days", str(days),
                "-CAcreateserial", "-out", out, "-extfile", extensions)
        return out, key


class Roost:
    """A node under test. Standard error is kept as lines."""

    def __init__(self, config, flags=(), port=0):
        self.folder = tempfile.mkdtemp(prefix="roost-secure-")
        self.file = pathlib.Path(self.folder) / "roost.toml"
        self.file.write_text(config)
        clean = {k: v for k, v in os.environ.items() if not re.match("ROOST_(?!IO$)|CENTRIFUGO_", k)}
        self.process = subprocess.Popen(
            [PROGRAM, "serve", "-c", self.file, "-a", "127.0.0.1", "-p", str(port), "--shards", "2", *flags],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=clean)
        self.lines, self.news = [], queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        found = self.until_logged(r"listening on 127\.0\.0\.1:(\d+)")
        self.port = int(found.group(1))

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            self.news.put(None)
        self.news.put(None)

    def until_logged(self, pattern, since=0):
        """Waits until a line of standard error has this pattern."""
        deadline = time.monotonic() + WAIT
        at = since
        while True:
            while at < len(self.lines):
                found = re.search(pattern, self.lines[at])
                if found:
                    return found
                at += 1
            left = deadline - time.monotonic()
            if left <= 0 or self.process.poll() is not None:
                raise AssertionError(f"never logged {pattern!r}:\n" + "\n".join(self.lines))
            try:
                self.news.get(timeout=min(left, 1))
            except queue.Empty:
                pass

    def reload(self, pattern):
        since = len(self.lines)
        self.process.send_signal(signal.SIGHUP)
        return self.until_logged(pattern, since)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(WAIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        return code


class Case(unittest.TestCase):
    """Tests with a node of their class, `config` filled in with the folder of its certificates."""

    config = None
    flags = ()

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="roost-certificates-")
        cls.authority = Authority(cls.folder.name)
        cls.certificates()
        cls.roost = Roost(cls.config.replace("FOLDER", cls.folder.name), cls.flags)

    @classmethod
    def certificates(cls):
        cls.authority.sign("server", ["DNS:localhost", "IP:127.0.0.1"])

    @classmethod
    def tearDownClass(cls):
        code = cls.roost.stop()
        cls.folder.cleanup()
        assert code == 0, f"the node ended with {code}:\n" + "\n".join(cls.roost.lines)

    def context(self, **changes):
        """Settings of Python's ssl that trust the authority."""
        context = ssl.create_default_context(cafile=str(self.authority.file))
        for name, value in changes.items():
            setattr(context, name, value)
        return context

    def connect(self, context=None, name="localhost", port=None):
        raw = socket.create_connection(("127.0.0.1", port or self.roost.port), timeout=WAIT)
        return (context or self.context()).wrap_socket(raw, server_hostname=name)

    def get(self, stream, path="/health", host="localhost"):
        """One request over a kept connection: status and body of its answer."""
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return read_answer(stream)

    def s_client(self, *arguments, send="", name="localhost", port=None, seconds=WAIT):
        """All that `openssl s_client` says. `send`: texts with pauses between them, as a person types."""
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port or self.roost.port}",
                   "-servername", name, "-CAfile", str(self.authority.file), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        said = bytearray()
        arrived = threading.Condition()

        def read():
            while chunk := process.stdout.read1(65536):
                with arrived:
                    said.extend(chunk)
                    arrived.notify_all()
            with arrived:
                said.extend(b"\n<the end>")
                arrived.notify_all()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        texts = [send] if isinstance(send, str) else send
        try:
            for step in texts:
                text, wanted = step if isinstance(step, tuple) else (step, None)
                with arrived:
                    before = len(said)
                if text:
                    try:
                        process.stdin.write(text.encode())
                        process.stdin.flush()
                    except BrokenPipeError:
                        break
                with arrived:
                    if wanted and not arrived.wait_for(
                            lambda: wanted.encode() in said[before:] or said.endswith(b"<the end>"), seconds):
                        raise AssertionError(f"waited for {wanted!r}: {said.decode(errors='replace')}")
            process.stdin.close()
            process.wait(seconds)
        finally:
            process.kill()
            process.wait()
            thread.join(WAIT)
        return said.decode(errors="replace")


def read_answer(stream):
    data = b""
    while b"\r\n\r\n" not in data:
        part = stream.recv(65536)
        if not part:
            raise ConnectionError(f"ended behind {data!r}")
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", head).group(1))
    while len(body) < length:
        part = stream.recv(65536)
        if not part:
            raise ConnectionError(f"ended in the body: {len(body)} of {length} bytes")
        body += part
    return int(head.split()[1]), body.decode()
