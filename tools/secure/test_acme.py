"""Certificates from an ACME server: Pebble, with names that all lead to this machine."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import unittest
import urllib.request

from harness import WAIT, Authority, Roost, openssl

HOSTS = ["chat.example.com", "live.example.com"]

CONFIG = """
health.enabled = true
prometheus.enabled = true
[http_server.tls_autocert]
enabled = true
host_whitelist = {hosts}
cache_dir = "{cache}"
email = "operator@example.com"
{more}
[roost]
acme_directory = "https://localhost:{directory}/dir"
acme_ca_pem = "{authority}"
handshake_timeout = "2m"
"""


def free_ports(count):
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


class Pebble:
    """An ACME server whose validation connects to `http` and `tls`."""

    def __init__(self, folder, authority, http, tls):
        self.folder, self.authority = pathlib.Path(folder), authority
        certificate, key = authority.sign("acme", ["DNS:localhost", "IP:127.0.0.1"])
        self.directory, management, dns, other = free_ports(4)
        self.config = self.folder / "pebble.json"
        self.config.write_text(json.dumps({"pebble": {
            "listenAddress": f"127.0.0.1:{self.directory}",
            "managementListenAddress": f"127.0.0.1:{management}", "certificate": str(certificate),
            "privateKey": str(key), "httpPort": http, "tlsPort": tls, "ocspResponderURL": "",
            "externalAccountBindingRequired": False}}))
        self.dns = dns
        self.names = subprocess.Popen(
            ["pebble-challtestsrv", "-defaultIPv6", "", "-dns01", f"127.0.0.1:{dns}", "-http01", "",
             "-https01", "", "-tlsalpn01", "", "-management", f"127.0.0.1:{other}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.server = None
        self.start()

    def start(self):
        # A share of good nonces is refused, as servers may do at any time.
        env = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "5"}
        with open(self.folder / "pebble.log", "ab") as out:
            self.server = subprocess.Popen(
                ["pebble", "-strict", "-config", str(self.config), "-dnsserver", f"127.0.0.1:{self.dns}"],
                stdout=out, stderr=out, env=env)
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.directory), 1).close()
                return
            time.sleep(0.05)
        raise AssertionError("Pebble doesn't listen")

    def stop(self):
        for process in (self.server, self.names):
            if process and process.poll() is None:
                process.kill()
            if process:
                process.wait()


@unittest.skipUnless(shutil.which("pebble"), "there is no pebble: Debian has it")
class Acme(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="roost-acme-")
        self.addCleanup(self.folder.cleanup)
        self.authority = Authority(self.folder.name)
        self.cache = pathlib.Path(self.folder.name) / "cache"
        self.http, self.tls = free_ports(2)
        self.pebble = Pebble(self.folder.name, self.authority, self.http, self.tls)
        self.addCleanup(self.pebble.stop)

    def node(self, more="", port=None, hosts=None):
        roost = Roost(CONFIG.format(hosts=json.dumps(hosts or HOSTS), cache=self.cache, more=more,
                                    directory=self.pebble.directory, authority=self.authority.file),
                      port=port or 0)
        self.addCleanup(roost.stop)
        return roost

    def http_options(self):
        return f'http = true\nhttp_addr = "127.0.0.1:{self.http}"'

    def served(self, roost, name):
        """The certificate that a client of this name gets, as PEM; `None`: the handshake fails."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            raw = socket.create_connection(("127.0.0.1", roost.port), timeout=WAIT)
            with context.wrap_socket(raw, server_hostname=name) as stream:
                return ssl.DER_cert_to_PEM_cert(stream.getpeercert(True))
        except (ssl.SSLError, ConnectionError):
            return None

    def request(self, roost, path):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        url = f"https://127.0.0.1:{roost.port}{path}"
        return urllib.request.urlopen(url, context=context, timeout=WAIT).read().decode()

    def in_use(self, roost, host, since=0):
        roost.until_logged(rf"the certificate is in use.*{host}|{host}.*the certificate is in use", since)

    def assert_for(self, pem, host):
        text = subprocess.run(["openssl", "x509", "-noout", "-ext", "subjectAltName", "-issuer"], input=pem,
                              capture_output=True, text=True, check=True).stdout
        self.assertIn(f"DNS:{host}", text)
        self.assertIn("Pebble", text)

    def test_http_challenges_get_a_certificate_for_each_host(self):
        roost = self.node(self.http_options())
        for host in HOSTS:
            self.in_use(roost, host)
            self.assert_for(self.served(roost, host), host)
        # Those without a name get the first one's.
        self.assert_for(self.served(roost, None), HOSTS[0])
        self.assertIn('roost_tls_acme_attempts_total{outcome="obtained"} 2', self.request(roost, "/metrics"))
        self.assertEqual(self.cache.stat().st_mode & 0o777, 0o700)
        for file in self.cache.iterdir():
            self.assertEqual(file.stat().st_mode & 0o777, 0o600, file)
        self.assertEqual({file.name for file in self.cache.iterdir() if not file.name.endswith("+lock")},
                         {*HOSTS, "acme_account+key"})
        # Other requests go to https.
        raw = socket.create_connection(("127.0.0.1", self.http), timeout=WAIT)
        raw.sendall(b"GET /a?b HTTP/1.1\r\nHost: chat.example.com:80\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(4096), b"")).decode().lower()
        raw.close()
        self.assertIn("location: https://chat.example.com/a?b", answer)

    def test_a_restart_goes_on_with_the_cache_and_without_the_server(self):
        first = self.node(self.http_options(), hosts=HOSTS[:1])
        self.in_use(first, HOSTS[0])
        pem = self.served(first, HOSTS[0])
        self.assertEqual(first.stop(), 0)
        self.pebble.stop()
        second = self.node(self.http_options(), hosts=HOSTS[:1])
        self.assertEqual(self.served(second, HOSTS[0]), pem)

    def test_handshake_challenges_need_no_port_of_their_own(self):
        roost = self.node(port=self.tls, hosts=HOSTS[:1])
        self.in_use(roost, HOSTS[0])
        self.assert_for(self.served(roost, HOSTS[0]), HOSTS[0])

    def test_a_certificate_at_its_end_is_renewed_without_touching_connections(self):
        self.cache.mkdir(mode=0o700)
        self.old_certificate(HOSTS[0])
        old = (self.cache / HOSTS[0]).read_text()
        # Meanwhile the server is away: the old certificate serves, and the failure is said.
        self.pebble.server.kill()
        self.pebble.server.wait()
        roost = self.node(self.http_options(), hosts=HOSTS[:1])
        roost.until_logged("no certificate; the next attempt follows")
        pem = self.served(roost, HOSTS[0])
        self.assertIn(pem.splitlines()[1], old)
        self.assertIn("http_server.tls_autocert[chat.example.com]", self.request(roost, "/health"))
        metrics = self.request(roost, "/metrics")
        self.assertIn('roost_tls_acme_attempts_total{outcome="failed"} 1', metrics)
        self.assertIn("\nroost_tls_faults 1", metrics)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        raw = socket.create_connection(("127.0.0.1", roost.port), timeout=WAIT)
        with context.wrap_socket(raw, server_hostname=HOSTS[0]) as stream:
            # Another node with the same cache renews it, and this one reads its file.
            self.pebble.start()
            http = free_ports(1)[0]
            self.pebble_validates_at(http)
            other = self.node(f'http = true\nhttp_addr = "127.0.0.1:{http}"', hosts=HOSTS[:1])
            self.in_use(other, HOSTS[0])
            roost.until_logged("certificates and keys were read again")
            self.assert_for(self.served(roost, HOSTS[0]), HOSTS[0])
            stream.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            self.assertTrue(stream.recv(4096).startswith(b"HTTP/1.1 200"))

    def pebble_validates_at(self, http):
        self.pebble.server.kill()
        self.pebble.server.wait()
        config = json.loads(self.pebble.config.read_text())
        config["pebble"]["httpPort"] = http
        self.pebble.config.write_text(json.dumps(config))
        self.pebble.start()

    def old_certificate(self, host):
        """A certificate of which most of the time has gone."""
        folder = pathlib.Path(self.folder.name)
        (folder / "index").write_text("")
        (folder / "serial").write_text("01\n")
        config = folder / "ca.cnf"
        config.write_text(f"""
[ca]
default_ca = it
[it]
database = {folder}/index
serial = {folder}/serial
new_certs_dir = {folder}
certificate = {self.authority.file}
private_key = {self.authority.key}
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = optional
[names]
subjectAltName = DNS:{host}
""")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                f"/CN={host}", "-keyout", folder / "old.key", "-out", folder / "old.csr")
        at = lambda days: time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + days * 86_400))
        openssl("ca", "-batch", "-notext", "-config", config, "-in", folder / "old.csr", "-out",
                folder / "old.pem", "-startdate", at(-80), "-enddate", at(10))
        text = (folder / "old.key").read_text() + (folder / "old.pem").read_text()
        (self.cache / host).write_text(text)
