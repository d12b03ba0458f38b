//! The client protocol as a load client speaks it: small commands out, replies and pushes in.
//!
//! A node sends the same bytes to every subscriber, so what one text meant is remembered for a
//! moment ([`Memo`]): a thread with thousands of subscribers parses a message once.

use super::payload::{self, Stamp};
use super::recovery::Joined;
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
/// Id of its `refresh` commands.
pub(crate) const REFRESH_ID: u32 = 3;
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
    #[serde(flatten)]
    from: Option<RecoverFrom<'a>>,
}

#[derive(Serialize)]
struct RecoverFrom<'a> {
    recover: bool,
    offset: u64,
    epoch: &'a str,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
}

/// Appends `connect` and, with a channel, `subscribe` on the next line: one frame for both. With a
/// position, publications after it are recovered.
pub(crate) fn put_connect(
    token: Option<&str>,
    channel: Option<&str>,
    position: Option<(u64, &str)>,
    out: &mut Vec<u8>,
) {
    let connect = Connect { token, name: "roost-load" };
    put(&ConnectCommand { id: CONNECT_ID, connect }, out);
    if let Some(channel) = channel {
        out.push(b'\n');
        put_subscribe(channel, position, out);
    }
}

/// Appends a `subscribe`, from a position if there is one.
pub(crate) fn put_subscribe(channel: &str, position: Option<(u64, &str)>, out: &mut Vec<u8>) {
    let from = position.map(|(offset, epoch)| RecoverFrom { recover: true, offset, epoch });
    put(&SubscribeCommand { id: SUBSCRIBE_ID, subscribe: Subscribe { channel, from } }, out);
}

#[derive(Serialize)]
struct RefreshCommand<'a> {
    id: u32,
    refresh: Refresh<'a>,
}

#[derive(Serialize)]
struct Refresh<'a> {
    token: &'a str,
}

/// Appends a `refresh` with a new token.
pub(crate) fn put_refresh(token: &str, out: &mut Vec<u8>) {
    put(&RefreshCommand { id: REFRESH_ID, refresh: Refresh { token } }, out);
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
        let publish = Publish { channel, data, idempotency_key: None };
        put(&PublishCommand { id, publish }, out);
    }
}

/// Appends the body of a `publish` request of the HTTP API; else as [`put_publish`].
pub(crate) fn put_api_publish(
    channel: &str,
    data: &[u8],
    idempotency_key: Option<&str>,
    out: &mut Vec<u8>,
) {
    if let Ok(data) = serde_json::from_slice::<&RawValue>(data) {
        put(&Publish { channel, data, idempotency_key }, out);
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
    #[serde(borrow)]
    subscribe: Option<Subscribed<'a>>,
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
    #[serde(default)]
    offset: u64,
}

impl Publication<'_> {
    fn said(&self, run: u32) -> Said {
        let stamp = self.data.and_then(|data| payload::read(data.get(), run));
        stamp.map_or(Said::Other, |stamp| Said::Message(stamp, self.offset))
    }
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
    /// A message of ours, and its offset in its channel (0: none).
    Message(Stamp, u64),
    /// `subscribe` was answered, for a channel with positions.
    Subscribed(Joined),
    /// The server ended the subscription, with this code and for this reason.
    Unsubscribed(u32, Arc<str>),
    /// The server ended the connection, for this reason.
    Ended(Arc<str>),
    /// A text of a protocol that is none of JSON replies: a step of opening, perhaps.
    Text(Arc<str>),
    /// Anything else that is lawful: messages of others, joins and leaves.
    Other,
    /// Not a reply.
    Malformed,
}

/// Appends what each line of a client protocol frame meant.
pub(crate) fn read_replies(text: &str, run: u32, said: &mut Vec<Said>) {
    for line in text.split('\n') {
        read_reply(line, run, said);
    }
}

/// Appends what a line meant: one thing, and before it the publications that were recovered with it.
fn read_reply(line: &str, run: u32, said: &mut Vec<Said>) {
    let Ok(reply) = serde_json::from_str::<Reply<'_>>(line) else {
        return said.push(Said::Malformed);
    };
    if let Some(Subscribed { publications, .. }) = &reply.subscribe {
        said.extend(publications.iter().map(|publication| publication.said(run)));
    }
    said.push(meaning(reply, run));
}

fn meaning(reply: Reply<'_>, run: u32) -> Said {
    if let Some(error) = reply.error {
        return Said::Refused(reply.id, format!("{} {}", error.code, error.message).into());
    }
    match reply.connect {
        Some(Connected { session, node }) if !session.is_empty() => {
            return Said::Session(session.into(), node.into());
        }
        _ => {}
    }
    match reply.subscribe {
        Some(sub) if !sub.epoch.is_empty() => return Said::Subscribed(sub.joined()),
        _ if reply.id > 0 => return Said::Done(reply.id),
        _ => {}
    }
    let Some(push) = reply.push else { return Said::Ping };
    if let Some(publication) = push.publication {
        return publication.said(run);
    }
    match (push.unsubscribe, push.disconnect) {
        (Some(end), _) => {
            let reason = format!("unsubscribed: {} {}", end.code, end.reason);
            Said::Unsubscribed(end.code, reason.into())
        }
        (_, Some(end)) => Said::Ended(format!("disconnect: {} {}", end.code, end.reason).into()),
        _ => Said::Other,
    }
}

/// Appends what each event meant: data of events without a type.
pub(crate) fn read_events(text: &str, run: u32, said: &mut Vec<Said>) {
    let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    events.for_each(|event| read_reply(event, run, said));
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
    subs: BTreeMap<Cow<'a, str>, Subscribed<'a>>,
}

#[derive(Deserialize)]
struct Subscribed<'a> {
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

impl Subscribed<'_> {
    fn joined(self) -> Joined {
        let is_missing_some = self.was_recovering && !self.recovered;
        Joined { offset: self.offset, epoch: self.epoch.into(), is_missing_some }
    }
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
    Ok(Polled {
        said: sub.publications.iter().map(|publication| publication.said(run)).collect(),
        position: (sub.offset, sub.epoch.into()),
        lost: sub.was_recovering && !sub.recovered,
    })
}

/// Appends what a raw WebSocket message meant: a message of ours, or another's.
pub(crate) fn read_raw(text: &str, run: u32, said: &mut Vec<Said>) {
    let stamp = payload::read(text, run);
    said.push(stamp.map_or(Said::Other, |stamp| Said::Message(stamp, 0)));
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
        put_connect(Some("abc"), Some("news"), None, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"id\":1,\"connect\":{\"token\":\"abc\",\"name\":\"roost-load\"}}\n\
             {\"id\":2,\"subscribe\":{\"channel\":\"news\"}}"
        );
        let mut out = Vec::new();
        put_connect(None, None, None, &mut out);
        assert_eq!(out, br#"{"id":1,"connect":{"name":"roost-load"}}"#);
        let mut out = Vec::new();
        put_subscribe("news", Some((7, "e")), &mut out);
        assert_eq!(
            out,
            br#"{"id":2,"subscribe":{"channel":"news","recover":true,"offset":7,"epoch":"e"}}"#
        );
        let mut out = Vec::new();
        put_api_publish("c", b"1", Some("k"), &mut out);
        assert_eq!(out, br#"{"channel":"c","data":1,"idempotency_key":"k"}"#);
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
                Said::Message(stamp, 7),
            ),
            (r#"{"push":{"channel":"c","pub":{"data":[1]}}}"#.into(), Said::Other),
            (r#"{"push":{"channel":"c","join":{}}}"#.into(), Said::Other),
            (
                r#"{"push":{"channel":"c","unsubscribe":{"code":2000,"reason":"x"}}}"#.into(),
                Said::Unsubscribed(2000, "unsubscribed: 2000 x".into()),
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
    fn a_reply_brings_publications_before_its_position() {
        let stamp = Stamp { run: RUN, channel: 1, sequence: 2, intended_ns: 3, actual_ns: 4 };
        let data = r#"{"roost_load":9,"c":1,"s":2,"i":3,"a":4,"p":"xx"}"#;
        let joined = |is_missing_some| Joined { offset: 7, epoch: "e".into(), is_missing_some };
        let reply = format!(
            r#"{{"id":2,"subscribe":{{"recoverable":true,"epoch":"e","offset":7,"recovered":true,
            "was_recovering":true,"publications":[{{"data":{data},"offset":7}}]}}}}"#
        );
        let expected = [Said::Message(stamp, 7), Said::Subscribed(joined(false))];
        assert_eq!(replies(&reply.replace('\n', " ")), expected);
        let lost = r#"{"id":2,"subscribe":{"epoch":"e","offset":7,"was_recovering":true}}"#;
        assert_eq!(replies(lost), [Said::Subscribed(joined(true))]);
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
