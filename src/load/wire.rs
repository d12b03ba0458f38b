//! The protocol between `roost-load` and an agent: frames over TCP, each a length and a JSON text.
//!
//! ```text
//!  agent      -> Greeting: version, nonce
//!  controller -> Claim:    version, nonce, proof           proof: HMAC-SHA256 of both nonces, by the token
//!  agent      -> Welcome:  its own proof, the machine      or why not
//!  controller -> Ping* (the clock), Start, orders ...      agent -> Pong*, Started, status, slices ... Finished
//! ```
//! The token doesn't travel, and a recorded proof is good for nothing. What follows is not encrypted.

use super::clock::Reading;
use super::figures::{Latency, Sum, Tally, sparse};
use super::flags::Flags;
use super::host::{Machine, Usage};
use super::pace::Segment;
use super::plan::{Place, Room};
use super::worker::Order;
use aws_lc_rs::hmac;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};

/// The version of what is described here. Both sides also have to be of the same release: they make the same plan of
/// the same flags.
pub(super) const PROTOCOL: u32 = 1;

/// Bytes of a frame at most: before the other side has proved itself, and after.
pub(super) const HELLO_BYTES_MAX: u32 = 8 * 1024;
pub(super) const FRAME_BYTES_MAX: u32 = 64 << 20;

/// Characters of a token at least: who listens can try out short ones.
pub(super) const TOKEN_CHARS_MIN: usize = 16;

/// The port of an agent, where none is named.
pub(super) const PORT: u16 = 7400;

pub(super) type Nonce = [u8; 32];

/// The first frame, from the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Greeting {
    pub(super) protocol: u32,
    pub(super) version: String,
    pub(super) nonce: Nonce,
}

/// The answer of the controller.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) protocol: u32,
    pub(super) version: String,
    pub(super) nonce: Nonce,
    pub(super) proof: Vec<u8>,
}

/// The agent's last word before a run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Welcome {
    Refused(String),
    Accepted(Box<Offer>),
}

/// The machine of an agent, and its proof.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) proof: Vec<u8>,
    pub(super) machine: Machine,
    /// Descriptors of one table.
    pub(super) descriptors: u64,
}

/// From the controller.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToAgent {
    /// Tell the clock; the number comes back.
    Ping {
        sent_ns: u64,
    },
    Start(Box<Start>),
    /// An order for each worker of the agent, to be given at a moment of the run.
    Order {
        at_ns: u64,
        orders: Vec<Order>,
    },
    OpenPublishers,
    /// `first`: messages of all publishers before these.
    Publish {
        segment: Segment,
        first: u32,
    },
    StopPublishing,
    /// Say how many messages of each channel have left so far.
    Count,
    /// So many had left at that moment, from all agents.
    Counted {
        at_ns: u64,
        counts: Vec<u32>,
    },
    EndPublishers,
    /// Judge, given how many messages each channel had.
    Finish {
        sent: Vec<u32>,
    },
}

/// The part of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) flags: Flags,
    pub(super) room: Room,
    pub(super) place: Place,
    pub(super) run: u32,
    /// The agent's clock at the origin of the run.
    pub(super) origin_ns: u64,
}

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromAgent {
    Pong {
        sent_ns: u64,
        clock: Reading,
    },
    /// Its workers run: it has so many connections.
    Started {
        connections: u32,
    },
    Status {
        sum: Sum,
        usage: Usage,
    },
    /// Latencies of one second of the run.
    Slice {
        second: u32,
        #[serde(with = "sparse")]
        latency: Latency,
    },
    PublishersOpen {
        fault: Option<String>,
    },
    Count {
        at_ns: u64,
        counts: Vec<u32>,
    },
    PublishersEnded {
        sent: Vec<u32>,
    },
    Finished(Box<Tally>),
    /// It can't go on.
    Failed(String),
}

/// The two sides of a connection, for their proofs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Controller,
    Agent,
}

/// The token as a key.
pub(super) struct Token(hmac::Key);

impl Token {
    pub(super) fn new(text: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes()))
    }

    fn message(side: Side, agent: &Nonce, controller: &Nonce) -> Vec<u8> {
        let name: &[u8] = match side {
            Side::Controller => b"roost-load controller",
            Side::Agent => b"roost-load agent",
        };
        [name, agent, controller].concat()
    }

    /// The proof that a side has the token.
    pub(super) fn prove(&self, side: Side, agent: &Nonce, controller: &Nonce) -> Vec<u8> {
        hmac::sign(&self.0, &Self::message(side, agent, controller)).as_ref().to_vec()
    }

    /// Whether a side has the token; takes as long whether or not.
    pub(super) fn is_proved(
        &self,
        side: Side,
        agent: &Nonce,
        controller: &Nonce,
        proof: &[u8],
    ) -> bool {
        hmac::verify(&self.0, &Self::message(side, agent, controller), proof).is_ok()
    }
}

/// A number that nobody can guess.
pub(super) fn nonce() -> io::Result<Nonce> {
    let mut nonce = [0; 32];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| io::Error::other("no random numbers"))?;
    Ok(nonce)
}

/// Writes one frame.
pub(super) fn write(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, value)?;
    let bytes = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    if bytes > FRAME_BYTES_MAX {
        return Err(io::Error::new(ErrorKind::InvalidData, "a frame that is too large"));
    }
    frame[..4].copy_from_slice(&bytes.to_be_bytes());
    out.write_all(&frame)
}

/// Reads one frame of at most `bytes_max`.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read, bytes_max: u32) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let bytes = u32::from_be_bytes(length);
    if bytes > bytes_max {
        return Err(io::Error::new(ErrorKind::InvalidData, "a frame that is too large"));
    }
    // Grows with what comes: a length alone takes no memory.
    let mut frame = Vec::new();
    from.take(bytes.into()).read_to_end(&mut frame)?;
    if frame.len() < bytes as usize {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&frame)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn frames_come_back_and_are_bounded() {
        let mut bytes = Vec::new();
        write(&mut bytes, &ToAgent::Ping { sent_ns: 7 }).unwrap();
        write(&mut bytes, &ToAgent::Count).unwrap();
        let mut from = &bytes[..];
        let first: ToAgent = read(&mut from, 100).unwrap();
        assert!(matches!(first, ToAgent::Ping { sent_ns: 7 }));
        assert!(matches!(read(&mut from, 100).unwrap(), ToAgent::Count));
        let end = read::<ToAgent>(&mut from, 100).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
        let large = read::<ToAgent>(&mut &bytes[..], 5).unwrap_err();
        assert_eq!(large.to_string(), "a frame that is too large");
        let cut = read::<ToAgent>(&mut &bytes[..9], 100).unwrap_err();
        assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
        let other = read::<ToAgent>(&mut &b"\0\0\0\x02{}"[..], 100).unwrap_err();
        assert_eq!(other.kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn a_proof_is_good_for_one_side_one_token_and_one_connection() {
        let (token, other) = (Token::new("the token of a test"), Token::new("another"));
        let (agent, controller) = (nonce().unwrap(), nonce().unwrap());
        let proof = token.prove(Side::Controller, &agent, &controller);
        assert!(token.is_proved(Side::Controller, &agent, &controller, &proof));
        assert!(!token.is_proved(Side::Agent, &agent, &controller, &proof));
        assert!(!token.is_proved(Side::Controller, &controller, &agent, &proof));
        assert!(!token.is_proved(Side::Controller, &agent, &nonce().unwrap(), &proof));
        assert!(!other.is_proved(Side::Controller, &agent, &controller, &proof));
    }

    #[test]
    fn flags_travel_without_the_token_and_without_files() {
        let line = "roost-load channels --url ws://h/ --rate 12.5 --transport sse --token secret-secret-secret \
                    --agents a,b:1 --json out.json --connect-timeout 3s --threads 2";
        let flags = Flags::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(flags.agents, ["a", "b:1"]);
        let text = serde_json::to_string(&flags).unwrap();
        assert!(!text.contains("secret-secret") && !text.contains("out.json"), "{text}");
        let back: Flags = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (back.rate, back.transport, back.threads),
            (Some(12.5), flags.transport, flags.threads)
        );
        assert_eq!(back.connect_timeout, flags.connect_timeout);
    }
}
