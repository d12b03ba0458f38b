//! The command line of `roost-load`: each flag once, with its documentation. Flags never act;
//! [`super::plan`] says what they come to.

use super::search::Goal;
use super::tls::TlsFlags;
use crate::base::form::Transport;
use clap::builder::PossibleValue;
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The use of the connections once they are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Scenario {
    /// Hold them and answer pings; count those that drop.
    Idle,
    /// Each connection sends messages and expects them back.
    Echo,
    /// All subscribe to one channel; one more connection publishes to it.
    Broadcast,
    /// Connections are spread over --channels channels, which are published to in turn.
    Channels,
    /// Drop a share of them at once, and time how long it takes until all are back.
    Storm,
    /// As channels; after half of the messages --run replaces the server. No client may notice it: none
    /// is closed, no message is lost, and the longest pause of each is shown.
    Upgrade,
    /// Run a scenario file: `run FILE`.
    Run,
    /// Print the file of a command, or of an example: `show storm`. Without a name: list them.
    Show,
    /// Compare two reports of --json FILE: `compare A.json B.json`. Exits with 99 when the second run is worse.
    Compare,
    /// Print the JSON schema of scenario files or of reports: `schema scenario`, `schema report`.
    Schema,
    /// Wait at --listen for runs with --agents, and do a part of each, one at a time.
    Agent,
}

impl Scenario {
    /// The name on the command line and in the output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Echo => "echo",
            Self::Broadcast => "broadcast",
            Self::Channels => "channels",
            Self::Storm => "storm",
            Self::Upgrade => "upgrade",
            Self::Run => "run",
            Self::Show => "show",
            Self::Compare => "compare",
            Self::Schema => "schema",
            Self::Agent => "agent",
        }
    }
}

/// The protocol on the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Protocol {
    /// `centrifugo` when the URL's path ends in /connection/websocket, else `raw`; always `raw` for
    /// `echo`.
    Auto,
    /// The Centrifugo client protocol, JSON.
    Centrifugo,
    /// Plain WebSocket messages, for any server that echoes or broadcasts them.
    Raw,
    /// Socket.IO 4 over a WebSocket: the events `subscribe` (acknowledged) and `publish`, each with a channel.
    SocketIo,
    /// Pusher's protocol; publishing is by client events.
    Pusher,
    /// NATS over a WebSocket.
    Nats,
    /// Mercure: server-sent events, published to the path of --url (or of --api-url), with the JWT of --api-key.
    Mercure,
    /// nchan of nginx: server-sent events, published to --api-url. {channel} in both URLs is the channel.
    Nchan,
}

impl ValueEnum for Transport {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::WebSocket, Self::Sse, Self::HttpStream, Self::LongPoll]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(match self {
            Self::Sse => "Server-sent events",
            Self::HttpStream => "Responses that go on",
            Self::LongPoll => "One request after another, each answered with what there is",
            _ => "WebSockets",
        }))
    }
}

/// How many threads to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Threads {
    /// As many as there are processors and, with the descriptor limit of each, as it takes.
    Auto,
    /// This many.
    Exactly(usize),
}

/// Load client for roost and for any other WebSocket server.
///
/// Opens connections, uses them as the scenario says (a command, or a file: `run FILE`), and checks that every message that should
/// have arrived did: once, and in order. Publishing is open-loop: the schedule is fixed beforehand,
/// and latency is measured from the intended send time, so a server that stalls can't hide it.
///
/// Exits with 0 when all went well, 1 when a connection or a message that should have arrived was
/// lost, 2 for a command line that makes no sense, 99 when a condition of --fail-if holds, and 130 when a signal (Ctrl-C) ended it early: the
/// figures so far are printed all the same.
#[derive(Clone, Debug, Parser, Serialize, Deserialize)]
#[command(name = "roost-load", version)]
pub struct Flags {
    /// The scenario, or another command.
    #[arg(value_enum, value_name = "COMMAND")]
    pub scenario: Scenario,

    /// The file of `run`, the name for `show` and `schema`, the reports for `compare`.
    #[arg(value_name = "OPERAND")]
    pub operands: Vec<String>,

    /// Run on these machines instead of this one, each with a `roost-load agent`: connections and rates are divided
    /// among them, and there is one report. They need the --token of the agents.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', requires = "token")]
    #[serde(skip)]
    pub agents: Vec<String>,

    /// agent: the address to wait at.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7400")]
    #[serde(skip, default = "listen")]
    pub listen: SocketAddr,

    /// A secret that agents and those who use them share; an agent without one makes one and prints it. It is
    /// proved and not sent, but what follows is not encrypted: use a private network, or SSH.
    #[arg(long, value_name = "SECRET", env = "ROOST_LOAD_TOKEN", hide_env_values = true)]
    #[serde(skip)]
    pub token: Option<String>,

    /// The server, as ws://host:port/path, or wss:// for TLS; http:// and https:// are the same. With --transport the path may be that
    /// of its WebSockets all the same: /connection/websocket becomes /connection/sse, for example.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,

    /// A header of the requests that open connections, as 'Name: value'; repeat it for more. `{n}` in a value,
    /// and in the path and query of --url, is the number of the connection, from 0. Host is possible too.
    #[arg(long, value_name = "HEADER")]
    pub header: Vec<String>,

    /// The Origin header, as browsers send it.
    #[arg(long, value_name = "ORIGIN")]
    pub origin: Option<String>,

    /// The Cookie header.
    #[arg(long, value_name = "COOKIES")]
    pub cookie: Option<String>,

    /// A WebSocket subprotocol to request; repeat it for more.
    #[arg(long, value_name = "NAME")]
    pub subprotocol: Vec<String>,

    /// Credentials of basic authentication.
    #[arg(long, value_name = "NAME:PASSWORD")]
    pub user: Option<String>,

    /// A token for `Authorization: Bearer`.
    #[arg(long, value_name = "TOKEN", conflicts_with = "user")]
    pub bearer: Option<String>,

    /// TLS: accept any certificate of the server.
    #[arg(long)]
    pub insecure: bool,

    /// TLS: certificates (PEM) that sign the server's, instead of those of this machine.
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,

    /// TLS: connections after the first ones resume sessions. For servers that send a ticket behind the
    /// handshake, as roost does. [default: each handshake is a full one]
    #[arg(long)]
    pub resume: bool,

    /// TLS: offer this suite alone, such as TLS13_CHACHA20_POLY1305_SHA256 or
    /// TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 (TLS 1.2). [default: all]
    #[arg(long, value_name = "NAME")]
    pub suite: Option<String>,

    /// How many connections to open; those of several populations in proportion. [default: 100]
    #[arg(long, value_name = "N")]
    pub connections: Option<u32>,

    /// The protocol. [default: auto]
    #[arg(long, value_enum)]
    pub protocol: Option<Protocol>,

    /// The transport of the connections; others than WebSockets need the client protocol. They are pinged as
    /// those of SDKs are: pongs go over one connection of each thread. [default: websocket]
    #[arg(long, value_enum)]
    pub transport: Option<Transport>,

    /// WebSockets: ask for permessage-deflate without context takeover; a server that doesn't agree is
    /// an error.
    #[arg(long)]
    pub compression: bool,

    /// HMAC key: each connection signs a JWT (HS256) of its own, with a user id of 16 bytes.
    #[arg(long, value_name = "KEY")]
    pub secret: Option<String>,

    /// Channel to subscribe to; with --channels above 1 the names are NAME-0, NAME-1 and so on.
    /// long_poll needs a channel that can be recovered. [default: none for idle and storm, load for
    /// the others]
    #[arg(long, value_name = "NAME")]
    pub subscribe: Option<String>,

    /// How many channels the connections are spread over (one each). [default: 1]
    #[arg(long, value_name = "N")]
    pub channels: Option<u32>,

    /// storm: which share of the connections to drop, 0 to 1. [default: 0.5]
    #[arg(long, value_name = "SHARE")]
    pub drop_share: Option<f64>,

    /// upgrade: the command that replaces the server, for a shell. It fails the run when its exit code is not 0;
    /// one that is still running at the end, as the new server itself, is left alone.
    #[arg(long, value_name = "COMMAND")]
    pub run: Option<String>,

    /// Which share of the connections reads nothing while messages are sent, 0 to 1. What they
    /// miss is not counted as lost. [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub slow_share: Option<f64>,

    /// broadcast, channels, storm, upgrade: publish through the HTTP API at http://host:port/api instead of
    /// over one more connection. A channel has one request under way at a time, so that its order
    /// is kept: what is due meanwhile waits, and its latency shows that. Several channels have up
    /// to --in-flight requests under way. One that takes longer than --connect-timeout ends
    /// publishing.
    #[arg(long, value_name = "URL")]
    pub api_url: Option<String>,

    /// Key for --api-url; for Mercure a JWT that may publish.
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,

    /// With --api-url: a publish that fails is tried again for so long, with an idempotency key, before the
    /// next one of its channel leaves.
    #[arg(long, value_name = "TIME", requires = "api_url", value_parser = duration)]
    pub retry: Option<Duration>,

    /// Do as SDKs do: a connection that ends is made again, a subscription that the server ends is taken up
    /// again, and missed messages are recovered; the channel needs a history. Messages that the server
    /// announces as not recovered are counted, and are not lost. WebSockets only.
    #[arg(long)]
    pub recover: bool,

    /// Messages published per second, over all channels; for echo over all connections. Of a scenario file: its
    /// highest rate, and all others in proportion. [default: 10; echo: as fast as they come back]
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,

    /// Publish exactly N messages instead of publishing for --duration. For idle and storm: publish
    /// so many at the end.
    #[arg(long, value_name = "N")]
    pub publish: Option<u32>,

    /// Bytes of a message's payload; it is never shorter than what the checks need (about 80).
    /// [default: 128]
    #[arg(long, value_name = "BYTES")]
    pub size: Option<usize>,

    /// Without --rate: messages in flight, for echo those of each connection; for broadcast at most
    /// 1024, and the next one leaves when the one so many before it has reached all. [default: 1 for
    /// echo; a broadcast keeps its rate]
    #[arg(long, value_name = "N")]
    pub window: Option<u32>,

    /// Wait for messages by asking again and again: takes whole processors, and spares a server that
    /// is measured beside them the cost of waking this client.
    #[arg(long)]
    pub spin: bool,

    /// The payload of messages, in place of --size: a text, or @FILE. `{stamp}`, once, is what the checks need (a JSON
    /// object); `{counter}` the number of the message in its channel, `{n}` that of the channel or the echoing
    /// connection, `{random:N}` N letters and digits, `{timestamp}` milliseconds since 1970.
    #[arg(long, value_name = "TEXT")]
    pub payload: Option<String>,

    /// Send raw messages in binary frames.
    #[arg(long)]
    pub binary: bool,

    /// How long to send; for idle how long to hold. Of a scenario file: all phases with a duration together,
    /// each in proportion. [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,

    /// Threads, or auto. Each has its own descriptor table.
    #[arg(long, value_name = "N", default_value = "auto", value_parser = threads)]
    pub threads: Threads,

    /// The server's process on this machine, for its memory and processor time.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,

    /// The run has failed, with exit code 99, if this holds, as 'p99>50ms' or 'lost>0'; repeat it for more.
    /// Figures: p50, p90, p99, p99.9, max, mean, raw.p99, raw.max (latency), pause.p99, pause.max (upgrade), failed,
    /// dropped, opened (connections), sent, received, lost, duplicated, out_of_order (messages), connect_rate,
    /// sent_rate, received_rate (per second), back (storm). One that was not measured fails as well.
    #[arg(long, value_name = "CONDITION")]
    pub fail_if: Vec<String>,

    /// Search for the highest rate, or the most connections, at which no condition of --until holds and nothing is
    /// lost: run after run, from --rate or --connections on, first doubled, then halved down to 5 percent.
    #[arg(long, value_enum, value_name = "WHAT", requires = "until")]
    pub search: Option<Goal>,

    /// The condition that ends a search, as of --fail-if; repeat it for more.
    #[arg(long, value_name = "CONDITION", requires = "search")]
    pub until: Vec<String>,

    /// Print the report as one JSON object in the last line of standard output, or write it to a file, with what
    /// happened second by second. `schema report` prints its schema.
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[serde(skip)]
    pub json: Option<Option<PathBuf>>,

    /// Write what happened second by second: one line each, of comma-separated values.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub csv: Option<PathBuf>,

    /// Write the latencies of each second as an HDR histogram log (V2), in microseconds.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub hdr: Option<PathBuf>,

    /// Write the report as a page that needs no other file.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub html: Option<PathBuf>,

    /// Connections opened per second at most. [default: as fast as it goes]
    #[arg(long, value_name = "PER_SECOND")]
    pub connect_rate: Option<f64>,

    /// Handshakes under way at once, over all threads (at least 4 each); and requests to --api-url,
    /// of which each channel has one at most. [default: 512]
    #[arg(long, value_name = "N")]
    pub in_flight: Option<u32>,

    /// How long one connection may take to open. [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub connect_timeout: Option<Duration>,

    /// How often to try to open a connection before it counts as failed. [default: 4]
    #[arg(long, value_name = "N")]
    pub tries: Option<u8>,

    /// After the last message was sent: give up when none has arrived for so long. [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub drain: Option<Duration>,

    /// Hold the connections for so long after they are open, and again after the last message.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    pub hold: Duration,

    /// Before messages are sent: hold until each connection has answered N pings of the server, at
    /// most 60 seconds for each. [default: 0]
    #[arg(long, value_name = "N")]
    pub pings: Option<u16>,

    /// Ping each WebSocket so often, and measure how long its pong takes.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub ping_every: Option<Duration>,

    /// Open and close N connections before anything is measured. [default: 0]
    #[arg(long, value_name = "N")]
    pub settle: Option<u32>,

    /// With --pid: also report the slope of the server's memory from N connections to all.
    #[arg(long, value_name = "N", requires = "pid")]
    pub rss_from: Option<u32>,

    /// The text of files, for a machine that has none of them.
    #[arg(skip)]
    pub(crate) packed: Option<Packed>,
}

/// The files of a scenario on their way to an agent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Packed {
    /// The scenario: its name, and its text.
    pub(crate) scenario: (String, String),
    /// The template of --payload.
    pub(crate) payload: Option<String>,
    /// The certificates of --cacert.
    pub(crate) cacert: Option<String>,
}

fn listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7400))
}

impl Flags {
    /// How servers with TLS are checked.
    pub(crate) fn tls(&self) -> TlsFlags<'_> {
        let Self { insecure, resume, .. } = *self;
        let pem = self.packed.as_ref().and_then(|of| of.cacert.as_deref());
        let cacert = self.cacert.as_deref();
        TlsFlags { insecure, resume, cacert, pem, suite: self.suite.as_deref() }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error} (like 10s, 1m30s, 300ms)"))
}

fn threads(text: &str) -> Result<Threads, String> {
    match text.parse() {
        Ok(count) if count >= 1 => Ok(Threads::Exactly(count)),
        _ if text == "auto" => Ok(Threads::Auto),
        _ => Err("a number from 1, or auto".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Flags::command().debug_assert();
    }

    #[test]
    fn times_and_threads() {
        let parse = |extra: &[&str]| {
            let base = ["roost-load", "idle", "--url", "ws://h/"];
            Flags::try_parse_from(base.iter().chain(extra))
        };
        let minutes = parse(&["--duration", "1m30s"]).unwrap().duration;
        assert_eq!(minutes, Some(Duration::from_secs(90)));
        assert!(parse(&["--duration", "-1s"]).is_err());
        assert_eq!(parse(&[]).unwrap().threads, Threads::Auto);
        assert_eq!(parse(&["--threads", "3"]).unwrap().threads, Threads::Exactly(3));
        assert!(parse(&["--threads", "0"]).is_err());
    }
}
