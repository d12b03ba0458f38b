//! The handshake and the record layer of TLS against other implementations: OpenSSL's `s_client` and Python's
//! `ssl`. The node doesn't use them yet, so a small server of this file does: it echoes what it reads, sends
//! in small pieces, and passes the connection to another pool between two reads.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use roost::proto::tls::handshake::{Handshake, prepare_server};
use roost::proto::tls::{Batch, Fault, Key, Opener, Packed, Pool, Received, Suite};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const CERTIFICATE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/src/proto/tls/handshake/certificate.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/proto/tls/handshake/key.pem");

/// Longest wait for anything.
const WAIT: Duration = Duration::from_secs(30);

/// The end of one connection, as the server has seen it.
#[derive(Debug)]
struct Ended {
    /// `None`: the handshake has failed, for the reason of this label.
    suite: Result<Suite, &'static str>,
    resumed: bool,
    protocol: Option<Box<[u8]>>,
    fault: Option<Fault>,
    /// The peer has sent close_notify.
    closed: bool,
}

struct Server {
    address: SocketAddr,
    ended: Receiver<Ended>,
}

impl Server {
    fn open(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let mut provider = default_provider();
        provider.kx_groups = vec![kx_group::X25519];
        let mut config = ServerConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(CERTIFICATE).unwrap()],
                PrivateKeyDer::from_pem_file(KEY).unwrap(),
            )
            .unwrap();
        config.ticketer = Ticketer::new().unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        change(&mut config);
        prepare_server(&mut config);
        // The client's order decides, so that a client can choose each suite.
        config.ignore_client_order = false;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, ended) = channel();
        std::thread::spawn(move || serve(&listener, &Arc::new(config), &sender));
        Self { address, ended }
    }

    fn ended(&self) -> Ended {
        self.ended.recv_timeout(WAIT).expect("the connection doesn't end")
    }
}

fn serve(listener: &TcpListener, config: &Arc<ServerConfig>, ended: &Sender<Ended>) {
    for socket in listener.incoming() {
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        if ended.send(connection(socket, config)).is_err() {
            return;
        }
    }
}

fn connection(mut socket: TcpStream, config: &Arc<ServerConfig>) -> Ended {
    let mut ended =
        Ended { suite: Err("nothing"), resumed: false, protocol: None, fault: None, closed: false };
    let mut handshake = Handshake::server(config).unwrap();
    let mut input = vec![0; 64 * 1024];
    let (at, came) = loop {
        let Ok(bytes) = socket.read(&mut input) else { return ended };
        if bytes == 0 {
            return ended;
        }
        let (mut at, came) = (0, bytes);
        let done = handshake.read(&input[..came], &mut at);
        let _ = socket.write_all(handshake.to_send());
        let bytes = handshake.to_send().len();
        handshake.sent(bytes);
        match done {
            Ok(false) => {}
            Ok(true) => break (at, came),
            Err(fault) => {
                ended.suite = Err(fault.label());
                return ended;
            }
        }
    };
    let established = handshake.finish().unwrap();
    ended.resumed = established.resumed;
    ended.protocol = established.protocol;
    let mut end = Echo::new(socket, established.packed);
    ended.suite = Ok(end.suite());
    end.run(&mut ended, &mut input, at..came);
    ended
}

/// Echoes data behind the handshake.
struct Echo {
    socket: TcpStream,
    pool: Pool,
    key: Option<Key>,
    batch: Batch,
}

impl Echo {
    fn new(socket: TcpStream, packed: Packed) -> Self {
        let mut pool = Pool::default();
        let key = Some(pool.insert(packed).unwrap());
        Self { socket, pool, key, batch: Batch::new() }
    }

    fn suite(&mut self) -> Suite {
        self.pool.records(self.key.as_ref().unwrap()).unwrap().suite()
    }

    fn run(&mut self, ended: &mut Ended, input: &mut [u8], first: std::ops::Range<usize>) {
        let mut unread = first;
        loop {
            let data = self.open(ended, &mut input[unread]);
            self.flush();
            if ended.fault.is_some() {
                // So that the alert isn't lost with what else came.
                self.socket.shutdown(std::net::Shutdown::Write).unwrap();
                while self.socket.read(input).is_ok_and(|bytes| bytes > 0) {}
                return;
            }
            self.echo(&data);
            self.pass();
            if ended.closed {
                self.pool.records(self.key.as_ref().unwrap()).unwrap().close_notify();
                self.flush();
                return;
            }
            match self.socket.read(input) {
                Ok(bytes) if bytes > 0 => unread = 0..bytes,
                _ => return,
            }
        }
    }

    fn open(&mut self, ended: &mut Ended, input: &mut [u8]) -> Vec<u8> {
        let mut records = self.pool.records(self.key.as_ref().unwrap()).unwrap();
        let mut opener = Opener::new();
        let mut data = Vec::new();
        let mut at = 0;
        loop {
            match opener.next(&mut records, input, &mut at) {
                Ok(Some(Received::Data(more))) => data.extend_from_slice(more),
                Ok(Some(Received::Closed)) => ended.closed = true,
                Ok(None) => return data,
                Err(fault) => {
                    ended.fault = Some(fault);
                    return data;
                }
            }
        }
    }

    /// Sends data back, most of it as a tail. Before a line that begins with "update" the keys change.
    fn echo(&mut self, mut data: &[u8]) {
        if data.starts_with(b"update") {
            let requested = data.starts_with(b"update both");
            assert!(self.pool.records(self.key.as_ref().unwrap()).unwrap().update_keys(requested));
            self.flush();
        }
        while !data.is_empty() {
            let mut records = self.pool.records(self.key.as_ref().unwrap()).unwrap();
            let sealed = self.batch.seal(&mut records, [data]).unwrap();
            let bytes = self.batch.bytes(&sealed);
            let sent = bytes.len() / 3;
            self.socket.write_all(&bytes[..sent]).unwrap();
            records.sent(bytes, sent);
            self.batch.clear();
            data = &data[sealed.plain..];
            self.pass();
            self.flush();
        }
    }

    fn flush(&mut self) {
        let mut records = self.pool.records(self.key.as_ref().unwrap()).unwrap();
        while !records.tail().is_empty() {
            let sent = records.tail().len().min(1000);
            // The peer may have gone.
            let _ = self.socket.write_all(&records.tail()[..sent]);
            records.tail_sent(sent);
        }
    }

    /// To another pool, as bytes.
    fn pass(&mut self) {
        let packed = self.pool.take(self.key.take().unwrap()).unwrap();
        self.pool = Pool::default();
        let packed = Packed::from_bytes(packed.as_bytes()).unwrap();
        self.key = Some(self.pool.insert(packed).unwrap());
    }
}

/// A running `openssl s_client`, with all that it prints.
struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Client {
    /// `None`: there is no OpenSSL here.
    fn connect(server: &Server, arguments: &[&str]) -> Option<Self> {
        let child = Command::new("openssl")
            .args(["s_client", "-CAfile", CERTIFICATE, "-verify_return_error"])
            .args(["-servername", "localhost", "-connect", &server.address.to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            println!("skipped: no openssl here");
            return None;
        };
        let (sender, lines) = channel();
        let (out, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let to_stdout = sender.clone();
        std::thread::spawn(move || print(out, &to_stdout));
        std::thread::spawn(move || print(errors, &sender));
        let stdin = child.stdin.take();
        Some(Self { child, stdin, lines, seen: Vec::new() })
    }

    fn send(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        // It may have ended, which the next wait shows.
        let _ = stdin.write_all(format!("{line}\n").as_bytes()).and_then(|()| stdin.flush());
    }

    /// Waits for a line that contains this.
    fn wait_for(&mut self, text: &str) {
        loop {
            let line = self.lines.recv_timeout(WAIT);
            let line = line.unwrap_or_else(|_| panic!("no {text:?} in {:#?}", self.seen));
            let found = line.contains(text);
            self.seen.push(line);
            if found {
                return;
            }
        }
    }

    fn echoes(&mut self, line: &str) {
        self.send(line);
        self.wait_for(line);
    }

    /// Ends it as with the end of its input. Returns all lines.
    fn close(mut self) -> Vec<String> {
        self.stdin = None;
        self.child.wait().unwrap();
        self.seen.extend(self.lines.iter());
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn print(from: impl std::io::Read, to: &Sender<String>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        if to.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
            return;
        }
        line.clear();
    }
}

const SUITES: [(Suite, &[&str]); 6] = [
    (Suite::Tls13Aes128Gcm, &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"]),
    (Suite::Tls13Aes256Gcm, &["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"]),
    (Suite::Tls13ChaCha20, &["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"]),
    (Suite::Tls12Aes128Gcm, &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]),
    (Suite::Tls12Aes256Gcm, &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"]),
    (Suite::Tls12ChaCha20, &["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"]),
];

#[test]
fn openssl_speaks_all_suites_and_closes() {
    let server = Server::open(|_| {});
    for (suite, arguments) in SUITES {
        let Some(mut client) = Client::connect(&server, arguments) else { return };
        client.echoes("the first line");
        client.echoes(&"a_longer_line,".repeat(200));
        client.close();
        let ended = server.ended();
        assert_eq!((ended.suite, ended.fault), (Ok(suite), None));
        assert!(ended.closed && !ended.resumed);
    }
}

#[test]
fn openssl_updates_keys_in_both_directions() {
    let server = Server::open(|_| {});
    for (suite, arguments) in &SUITES[..3] {
        let Some(mut client) = Client::connect(&server, arguments) else { return };
        client.echoes("one");
        for round in 0..3 {
            // A KeyUpdate that requests one, and one that doesn't.
            for command in ["K", "k"] {
                client.send(command);
                client.wait_for("KEYUPDATE");
                client.echoes(&format!("behind {command} {round}"));
            }
            client.echoes(&format!("update {round}"));
            client.echoes(&format!("update both {round}"));
            client.echoes(&format!("and on {round}"));
        }
        client.close();
        let ended = server.ended();
        assert_eq!((ended.suite, ended.fault, ended.closed), (Ok(*suite), None, true));
    }
}

#[test]
fn openssl_varies_the_handshake_and_the_records() {
    let server = Server::open(|_| {});
    let variants: [&[&str]; 7] = [
        &["-tls1_3", "-record_padding", "512"],
        &["-tls1_3", "-no_middlebox"],
        &["-tls1_3", "-groups", "P-256:X25519"],
        &["-max_send_frag", "512"],
        &["-tls1_2", "-max_send_frag", "512", "-split_send_frag", "512"],
        &["-tls1_3", "-alpn", "h2,http/1.1"],
        &["-tls1_2", "-no_ticket"],
    ];
    for arguments in variants {
        let Some(mut client) = Client::connect(&server, arguments) else { return };
        client.echoes("a line");
        client.echoes(&"x".repeat(3000));
        let lines = client.close();
        let ended = server.ended();
        assert_eq!((ended.fault, ended.closed), (None, true), "{arguments:?}: {lines:#?}");
        assert_eq!(ended.protocol.is_some(), arguments.contains(&"-alpn"));
    }
}

#[test]
fn openssl_resumes_with_a_ticket_and_sends_no_early_data() {
    let server = Server::open(|_| {});
    let folder = std::env::temp_dir().join(format!("roost-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for version in ["-tls1_3", "-tls1_2"] {
        let file = folder.join(&version[1..]);
        let session = file.to_str().unwrap();
        let Some(mut client) = Client::connect(&server, &[version, "-sess_out", session]) else {
            return;
        };
        client.echoes("full");
        client.close();
        assert!(!server.ended().resumed);
        let early = folder.join("early");
        std::fs::write(&early, "early data").unwrap();
        let early = ["-early_data", early.to_str().unwrap()];
        let arguments = [&[version, "-sess_in", session][..], &early].concat();
        let arguments = if version == "-tls1_3" { &arguments[..] } else { &arguments[..3] };
        let mut client = Client::connect(&server, arguments).unwrap();
        client.echoes("resumed");
        let lines = client.close();
        let ended = server.ended();
        assert!(ended.resumed && ended.closed, "{version}: {lines:#?}");
        let early = lines.iter().any(|line| line.contains("Early data was not sent"));
        assert_eq!(early, version == "-tls1_3", "{lines:#?}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn openssl_gets_alerts_for_refusals() {
    let server = Server::open(|_| {});
    let cases: [(&[&str], &str, &str); 3] = [
        (&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "handshake failure", "incompatible"),
        (&["-alpn", "h2"], "no application protocol", "protocol"),
        (&["-tls1_2", "-cipher", "AES128-GCM-SHA256"], "handshake failure", "incompatible"),
    ];
    for (arguments, alert, label) in cases {
        let Some(client) = Client::connect(&server, arguments) else { return };
        let lines = client.close();
        let ended = server.ended();
        assert!(lines.iter().any(|line| line.contains(alert)), "{arguments:?}: {lines:#?}");
        assert_eq!(ended.suite, Err(label));
    }
}

#[test]
fn openssl_is_refused_a_renegotiation() {
    let server = Server::open(|_| {});
    let Some(mut client) = Client::connect(&server, &["-tls1_2"]) else { return };
    client.echoes("a line");
    client.send("R");
    client.wait_for("no renegotiation");
    assert_eq!(server.ended().fault, Some(Fault::Renegotiation));
    client.close();
}

#[test]
fn plain_http_gets_an_alert() {
    let server = Server::open(|_| {});
    let mut socket = TcpStream::connect(server.address).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    // Fatal; rustls has decode_error for it.
    assert!(matches!(answer[..], [21, 3, _, 0, 2, 2, _]), "{answer:?}");
    assert_eq!(server.ended().suite, Err("malformed"));
}

/// One connection for each version: lines, a large echo that is cut, and a close in both directions.
const PYTHON: &str = r#"
import socket, ssl, sys
host, port, certificate = sys.argv[1], int(sys.argv[2]), sys.argv[3]
for version in ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2:
    context = ssl.create_default_context(cafile=certificate)
    context.minimum_version = context.maximum_version = version
    plain = socket.create_connection((host, port), timeout=30)
    tls = context.wrap_socket(plain, server_hostname="localhost")
    for size in 1, 100, 16384, 50000:
        data = bytes(at % 251 for at in range(size))
        tls.sendall(data)
        echo = b""
        while len(echo) < size:
            came = tls.recv(65536)
            assert came, "the server has closed"
            echo += came
        assert echo == data
    if version == ssl.TLSVersion.TLSv1_3:
        for line in b"update", b"update both":
            tls.sendall(line)
            assert tls.recv(100) == line
    tls.unwrap()
    print("closed", version.name)
"#;

#[test]
fn python_echoes_and_closes_in_both_versions() {
    let server = Server::open(|_| {});
    let (host, port) = (server.address.ip().to_string(), server.address.port().to_string());
    let output = Command::new("python3").args(["-c", PYTHON, &host, &port, CERTIFICATE]).output();
    let Ok(output) = output else {
        println!("skipped: no python3 here");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "closed TLSv1_3\nclosed TLSv1_2\n");
    for tls13 in [true, false] {
        let ended = server.ended();
        assert!(ended.closed && ended.fault.is_none(), "{ended:?}");
        assert_eq!(ended.suite.map(Suite::is_tls13), Ok(tls13));
    }
}
