//! The client protocol as a load client speaks it: small commands out, replies and pushes in.
//!
//! A node sends the same bytes to every subscriber, so what one text meant is remembered for a
//! moment ([`Memo`]): a thread with thousands of subscribers parses a message once.

use super::payload::{self, Stamp};
use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// Id of the `connect` command of every connection.
pub(crate) const CONNECT_ID: u32 = 1;
/// Id of its `subscribe` command.
pub(crate) const SUBSCRIBE_ID: u32 = 2;
/// The answer to a ping: an empty command.
pub(crate) const PONG: &str = "{}";

#[derive(Serialize)]
struct ConnectCommand<'a> {
    id: u32,
    connect: Connect<'a>,
}

#[derive(Serialize)]
struct Connect<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    name: &'static str,
}

#[derive(Serialize)]
struct SubscribeCommand<'a> {
    id: u32,
    subscribe: Subscribe<'a>,
}

#[derive(Serialize)]
struct Subscribe<'a> {
    channel: &'a str,
}

#[derive(Serialize)]
struct PublishCommand<'a> {
    id: u32,
    publish: Publish<'a>,
}

#[derive(Serialize)]
struct Publish<'a> {
    channel: &'a str,
    data: &'a RawValue,
}

/// Appends `connect` and, with a channel, `subscribe` on the next line: one frame for both.
pub(crate) fn put_connect(token: Option<&str>, channel: Option<&str>, out: &mut Vec<u8>) {
    let connect = Connect { token, name: "roost-load" };
    put(&ConnectCommand { id: CONNECT_ID, connect }, out);
    if let Some(channel) = channel {
        out.push(b'\n');
        put(&SubscribeCommand { id: SUBSCRIBE_ID, subscribe: Subscribe { channel } }, out);
    }
}

#[derive(Serialize)]
struct Poll<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    subs: BTreeMap<&'a str, PollFrom<'a>>,
}

#[derive(Serialize)]
struct PollFrom<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<&'a str>,
}

/// Appends the connect request of a poll: of one channel, from a position if there is one.
pub(crate) fn put_poll(
    token: Option<&str>,
    channel: &str,
    position: Option<&(u64, CompactString)>,
    out: &mut Vec<u8>,
) {
    let from = PollFrom {
        offset: position.map(|(offset, _)| *offset),
        epoch: position.map(|(_, epoch)| epoch.as_str()),
    };
    put(&Poll { token, subs: [(channel, from)].into() }, out);
}

#[derive(Serialize)]
struct Emulation<'a> {
    session: &'a str,
    node: &'a str,
    data: &'a str,
}

/// The body of a request to the up-link.
pub(crate) fn emulation(session: &str, node: &str, data: &str) -> String {
    // A struct of strings: nothing here can fail.
    serde_json::to_string(&Emulation { session, node, data }).unwrap_or_default()
}

/// Appends a `publish` of `data`, which is one JSON value; anything else is not sent as one.
pub(crate) fn put_publish(id: u32, channel: &str, data: &[u8], out: &mut Vec<u8>) {
    if let Ok(data) = serde_json::from_slice::<&RawValue>(data) {
        put(&PublishCommand { id, publish: Publish { channel, data } }, out);
    }
}

/// Appends the body of a `publish` request of the HTTP API; else as [`put_publish`].
pub(crate) fn put_api_publish(channel: &str, data: &[u8], out: &mut Vec<u8>) {
    if let Ok(data) = serde_json::from_slice::<&RawValue>(data) {
        put(&Publish { channel, data }, out);
    }
}

fn put(command: &impl Serialize, out: &mut Vec<u8>) {
    // Structs of strings and numbers into memory: nothing here can fail.
    let _ = serde_json::to_writer(out, command);
}

#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(default)]
    id: u32,
    #[serde(borrow)]
    error: Option<ReplyError<'a>>,
    #[serde(borrow)]
    push: Option<Push<'a>>,
    #[serde(borrow)]
    connect: Option<Connected<'a>>,
}

#[derive(Deserialize)]
struct Connected<'a> {
    #[serde(borrow, default)]
    session: Cow<'a, str>,
    #[serde(borrow, default)]
    node: Cow<'a, str>,
}

#[derive(Deserialize)]
struct ReplyError<'a> {
    #[serde(default)]
    code: u32,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Push<'a> {
    #[serde(borrow, rename = "pub")]
    publication: Option<Publication<'a>>,
    #[serde(borrow)]
    unsubscribe: Option<Ending<'a>>,
    #[serde(borrow)]
    disconnect: Option<Ending<'a>>,
}

#[derive(Deserialize)]
struct Publication<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Ending<'a> {
    #[serde(default)]
    code: u32,
    #[serde(borrow, default)]
    reason: Cow<'a, str>,
}

/// The meaning of a line from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// An empty reply: a pong is due.
    Ping,
    /// The command with this id was answered, and well.
    Done(u32),
    /// `connect` was, and these are session and node for the up-link.
    Session(CompactString, CompactString),
    /// The command with this id was refused, for this reason.
    Refused(u32, Arc<str>),
    /// A message of ours.
    Message(Stamp),
    /// The server ended the subscription or the connection, for this reason.
    Ended(Arc<str>),
    /// Anything else that is lawful: messages of others, joins and leaves.
    Other,
    /// Not a reply.
    Malformed,
}

/// Appends what each line of a client protocol frame meant.
pub(crate) fn read_replies(text: &str, run: u32, said: &mut Vec<Said>) {
    said.extend(text.split('\n').map(|line| read_reply(line, run)));
}

fn read_reply(line: &str, run: u32) -> Said {
    let Ok(reply) = serde_json::from_str::<Reply<'_>>(line) else { return Said::Malformed };
    if let Some(error) = reply.error {
        return Said::Refused(reply.id, format!("{} {}", error.code, error.message).into());
    }
    match reply.connect {
        Some(Connected { session, node }) if !session.is_empty() => {
            return Said::Session(session.into(), node.into());
        }
        _ if reply.id > 0 => return Said::Done(reply.id),
        _ => {}
    }
    let Some(push) = reply.push else { return Said::Ping };
    if let Some(publication) = push.publication {
        let stamp = publication.data.and_then(|data| payload::read(data.get(), run));
        return stamp.map_or(Said::Other, Said::Message);
    }
    match (push.unsubscribe, push.disconnect) {
        (Some(end), _) => Said::Ended(format!("unsubscribed: {} {}", end.code, end.reason).into()),
        (_, Some(end)) => Said::Ended(format!("disconnect: {} {}", end.code, end.reason).into()),
        _ => Said::Other,
    }
}

/// Appends what each event meant: data of events without a type.
pub(crate) fn read_events(text: &str, run: u32, said: &mut Vec<Said>) {
    let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    said.extend(events.map(|event| read_reply(event, run)));
}

/// The content of the answer to a poll.
pub(crate) struct Polled {
    /// Messages of ours.
    pub(crate) said: Vec<Said>,
    /// Where to go on from.
    pub(crate) position: (u64, CompactString),
    /// Something was lost.
    pub(crate) lost: bool,
}

#[derive(Deserialize)]
struct PollAnswer<'a> {
    #[serde(borrow)]
    error: Option<ReplyError<'a>>,
    #[serde(borrow)]
    disconnect: Option<Ending<'a>>,
    #[serde(borrow, default)]
    subs: BTreeMap<Cow<'a, str>, PolledSub<'a>>,
}

#[derive(Deserialize)]
struct PolledSub<'a> {
    #[serde(borrow, default)]
    publications: Vec<Publication<'a>>,
    #[serde(default)]
    offset: u64,
    #[serde(borrow, default)]
    epoch: Cow<'a, str>,
    #[serde(default)]
    recovered: bool,
    #[serde(default)]
    was_recovering: bool,
}

/// Reads the answer to a poll of one channel.
///
/// # Errors
/// Text for the user: it is an error, or none of a poll.
pub(crate) fn read_polled(body: &[u8], run: u32) -> Result<Polled, String> {
    let answer: PollAnswer<'_> =
        serde_json::from_slice(body).map_err(|_| "an answer that is no JSON object".to_owned())?;
    if let Some(ReplyError { code, message }) = answer.error {
        return Err(format!("connect refused: {code} {message}"));
    }
    if let Some(Ending { code, reason }) = answer.disconnect {
        return Err(format!("disconnect: {code} {reason}"));
    }
    let Some(sub) = answer.subs.into_values().next() else {
        return Err("an answer without the channel".to_owned());
    };
    let data = sub.publications.iter().filter_map(|publication| publication.data);
    let stamps = data.map(|data| payload::read(data.get(), run));
    Ok(Polled {
        said: stamps.map(|stamp| stamp.map_or(Said::Other, Said::Message)).collect(),
        position: (sub.offset, sub.epoch.into()),
        lost: sub.was_recovering && !sub.recovered,
    })
}

/// Appends what a raw WebSocket message meant: a message of ours, or another's.
pub(crate) fn read_raw(text: &str, run: u32, said: &mut Vec<Said>) {
    said.push(payload::read(text, run).map_or(Said::Other, Said::Message));
}

/// Texts that are remembered by one thread. With [`MEMO_TEXT_BYTES_MAX`] at most 1 MiB.
const MEMO_SLOTS: usize = 64;
/// Longer texts are parsed each time.
const MEMO_TEXT_BYTES_MAX: usize = 16 * 1024;

/// The meanings of recent texts, by their hash; a newer text takes an older one's slot.
///
/// Price of a hit: one hash and one comparison of the text, about 20 ns for 200 bytes, no heap.
pub(crate) struct Memo {
    hash: foldhash::fast::RandomState,
    slots: Box<[Remembered]>,
    /// Where texts that are not remembered are parsed to.
    scratch: Vec<Said>,
}

#[derive(Clone, Default)]
struct Remembered {
    text: Vec<u8>,
    said: Vec<Said>,
}

impl Memo {
    pub(crate) fn new() -> Self {
        Self {
            hash: foldhash::fast::RandomState::default(),
            slots: vec![Remembered::default(); MEMO_SLOTS].into_boxed_slice(),
            scratch: Vec::new(),
        }
    }

    /// The meaning of `text`: from memory, or by `parse`. It may be deflated.
    pub(crate) fn read(
        &mut self,
        text: &[u8],
        parse: impl FnOnce(&[u8], &mut Vec<Said>),
    ) -> &[Said] {
        if text.len() > MEMO_TEXT_BYTES_MAX {
            return self.read_afresh(text, parse);
        }
        let mut hasher = self.hash.build_hasher();
        hasher.write(text);
        let slot = &mut self.slots[hasher.finish() as usize % MEMO_SLOTS];
        if slot.text != text || slot.said.is_empty() {
            slot.said.clear();
            parse(text, &mut slot.said);
            slot.text.clear();
            slot.text.extend_from_slice(text);
        }
        &slot.said
    }

    /// The meaning of `text`, without remembering it: for texts that come once.
    pub(crate) fn read_afresh(
        &mut self,
        text: &[u8],
        parse: impl FnOnce(&[u8], &mut Vec<Said>),
    ) -> &[Said] {
        self.scratch.clear();
        parse(text, &mut self.scratch);
        &self.scratch
    }
}

/// The meaning of bytes as a text; bytes that are not UTF-8 have none.
pub(crate) fn as_text(text: &[u8], said: &mut Vec<Said>, parse: impl FnOnce(&str, &mut Vec<Said>)) {
    match simdutf8::basic::from_utf8(text) {
        Ok(text) => parse(text, said),
        Err(_) => said.push(Said::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u32 = 9;

    fn replies(text: &str) -> Vec<Said> {
        let mut said = Vec::new();
        read_replies(text, RUN, &mut said);
        said
    }

    #[test]
    fn commands_are_those_of_the_protocol() {
        let mut out = Vec::new();
        put_connect(Some("abc"), Some("news"), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"id\":1,\"connect\":{\"token\":\"abc\",\"name\":\"roost-load\"}}\n\
             {\"id\":2,\"subscribe\":{\"channel\":\"news\"}}"
        );
        let mut out = Vec::new();
        put_connect(None, None, &mut out);
        assert_eq!(out, br#"{"id":1,"connect":{"name":"roost-load"}}"#);
        let mut out = Vec::new();
        put_publish(3, "a\"b", br#"{"x":1}"#, &mut out);
        assert_eq!(out, br#"{"id":3,"publish":{"channel":"a\"b","data":{"x":1}}}"#);
    }

    #[test]
    fn every_kind_of_line() {
        let stamp = Stamp { run: RUN, channel: 1, sequence: 2, intended_ns: 3, actual_ns: 4 };
        let data = r#"{"roost_load":9,"c":1,"s":2,"i":3,"a":4,"p":"xx"}"#;
        let table = [
            ("{}".to_owned(), Said::Ping),
            (r#"{"id":1,"connect":{"client":"3f","ping":25,"pong":true}}"#.into(), Said::Done(1)),
            (r#"{"id":2,"subscribe":{}}"#.into(), Said::Done(2)),
            (
                r#"{"id":2,"error":{"code":103,"message":"permission denied"}}"#.into(),
                Said::Refused(2, "103 permission denied".into()),
            ),
            (
                format!(r#"{{"push":{{"channel":"c","pub":{{"data":{data},"offset":7}}}}}}"#),
                Said::Message(stamp),
            ),
            (r#"{"push":{"channel":"c","pub":{"data":[1]}}}"#.into(), Said::Other),
            (r#"{"push":{"channel":"c","join":{}}}"#.into(), Said::Other),
            (
                r#"{"push":{"channel":"c","unsubscribe":{"code":2000,"reason":"x"}}}"#.into(),
                Said::Ended("unsubscribed: 2000 x".into()),
            ),
            (
                r#"{"push":{"disconnect":{"code":3001,"reason":"shut\"down"}}}"#.into(),
                Said::Ended("disconnect: 3001 shut\"down".into()),
            ),
            ("{".into(), Said::Malformed),
            ("".into(), Said::Malformed),
        ];
        let all: Vec<&str> = table.iter().map(|(line, _)| line.as_str()).collect();
        let expected: Vec<Said> = table.iter().map(|(_, said)| said.clone()).collect();
        assert_eq!(replies(&all.join("\n")), expected);
    }

    #[test]
    fn a_text_is_parsed_once_while_it_is_remembered() {
        let mut memo = Memo::new();
        let mut parsed = 0;
        for _ in 0..3 {
            let said = memo.read(b"{}\n{}", |text, said| {
                parsed += 1;
                as_text(text, said, |text, said| read_replies(text, RUN, said));
            });
            assert_eq!(said, [Said::Ping, Said::Ping]);
        }
        assert_eq!(parsed, 1);
        for n in 0..10_000 {
            let text = format!("{{\"id\":{n}}}");
            let read = |text: &[u8], said: &mut Vec<Said>| {
                as_text(text, said, |text, said| read_replies(text, RUN, said));
            };
            let said = memo.read(text.as_bytes(), read).to_vec();
            assert_eq!(said, replies(&text));
        }
        let long = " ".repeat(MEMO_TEXT_BYTES_MAX) + "{}";
        for _ in 0..2 {
            memo.read(long.as_bytes(), |text, said| {
                parsed += 1;
                as_text(text, said, |text, said| read_replies(text, RUN, said));
            });
        }
        assert_eq!(parsed, 3, "long texts are not kept");
    }
}
