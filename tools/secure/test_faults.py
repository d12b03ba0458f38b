"""What no client should send, and clients that stop in the middle: each ends, and others go on."""

import contextlib
import re
import secrets
import socket
import ssl
import struct
import time

from tlslite.api import HandshakeSettings, TLSConnection
from tlslite.constants import ContentType
from tlslite.errors import TLSError, TLSRemoteAlert
from tlslite.messages import Message

from harness import WAIT, Case
from test_clients import REQUEST, Node


def hello():
    """The bytes of a whole ClientHello."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


class Bytes(Node):
    """Bytes in place of a hello."""

    def answer(self, data, half_close=False):
        """All that comes back until the node ends the connection."""
        raw = socket.create_connection(("127.0.0.1", self.roost.port), timeout=WAIT)
        try:
            raw.sendall(data)
            if half_close:
                raw.shutdown(socket.SHUT_WR)
            got = b""
            while part := raw.recv(65536):
                got += part
            return got
        except ConnectionResetError:
            return b""
        finally:
            raw.close()

    def alive(self):
        self.assertEqual(self.get(self.connect()), (200, "{}"))

    def test_plain_text_is_answered_as_such(self):
        for text in (REQUEST, "POST /api/publish HTTP/1.1\r\nHost: a\r\n\r\n", "hello\r\n"):
            got = self.answer(text.encode())
            self.assertTrue(got.startswith((b"\x15\x03", b"HTTP/1.1 400")), got)
        self.alive()

    def test_other_bytes_end_the_connection(self):
        long_record = b"\x16\x03\x01\xff\xff" + b"x" * 1000
        other_type = b"\x17\x03\x03\x00\x05hello"
        empty = b"\x16\x03\x01\x00\x00" * 100
        endless = b"".join(b"\x16\x03\x01\x40\x00" + body for body in (
            [b"\x01\xff\xff\xff" + bytes(0x4000 - 4)] + [bytes(0x4000)] * 6))
        for data in (secrets.token_bytes(3000), long_record, other_type, empty, endless, b"\x80\x2e\x01\x03\x01"):
            got = self.answer(data, half_close=True)
            self.assertTrue(got == b"" or got.startswith((b"\x15\x03", b"HTTP/1.1 400")), got)
        self.alive()

    def test_a_hello_that_stops_is_not_awaited_for_long(self):
        # roost.handshake_timeout is two seconds here.
        for begin in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
            since = time.monotonic()
            self.answer(begin)
            self.assertLess(time.monotonic() - since, WAIT)
        self.alive()

    def test_a_hello_that_comes_slowly_ends_with_its_time(self):
        raw = socket.create_connection(("127.0.0.1", self.roost.port), timeout=WAIT)
        begin = time.monotonic()
        # Bytes that keep coming don't prolong it.
        with self.assertRaises(OSError), raw:
            for byte in hello()[:-1]:
                raw.sendall(bytes([byte]))
                time.sleep(0.05)
                self.assertLess(time.monotonic() - begin, WAIT)
        self.alive()

    def test_a_client_that_says_nothing_behind_the_nodes_hello_is_not_awaited(self):
        # The node's messages, and then the end.
        got = self.answer(hello())
        self.assertEqual(got[:1], b"\x16")
        self.alive()


class Flood(Case):
    """More handshakes than the node keeps under way."""

    config = """
[http_server.tls]
enabled = true
cert_pem = "FOLDER/server.pem"
key_pem = "FOLDER/server.key"
[health]
enabled = true
[prometheus]
enabled = true
[roost]
handshake_timeout = "10m"
tls_handshakes_max = 32
"""

    def test_the_oldest_make_room_and_clients_get_in(self):
        count, first = 200, hello()
        with contextlib.ExitStack() as stack:
            flood = []
            for _ in range(count):
                raw = socket.create_connection(("127.0.0.1", self.roost.port), timeout=WAIT)
                flood.append(stack.enter_context(raw))
                raw.sendall(first)
                self.assertEqual(raw.recv(1), b"\x16")
            # Each shard has half of the bound; the kernel deals connections out to them.
            ended = [raw for raw in flood if self.ends(raw)]
            self.assertGreaterEqual(len(ended), count - 32)
            self.assertLess(len(ended), count)
            stream = self.connect()
            self.assertEqual(self.get(stream), (200, "{}"))
            metrics = self.get(stream, "/metrics")[1]
            crowded = re.search(r'roost_tls_handshakes_failed_total\{[^}]*"crowded"[^}]*\} (\d+)', metrics)
            # The client made room for itself.
            self.assertIn(int(crowded[1]) - len(ended), (0, 1))

    def ends(self, raw):
        """Whether the node has ended this one: its messages, then the end."""
        raw.settimeout(0.3)
        try:
            while raw.recv(65536):
                pass
            return True
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True


class Stack(Node):
    """A TLS stack that can be bent."""

    def shaken(self, **changes):
        settings = HandshakeSettings()
        for name, value in changes.items():
            setattr(settings, name, value)
        raw = socket.create_connection(("127.0.0.1", self.roost.port), timeout=WAIT)
        tls = TLSConnection(raw)
        tls.handshakeClientCert(settings=settings, serverName="localhost")
        tls.closeSocket = True
        return tls

    def ends(self, tls):
        """What the node says to it: the description of its alert."""
        try:
            while tls.read(max=1, min=1):
                pass
            return None
        except TLSRemoteAlert as alert:
            return alert.description
        except (TLSError, OSError):
            return None

    def request(self, tls):
        tls.write(REQUEST.encode())
        got = b""
        while b"{}" not in got:
            got += tls.read(max=4096, min=1)
        return got

    def test_both_versions_and_each_group(self):
        for version in ((3, 3), (3, 4)):
            for group in ("x25519", "secp256r1"):
                tls = self.shaken(minVersion=version, maxVersion=version, eccCurves=[group, "secp256r1"],
                                  keyShares=[group] if version == (3, 4) else [])
                self.assertIn(b"HTTP/1.1 200", self.request(tls))
                tls.close()

    def send(self, tls, kind, data):
        for result in tls._sendMsg(Message(kind, bytearray(data)), randomizeFirstBlock=False):
            if result in (0, 1):
                continue
            break

    def test_records_that_no_client_sends(self):
        faults = {
            "a hello behind the handshake": (ContentType.handshake, b"\x01\x00\x00\x00"),
            "a message of no type": (ContentType.handshake, b"\xff\x00\x00\x00"),
            "a key update of 2": (ContentType.handshake, b"\x18\x00\x00\x01\x02"),
            "an alert of one byte": (ContentType.alert, b"\x02"),
            "a record of no type": (99, b"x"),
            "a fatal alert": (ContentType.alert, b"\x02\x28"),
        }
        for name, (kind, data) in faults.items():
            with self.subTest(name=name):
                tls = self.shaken(minVersion=(3, 4))
                self.assertIn(b"HTTP/1.1 200", self.request(tls))
                self.send(tls, kind, data)
                self.ends(tls)
                self.assertEqual(self.get(self.connect()), (200, "{}"))

    def test_many_key_updates_without_data_end_the_connection(self):
        tls = self.shaken(minVersion=(3, 4))
        self.request(tls)
        update = b"\x18\x00\x00\x01\x00"
        try:
            for _ in range(40):
                self.send(tls, ContentType.handshake, update)
                tls.session.cl_app_secret, tls.session.sr_app_secret = \
                    tls._recordLayer.calcTLS1_3KeyUpdate_sender(
                        tls.session.cipherSuite, tls.session.cl_app_secret, tls.session.sr_app_secret)
        except OSError:
            pass
        # unexpected_message, unless its bytes were lost in the reset that follows it.
        self.assertIn(self.ends(tls), (10, None))
        self.assertEqual(self.get(self.connect()), (200, "{}"))

    def test_a_changed_record_is_a_bad_mac(self):
        for version in ((3, 3), (3, 4)):
            tls = self.shaken(minVersion=version, maxVersion=version)
            self.request(tls)
            tls.sock.socket.sendall(b"\x17\x03\x03" + struct.pack(">H", 40) + secrets.token_bytes(40))
            self.assertEqual(self.ends(tls), 20, "bad_record_mac")
