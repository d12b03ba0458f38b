//! A handshake without cryptography, and the client's end of its connections: for simulations and tests.
//!
//! ```text
//!   client                                  server
//!   hello: suite, number, padding  ------>
//!                                  <------  answer
//!   finished                       ------>  both have the secrets of this number
//!   records                        <----->  records
//! ```
//! The number is in plain text and the secrets are made of it, so nothing is protected. The record layer
//! behind it is the real one. No option of a node leads here.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA512, digest};
use aws_lc_rs::hkdf::Prk;

use super::handshake::{
    BeginHandshake, Certificate, Established, HandshakeFault, Handshaking, ServerSettings,
};
use super::state::{Role, derive};
use super::suite::{IV_BYTES, Suite};
use super::{Batch, Fault, HEADER_BYTES, Key, Opener, Packed, Pool, Received, Secrets};

/// Begin of the messages.
const HELLO: &[u8] = b"simulated hello ";
const ANSWER: &[u8] = b"simulated answer";
const FINISHED: &[u8] = b"simulated finish";

/// The states of a server and its client, of secrets that this number names.
pub fn pair(suite: Suite, number: u64) -> Option<(Packed, Packed)> {
    let bytes = |name: &str| {
        digest(&SHA512, format!("{name} {number} {suite:?}").as_bytes()).as_ref().to_vec()
    };
    let direction = |name: &str| {
        let secret = bytes(name)[..suite.secret_bytes()].to_vec();
        let mut key_and_iv =
            bytes(&format!("key of {name}"))[..suite.key_bytes() + IV_BYTES].to_vec();
        if suite.is_tls13() {
            derive(&Prk::new_less_safe(suite.hkdf(), &secret), suite, &mut key_and_iv)?;
        }
        Some((secret, key_and_iv))
    };
    let (client, server) = (direction("client")?, direction("server")?);
    let secrets = |of: &'_ (Vec<u8>, Vec<u8>)| {
        let (key, iv) = of.1.split_at(suite.key_bytes());
        (key.to_vec(), iv.to_vec(), of.0.clone())
    };
    let (client, server) = (secrets(&client), secrets(&server));
    let of = |(key, iv, traffic_secret): &'_ (Vec<u8>, Vec<u8>, Vec<u8>),
              role,
              other: &'_ (Vec<u8>, Vec<u8>, Vec<u8>)| {
        let send = Secrets { sequence: 0, key, iv, traffic_secret };
        let receive =
            Secrets { sequence: 0, key: &other.0, iv: &other.1, traffic_secret: &other.2 };
        Packed::new(role, suite, send, receive).ok()
    };
    Some((of(&server, Role::Server, &client)?, of(&client, Role::Client, &server)?))
}

fn record(body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let length = (body.len() as u16).to_be_bytes();
    [&[22, 3, 3, length[0], length[1]], &body[..]].concat()
}

/// One end of a handshake.
#[derive(Debug)]
pub struct Simulated {
    role: Role,
    of: Option<(Suite, u64)>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    is_done: bool,
}

impl Simulated {
    /// The settings of a listener with such handshakes.
    pub fn settings() -> ServerSettings {
        ServerSettings::of(Arc::new(SimulatedServer))
    }

    /// A client's end. Its hello is so many bytes longer than it has to be.
    pub fn client(suite: Suite, number: u64, padding: usize) -> Self {
        let padding = vec![0; padding];
        let outgoing = record(&[HELLO, &[suite as u8], &number.to_be_bytes(), &padding]);
        Self {
            role: Role::Client,
            of: Some((suite, number)),
            incoming: Vec::new(),
            outgoing,
            is_done: false,
        }
    }

    /// A whole record of the peer's.
    fn message(&mut self, body: &[u8]) -> Result<(), HandshakeFault> {
        match (self.role, self.of) {
            (Role::Server, None) => {
                let rest = body.strip_prefix(HELLO).ok_or(HandshakeFault::Secrets)?;
                let (suite, rest) = rest.split_first().ok_or(HandshakeFault::Secrets)?;
                let suite = Suite::ALL.get(usize::from(*suite)).ok_or(HandshakeFault::Secrets)?;
                let number = rest.first_chunk().ok_or(HandshakeFault::Secrets)?;
                self.of = Some((*suite, u64::from_be_bytes(*number)));
                self.outgoing.extend(record(&[ANSWER, &[0; 700]]));
            }
            (Role::Server, Some(_)) if body == FINISHED => self.is_done = true,
            (Role::Client, Some(_)) if body.starts_with(ANSWER) => {
                self.outgoing.extend(record(&[FINISHED]));
                self.is_done = true;
            }
            _ => return Err(HandshakeFault::Secrets),
        }
        Ok(())
    }
}

struct SimulatedServer;

impl BeginHandshake for SimulatedServer {
    fn begin(&self) -> Result<Box<dyn Handshaking>, HandshakeFault> {
        let (incoming, outgoing) = (Vec::new(), Vec::new());
        Ok(Box::new(Simulated { role: Role::Server, of: None, incoming, outgoing, is_done: false }))
    }

    fn subject(&self, _certificate: &Certificate<'_>) -> Option<String> {
        None
    }
}

impl Handshaking for Simulated {
    fn read(&mut self, input: &[u8], at: &mut usize) -> Result<bool, HandshakeFault> {
        while !self.is_done && *at < input.len() {
            self.incoming.push(input[*at]);
            *at += 1;
            let Some(header) = self.incoming.first_chunk::<HEADER_BYTES>() else { continue };
            let bytes = HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]]));
            if header[0] != 22 {
                // handshake_failure, as a record in plain text.
                self.outgoing.extend([21, 3, 3, 0, 2, 2, 40]);
                return Err(HandshakeFault::Secrets);
            }
            if self.incoming.len() == bytes {
                let record = std::mem::take(&mut self.incoming);
                self.message(&record[HEADER_BYTES..])?;
            }
        }
        Ok(self.is_done)
    }

    fn to_send(&self) -> &[u8] {
        &self.outgoing
    }

    fn sent(&mut self, bytes: usize) {
        self.outgoing.drain(..bytes);
    }

    fn heap_bytes(&self) -> usize {
        self.incoming.capacity() + self.outgoing.capacity()
    }

    fn finish(self: Box<Self>) -> Result<Established, HandshakeFault> {
        let (suite, number) = self.of.filter(|_| self.is_done).ok_or(HandshakeFault::Secrets)?;
        let (server, client) = pair(suite, number).ok_or(HandshakeFault::Secrets)?;
        let packed = match self.role {
            Role::Server => server,
            Role::Client => client,
        };
        let packed = packed.with_tail(&self.outgoing).map_err(|_| HandshakeFault::Secrets)?;
        Ok(Established { packed, protocol: None, certificate: None, resumed: false })
    }
}

/// A client of a simulated server: plain text in, records out, and back.
#[derive(Debug)]
pub struct Client {
    handshake: Option<Box<Simulated>>,
    pool: Pool,
    key: Option<Key>,
    batch: Batch,
    out: Vec<u8>,
    plain: Vec<u8>,
    /// The server's close_notify has come.
    pub is_closed: bool,
    /// The record of the server that was not right.
    pub fault: Option<Fault>,
}

impl Client {
    /// A client that has its hello to send.
    pub fn new(suite: Suite, number: u64, padding: usize) -> Self {
        let mut handshake = Simulated::client(suite, number, padding);
        let out = std::mem::take(&mut handshake.outgoing);
        Self {
            handshake: Some(Box::new(handshake)),
            pool: Pool::default(),
            key: None,
            batch: Batch::new(),
            out,
            plain: Vec::new(),
            is_closed: false,
            fault: None,
        }
    }

    /// Whether the handshake is done.
    pub fn is_open(&self) -> bool {
        self.key.is_some()
    }

    /// Seals plain text.
    pub fn write(&mut self, mut plain: &[u8]) {
        while !plain.is_empty() {
            let Some(mut records) = self.key.as_ref().and_then(|key| self.pool.records(key)) else {
                return;
            };
            self.batch.clear();
            let Ok(sealed) = self.batch.seal(&mut records, [plain]) else { return };
            let bytes = self.batch.bytes(&sealed);
            self.out.extend_from_slice(bytes);
            records.sent(bytes, bytes.len());
            plain = &plain[sealed.plain..];
            self.take_tail();
        }
    }

    /// Changes the keys, and the server's if `requested`.
    pub fn update_keys(&mut self, requested: bool) {
        if let Some(mut records) = self.key.as_ref().and_then(|key| self.pool.records(key)) {
            records.update_keys(requested);
        }
        self.take_tail();
    }

    /// Seals a close_notify.
    pub fn close(&mut self) {
        if let Some(mut records) = self.key.as_ref().and_then(|key| self.pool.records(key)) {
            records.close_notify();
        }
        self.take_tail();
    }

    fn take_tail(&mut self) {
        let Some(mut records) = self.key.as_ref().and_then(|key| self.pool.records(key)) else {
            return;
        };
        while !records.tail().is_empty() {
            let tail = records.tail();
            self.out.extend_from_slice(tail);
            let bytes = tail.len();
            records.tail_sent(bytes);
        }
    }

    /// Bytes for the server.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Plain text that has come.
    pub fn plain(&mut self) -> &mut Vec<u8> {
        &mut self.plain
    }

    /// How much that is.
    pub fn plain_bytes(&self) -> usize {
        self.plain.len()
    }

    /// Handles bytes of the server's.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut at = 0;
        if let Some(mut handshake) = self.handshake.take() {
            let is_done = handshake.read(bytes, &mut at);
            self.out.append(&mut handshake.outgoing);
            match is_done {
                Ok(true) => {
                    let packed = handshake.finish().map(|established| established.packed);
                    self.key = packed.ok().and_then(|packed| self.pool.insert(packed).ok());
                }
                Ok(false) => self.handshake = Some(handshake),
                // An alert in place of the answer.
                Err(_) => self.fault = Some(Fault::Ended),
            }
        }
        let mut input = bytes.to_vec();
        let Some(mut records) = self.key.as_ref().and_then(|key| self.pool.records(key)) else {
            return;
        };
        let mut opener = Opener::new();
        loop {
            match opener.next(&mut records, &mut input, &mut at) {
                Ok(Some(Received::Data(data))) => self.plain.extend_from_slice(data),
                Ok(Some(Received::Closed)) => self.is_closed = true,
                Ok(None) => break,
                Err(fault) => {
                    self.fault.get_or_insert(fault);
                    break;
                }
            }
        }
        self.take_tail();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_get_keys_and_bytes_behind_the_last_message_stay() {
        for suite in Suite::ALL {
            let mut client = Client::new(suite, 7, 10);
            let mut server = Simulated::settings().begin().unwrap();
            let hello = std::mem::take(client.out());
            assert!(!server.read(&hello, &mut 0).unwrap());
            let answer = server.to_send().to_vec();
            server.sent(answer.len());
            client.feed(&answer);
            assert!(client.is_open());
            client.write(b"early");
            let last = std::mem::take(client.out());
            let mut at = 0;
            assert!(server.read(&last, &mut at).unwrap());
            assert!(at < last.len());
            let mut pool = Pool::default();
            let key = pool.insert(server.finish().unwrap().packed).unwrap();
            let (mut records, mut rest) = (pool.records(&key).unwrap(), last[at..].to_vec());
            let mut opener = Opener::new();
            let received = opener.next(&mut records, &mut rest, &mut 0).unwrap();
            assert_eq!(received, Some(Received::Data(&mut b"early".to_vec()[..])));
        }
    }

    #[test]
    fn what_is_no_hello_is_answered_with_an_alert() {
        let mut server = Simulated::settings().begin().unwrap();
        assert!(server.read(b"nonsense", &mut 0).is_err());
        assert_eq!(server.to_send(), [21, 3, 3, 0, 2, 2, 40]);
        let mut client = Client::new(Suite::Tls13ChaCha20, 1, 0);
        client.feed(server.to_send());
        assert!(!client.is_open() && client.fault.is_some());
    }
}
