"""Programs of others as clients of a node that listens with TLS."""

import base64
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import ssl
import struct
import subprocess
import unittest

from harness import KEY, PROGRAM, WAIT, Authority, Case, Roost, openssl, read_answer

CONFIG = f"""
[http_server.tls]
enabled = true
cert_pem = "FOLDER/server.pem"
key_pem = "FOLDER/server.key"

[[roost.tls]]
name = "rsa.example"
cert_pem = "FOLDER/rsa.pem"
key_pem = "FOLDER/rsa.key"

[[roost.tls]]
name = "*.wild.example"
cert_pem = "FOLDER/wild.pem"
key_pem = "FOLDER/wild.key"

[client]
allow_anonymous_connect_without_token = true
allowed_origins = ["*"]

[http_api]
key = "{KEY}"

[health]
enabled = true

[prometheus]
enabled = true

[roost]
echo = true
handshake_timeout = "2s"
"""

SUITES_13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
SUITES_12 = tuple(f"ECDHE-{kind}-{aead}" for kind in ("ECDSA", "RSA") for aead in (
    "AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"))
REQUEST = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Node(Case):
    config = CONFIG

    @classmethod
    def certificates(cls):
        super().certificates()
        cls.authority.sign("rsa", ["DNS:rsa.example"], kind="rsa")
        cls.authority.sign("wild", ["DNS:*.wild.example"])


class OpenSSL(Node):
    """`openssl s_client`: what it negotiates, and how it is answered behind that."""

    def host_of(self, suite):
        return "rsa.example" if "-RSA-" in suite else "localhost"

    def test_each_suite_carries_a_request(self):
        for version, suites in (("-tls1_3", SUITES_13), ("-tls1_2", SUITES_12)):
            for suite in suites:
                choice = "-ciphersuites" if version == "-tls1_3" else "-cipher"
                with self.subTest(suite=suite):
                    said = self.s_client(version, choice, suite, name=self.host_of(suite),
                                         send=[(REQUEST, "HTTP/1.1 200")])
                    self.assertIn(f"Cipher is {suite}", said)
                    self.assertIn("Verify return code: 0 (ok)", said)

    def test_the_nodes_order_of_suites_counts(self):
        said = self.s_client("-tls1_3", send="")
        self.assertIn("Cipher is TLS_AES_128_GCM_SHA256", said)
        said = self.s_client("-tls1_2", send="")
        self.assertIn("Cipher is ECDHE-ECDSA-AES128-GCM-SHA256", said)

    def test_padding_key_updates_and_splits(self):
        for extra in (("-record_padding", "512"), ("-no_middlebox",), ("-max_send_frag", "512"), ()):
            with self.subTest(extra=extra):
                long = f"GET /health?{'x' * 3000} HTTP/1.1\r\nHost: localhost\r\n\r\n"
                said = self.s_client("-tls1_3", *extra, send=[
                    (REQUEST, "HTTP/1.1 200"), ("k\n", "KEYUPDATE"), (REQUEST, "HTTP/1.1 200"),
                    ("K\n", "KEYUPDATE"), (long, "HTTP/1.1 200"), ("K\nk\n", "KEYUPDATE"),
                    (REQUEST, "HTTP/1.1 200")])
                self.assertEqual(said.count("HTTP/1.1 200"), 4, said)

    def test_a_share_of_another_group_is_retried(self):
        said = self.s_client("-tls1_3", "-groups", "P-384:P-256", "-msg",
                             send=[(REQUEST, "HTTP/1.1 200")])
        self.assertEqual(said.count("ClientHello"), 2)
        for group in ("X25519", "P-256"):
            said = self.s_client("-tls1_3", "-groups", group, send=[(REQUEST, "HTTP/1.1 200")])
            self.assertIn("HTTP/1.1 200", said)
        self.assertIn("handshake failure", self.s_client("-tls1_3", "-groups", "P-521", send=""))

    def test_sessions_resume_without_early_data(self):
        for version in ("-tls1_3", "-tls1_2"):
            with self.subTest(version=version):
                file = pathlib.Path(self.folder.name) / f"session{version}"
                first = self.s_client(version, "-sess_out", str(file), send=[(REQUEST, "HTTP/1.1 200")])
                self.assertIn("New, TLSv1", first)
                again = self.s_client(version, "-sess_in", str(file), send=[(REQUEST, "HTTP/1.1 200")])
                self.assertIn("Reused, TLSv1", again)
                if version == "-tls1_3":
                    self.assertIn("Max Early Data: 0", again)

    def test_protocols(self):
        self.assertIn("ALPN protocol: http/1.1", self.s_client("-alpn", "h2,http/1.1", send=""))
        self.assertIn("no application protocol", self.s_client("-alpn", "h2", send=""))
        self.assertIn("No ALPN negotiated", self.s_client(send=""))

    def test_older_versions_and_weak_suites_are_refused(self):
        for version in ("-tls1_1", "-tls1"):
            said = self.s_client(version, "-cipher", "ALL:@SECLEVEL=0", send="")
            self.assertRegex(said, "alert (protocol version|handshake failure)")
        for suite in ("ECDHE-ECDSA-AES128-SHA256", "AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256",
                      "ECDHE-RSA-AES128-SHA"):
            said = self.s_client("-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0", name="rsa.example", send="")
            self.assertIn("handshake failure", said, suite)

    def test_renegotiation_is_refused(self):
        said = self.s_client("-tls1_2", send=[(REQUEST, "HTTP/1.1 200"), ("R\n", "<the end>")])
        self.assertRegex(said, "no renegotiation|unexpected_message|unexpected message|alert number")
        # The handshake of others isn't disturbed.
        self.assertIn("HTTP/1.1 200", self.s_client("-tls1_2", send=[(REQUEST, "HTTP/1.1 200")]))

    def test_the_certificate_is_that_of_the_name(self):
        for name, subject in (("localhost", "server"), ("rsa.example", "rsa"), ("a.wild.example", "wild"),
                              ("a.b.wild.example", "server"), ("nobody.example", "server")):
            self.assertRegex(self.s_client(name=name, send=""), f"subject=CN ?= ?{subject}\\b")


class Offered(Node):
    """All that the node offers, by trying everything."""

    def test_only_these_suites_of_openssl_are_accepted(self):
        names = openssl("ciphers", "-s", "-tls1_2", "ALL:COMPLEMENTOFALL:@SECLEVEL=0").strip().split(":")
        self.assertGreater(len(names), 50)
        accepted = set()
        for name in names:
            for host in ("localhost", "rsa.example"):
                said = self.s_client("-tls1_2", "-cipher", f"{name}:@SECLEVEL=0", name=host, send="")
                if f"Cipher is {name}" in said:
                    accepted.add(name)
        self.assertEqual(accepted, set(SUITES_12))

    @unittest.skipUnless(shutil.which("sslscan"), "there is no sslscan")
    def test_sslscan_finds_nothing_else(self):
        done = subprocess.run(["sslscan", "--no-colour", f"127.0.0.1:{self.roost.port}"],
                              capture_output=True, text=True, timeout=120)
        said = done.stdout
        for version in ("SSLv2", "SSLv3", "TLSv1.0", "TLSv1.1"):
            self.assertRegex(said, rf"{version}\s+disabled")
        for version in ("TLSv1.2", "TLSv1.3"):
            self.assertRegex(said, rf"{version}\s+enabled")
        self.assertIn("not vulnerable to heartbleed", said)
        self.assertNotRegex(said, "(?i)session renegotiation supported|compression enabled|insecure")
        for line in said.splitlines():
            if found := re.match(r"(Preferred|Accepted)\s+(TLSv1\.\d)\s+\d+ bits\s+(\S+)", line):
                suites = SUITES_13 if found[2] == "TLSv1.3" else SUITES_12
                self.assertIn(found[3], suites)


class Python(Node):
    """Python's ssl."""

    def test_both_versions_end_with_close_notify(self):
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            stream = self.connect(self.context(minimum_version=version, maximum_version=version))
            for _ in range(3):
                self.assertEqual(self.get(stream), (200, "{}"))
            self.assertEqual(stream.unwrap().recv(1), b"")

    def test_a_request_before_the_end_of_the_stream_is_answered(self):
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for with_notify in (True, False):
                with self.subTest(version=version, with_notify=with_notify):
                    context = self.context(minimum_version=version, maximum_version=version)
                    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
                    raw = socket.create_connection(("127.0.0.1", self.roost.port), timeout=WAIT)
                    while True:
                        try:
                            tls.do_handshake()
                            break
                        except ssl.SSLWantReadError:
                            raw.sendall(outgoing.read())
                            incoming.write(raw.recv(65536))
                    tls.write(REQUEST.encode())
                    if with_notify:
                        with self.assertRaises(ssl.SSLWantReadError):
                            tls.unwrap()
                    raw.sendall(outgoing.read())
                    raw.shutdown(socket.SHUT_WR)
                    while part := raw.recv(65536):
                        incoming.write(part)
                    incoming.write_eof()
                    self.assertIn(b"HTTP/1.1 200", tls.read(65536))
                    raw.close()

    def websocket(self, stream):
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        stream.sendall((f"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = stream.recv(1)
            self.assertTrue(part, head)
            head += part
        self.assertIn(b" 101 ", head.split(b"\r\n")[0])
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        self.assertIn(base64.b64encode(digest), head)

    def echo(self, stream, data, cuts):
        mask = b"\1\2\3\4"
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        frame = b"\x82\xfe" + struct.pack(">H", len(data)) + mask + masked
        for at in range(0, len(frame), cuts):
            stream.sendall(frame[at:at + cuts])
        wanted = len(data) + (2 if len(data) < 126 else 4)
        got = b""
        while len(got) < wanted:
            part = stream.recv(65536)
            self.assertTrue(part, "ended")
            got += part
        self.assertEqual(got[-len(data):], data)

    def test_a_websocket_echoes_whatever_the_records_are(self):
        stream = self.connect()
        self.websocket(stream)
        for bytes_, cuts in ((200, 1), (1000, 7), (16_000, 500), (60_000, 60_000)):
            self.echo(stream, secrets.token_bytes(bytes_), cuts)

    def test_a_hello_in_many_records_and_bytes(self):
        for piece, dribble in ((1, False), (50, False), (10_000, True)):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = self.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
            with self.assertRaises(ssl.SSLWantReadError):
                tls.do_handshake()
            record = outgoing.read()
            body = record[5:]
            parts = [body[at:at + piece] for at in range(0, len(body), piece)]
            hello = b"".join(b"\x16\x03\x01" + struct.pack(">H", len(part)) + part for part in parts)
            raw = socket.create_connection(("127.0.0.1", self.roost.port), timeout=WAIT)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(hello), 1 if dribble else len(hello)):
                raw.sendall(hello[at:at + 1] if dribble else hello)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    raw.sendall(outgoing.read())
                    got = raw.recv(65536)
                    self.assertTrue(got, "ended")
                    incoming.write(got)
            tls.write(REQUEST.encode())
            raw.sendall(outgoing.read())
            answer = b""
            while b"{}" not in answer:
                try:
                    answer += tls.read(65536)
                except ssl.SSLWantReadError:
                    incoming.write(raw.recv(65536))
            self.assertIn(b"HTTP/1.1 200", answer)
            raw.close()


class Others(Node):
    """curl and Node."""

    def test_curl(self):
        def curl(*arguments):
            return subprocess.run(["curl", "--silent", "--show-error", "--cacert", str(self.authority.file),
                                   *arguments], capture_output=True, text=True, timeout=60)

        at = f"https://localhost:{self.roost.port}"
        self.assertEqual(curl(f"{at}/health").stdout, "{}")
        for version in ("--tlsv1.2", "--tlsv1.3"):
            self.assertEqual(curl(version, "--tls-max", version[-3:], f"{at}/health").stdout, "{}")
        body = json.dumps({"channel": "c", "data": "x" * 60_000})
        done = curl("-H", f"X-API-Key: {KEY}", "--data-binary", body, f"{at}/api/publish")
        self.assertIn('"result"', done.stdout, done.stderr)
        self.assertIn("roost_tls_certificate_expiry_seconds", curl(f"{at}/metrics").stdout)
        refused = subprocess.run(["curl", "--silent", f"{at}/health"], timeout=60)
        self.assertEqual(refused.returncode, 60, "an unknown authority")
        plain = curl(f"http://localhost:{self.roost.port}/health")
        self.assertNotIn("{}", plain.stdout)

    def test_node(self):
        script = r"""
import https from 'node:https';
import { readFileSync } from 'node:fs';
const [, , port, file, key] = process.argv;
const agent = new https.Agent({ ca: readFileSync(file), keepAlive: true, maxSockets: 2 });
const call = (options, body) => new Promise((resolve, reject) => {
  const request = https.request({ host: 'localhost', port, agent, ...options }, (answer) => {
    let text = '';
    answer.on('data', (part) => (text += part)).on('end', () => resolve([answer.statusCode, text]));
  });
  request.on('error', reject);
  request.end(body);
});
for (let round = 0; round < 5; round += 1) {
  const data = 'x'.repeat(300_000);
  const [status, text] = await call(
    { path: '/api/publish', method: 'POST', headers: { 'X-API-Key': key } },
    JSON.stringify({ channel: 'c', data }));
  if (status !== 200 || !text.includes('"result"')) throw new Error(`${status} ${text}`);
}
const all = await Promise.all(Array.from({ length: 20 }, () => call({ path: '/metrics' })));
if (all.some(([status, text]) => status !== 200 || !text.includes('roost_uptime_seconds'))) throw new Error('metrics');
console.log('good');
process.exit(0);
"""
        file = pathlib.Path(self.folder.name) / "client.mjs"
        file.write_text(script)
        done = subprocess.run(["node", str(file), str(self.roost.port), str(self.authority.file), KEY],
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.stdout.strip(), "good", done.stderr)


class ClientCertificates(Case):
    config = f"""
[http_server.tls]
enabled = true
cert_pem = "FOLDER/server.pem"
key_pem = "FOLDER/server.key"
client_ca_pem = "FOLDER/authority.pem"
[health]
enabled = true
"""

    @classmethod
    def certificates(cls):
        super().certificates()
        cls.authority.sign("client", [], subject="/O=Acme/CN=client 1")

    def test_a_certificate_of_the_authority_is_needed(self):
        context = self.context()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = self.context(minimum_version=version, maximum_version=version)
            with self.assertRaises((ssl.SSLError, ConnectionError)):
                self.get(self.connect(context))
            context.load_cert_chain(f"{self.folder.name}/client.pem", f"{self.folder.name}/client.key")
            stream = self.connect(context)
            self.assertEqual(self.get(stream), (200, "{}"))
            # Each connection shows it again: a ticket would outlive a certificate that is revoked.
            stream = context.wrap_socket(
                socket.create_connection(("127.0.0.1", self.roost.port), timeout=WAIT),
                server_hostname="localhost", session=stream.session)
            self.assertEqual(self.get(stream), (200, "{}"))
            self.assertFalse(stream.session_reused)

    def test_another_authority_has_no_say(self):
        folder = pathlib.Path(self.folder.name) / "strange"
        folder.mkdir()
        certificate, key = Authority(folder).sign("client", [])
        context = self.context()
        context.load_cert_chain(certificate, key)
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            self.get(self.connect(context))


class Reload(Case):
    config = """
[http_server.tls]
enabled = true
cert_pem = "FOLDER/server.pem"
key_pem = "FOLDER/server.key"
[health]
enabled = true
"""

    def served(self):
        stream = self.connect()
        return hashlib.sha256(stream.getpeercert(binary_form=True)).hexdigest()

    def test_a_new_pair_is_served_and_connections_go_on(self):
        kept = self.connect()
        self.assertEqual(self.get(kept), (200, "{}"))
        first = self.served()
        key = pathlib.Path(self.folder.name) / "server.key"
        good = key.read_text()
        key.write_text("nonsense")
        self.roost.reload("TLS: what was read before stays in use")
        self.assertEqual(self.served(), first)
        self.assertIn("errors", self.get(self.connect())[1])
        key.write_text(good)
        self.authority.sign("server", ["DNS:localhost", "IP:127.0.0.1"])
        self.roost.reload("TLS: certificates and keys were read again")
        self.assertNotEqual(self.served(), first)
        self.assertEqual(self.get(kept), (200, "{}"))
        self.assertEqual(self.get(self.connect()), (200, "{}"))


class SharedTickets(unittest.TestCase):
    """Two nodes with one file of ticket keys."""

    def test_a_session_resumes_at_the_other_node(self):
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            authority = Authority(folder)
            authority.sign("server", ["DNS:localhost"])
            keys = pathlib.Path(folder) / "tickets"
            keys.write_text(base64.b64encode(secrets.token_bytes(32)).decode() + "\n")
            config = f"""
[http_server.tls]
enabled = true
cert_pem = "{folder}/server.pem"
key_pem = "{folder}/server.key"
[health]
enabled = true
[roost]
tls_ticket_keys = "{keys}"
"""
            nodes = [Roost(config), Roost(config)]
            try:
                context = ssl.create_default_context(cafile=str(authority.file))
                session = None
                for turn in range(6):
                    raw = socket.create_connection(("127.0.0.1", nodes[turn % 2].port), timeout=WAIT)
                    stream = context.wrap_socket(raw, server_hostname="localhost", session=session)
                    stream.sendall(REQUEST.encode())
                    self.assertEqual(read_answer(stream), (200, "{}"))
                    self.assertEqual(stream.session_reused, turn > 0)
                    session = stream.session
                    stream.close()
            finally:
                self.assertEqual([node.stop() for node in nodes], [0, 0])


class SelfSigned(unittest.TestCase):
    def test_a_node_without_files_prints_its_fingerprint(self):
        node = Roost("[health]\nenabled = true\n", ["--tls-self-signed"])
        try:
            found = node.until_logged(r"^((?:[0-9A-F]{2}:){31}[0-9A-F]{2})$").group(1)
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            raw = socket.create_connection(("127.0.0.1", node.port), timeout=WAIT)
            stream = context.wrap_socket(raw, server_hostname="localhost")
            digest = hashlib.sha256(stream.getpeercert(binary_form=True)).hexdigest()
            self.assertEqual(digest.upper(), found.replace(":", ""))
            stream.sendall(REQUEST.encode())
            self.assertEqual(read_answer(stream), (200, "{}"))
        finally:
            self.assertEqual(node.stop(), 0)
