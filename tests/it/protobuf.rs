//! Protobuf spoken from a table: commands in the JSON of the protocol become bytes, and what the
//! server sends becomes JSON, so that one transcript holds in both encodings. The table is the schema
//! of the specification (section 9) once more: no code is shared with the server.
//!
//! A payload that isn't JSON is written as the text `hex:` and its bytes.

use std::collections::HashMap;

use serde_json::value::RawValue;

/// The content of a field.
enum Kind {
    Bool,
    Int,
    Text,
    /// A payload: JSON as it stands, or `hex:`.
    Bytes,
    Nested(&'static Message),
    Each(&'static Kind),
    /// By text.
    Map(&'static Kind),
    /// Written in JSON when it is empty, too.
    Always(&'static Kind),
}

use Kind::{Always, Bool, Bytes, Each, Int, Map, Nested, Text};

/// Fields: number, name, what it holds.
struct Message(&'static [(u32, &'static str, Kind)]);

static COMMAND: Message = Message(&[
    (1, "id", Int),
    (4, "connect", Nested(&CONNECT)),
    (5, "subscribe", Nested(&SUBSCRIBE)),
    (6, "unsubscribe", Nested(&CHANNEL)),
    (7, "publish", Nested(&PUBLISH)),
    (8, "presence", Nested(&CHANNEL)),
    (9, "presence_stats", Nested(&CHANNEL)),
    (10, "history", Nested(&HISTORY)),
    (11, "ping", Nested(&NOTHING)),
    (12, "send", Nested(&DATA)),
    (13, "rpc", Nested(&RPC)),
    (14, "refresh", Nested(&REFRESH)),
    (15, "sub_refresh", Nested(&SUB_REFRESH)),
]);

static NOTHING: Message = Message(&[]);
static CHANNEL: Message = Message(&[(1, "channel", Text)]);
static DATA: Message = Message(&[(1, "data", Bytes)]);
static RPC: Message = Message(&[(1, "data", Bytes), (2, "method", Text)]);
static REFRESH: Message = Message(&[(1, "token", Text)]);

static CONNECT: Message = Message(&[
    (1, "token", Text),
    (2, "data", Bytes),
    (3, "subs", Map(&Nested(&SUBSCRIBE))),
    (4, "name", Text),
    (5, "version", Text),
    (6, "headers", Map(&Text)),
]);

static SUBSCRIBE: Message = Message(&[
    (1, "channel", Text),
    (2, "token", Text),
    (3, "recover", Bool),
    (6, "epoch", Text),
    (7, "offset", Int),
    (8, "data", Bytes),
    (9, "positioned", Bool),
    (10, "recoverable", Bool),
    (11, "join_leave", Bool),
    (12, "delta", Text),
    (13, "tf", Nested(&FILTER)),
    (14, "flag", Int),
    (15, "type", Int),
    (16, "phase", Int),
]);

static FILTER: Message = Message(&[
    (1, "op", Text),
    (2, "key", Text),
    (3, "cmp", Text),
    (4, "val", Text),
    (5, "vals", Each(&Text)),
    (6, "nodes", Each(&Nested(&FILTER))),
]);

static PUBLISH: Message = Message(&[
    (1, "channel", Text),
    (2, "data", Bytes),
    (3, "type", Int),
    (4, "key", Text),
    (5, "removed", Bool),
]);

static HISTORY: Message = Message(&[
    (1, "channel", Text),
    (7, "limit", Int),
    (8, "since", Nested(&POSITION)),
    (9, "reverse", Bool),
]);

static POSITION: Message = Message(&[(1, "offset", Int), (2, "epoch", Text)]);

static SUB_REFRESH: Message = Message(&[
    (1, "channel", Text),
    (2, "token", Text),
    (3, "type", Int),
    (4, "track", Each(&Nested(&TRACK))),
    (5, "untrack", Each(&Text)),
]);

static TRACK: Message = Message(&[(1, "signature", Text), (2, "items", Each(&Nested(&ITEM)))]);
static ITEM: Message = Message(&[(1, "key", Text), (2, "version", Int)]);

static REPLY: Message = Message(&[
    (1, "id", Int),
    (2, "error", Nested(&ERROR)),
    (4, "push", Nested(&PUSH)),
    (5, "connect", Nested(&CONNECTED)),
    (6, "subscribe", Nested(&SUBSCRIBED)),
    (7, "unsubscribe", Nested(&NOTHING)),
    (8, "publish", Nested(&NOTHING)),
    (9, "presence", Nested(&PRESENCE)),
    (10, "presence_stats", Nested(&STATS)),
    (11, "history", Nested(&PAGE)),
    (12, "ping", Nested(&NOTHING)),
    (13, "rpc", Nested(&DATA)),
    (14, "refresh", Nested(&EXPIRY)),
    (15, "sub_refresh", Nested(&SUB_EXPIRY)),
]);

static ERROR: Message = Message(&[(1, "code", Int), (2, "message", Text), (3, "temporary", Bool)]);

static PUSH: Message = Message(&[
    (2, "channel", Text),
    (4, "pub", Nested(&PUBLICATION)),
    (5, "join", Nested(&PERSON)),
    (6, "leave", Nested(&PERSON)),
    (7, "unsubscribe", Nested(&UNSUBSCRIBED)),
]);

static PERSON: Message = Message(&[(1, "info", Nested(&INFO))]);
static UNSUBSCRIBED: Message = Message(&[(2, "code", Int), (3, "reason", Text)]);

static INFO: Message = Message(&[
    (1, "user", Always(&Text)),
    (2, "client", Always(&Text)),
    (3, "conn_info", Bytes),
    (4, "chan_info", Bytes),
]);

static PUBLICATION: Message = Message(&[
    (4, "data", Bytes),
    (5, "info", Nested(&INFO)),
    (6, "offset", Int),
    (7, "tags", Map(&Text)),
    (8, "delta", Bool),
    (14, "epoch", Text),
]);

static CONNECTED: Message = Message(&[
    (1, "client", Text),
    (2, "version", Text),
    (3, "expires", Bool),
    (4, "ttl", Int),
    (5, "data", Bytes),
    (6, "subs", Map(&Nested(&SUBSCRIBED))),
    (7, "ping", Int),
    (8, "pong", Bool),
    (9, "session", Text),
    (10, "node", Text),
    (11, "time", Int),
]);

static SUBSCRIBED: Message = Message(&[
    (1, "expires", Bool),
    (2, "ttl", Int),
    (3, "recoverable", Bool),
    (6, "epoch", Text),
    (7, "publications", Each(&Nested(&PUBLICATION))),
    (8, "recovered", Bool),
    (9, "offset", Int),
    (10, "positioned", Bool),
    (11, "data", Bytes),
    (12, "was_recovering", Bool),
    (13, "delta", Bool),
]);

static PRESENCE: Message = Message(&[(1, "presence", Always(&Map(&Nested(&INFO))))]);
static STATS: Message =
    Message(&[(1, "num_clients", Always(&Int)), (2, "num_users", Always(&Int))]);

static PAGE: Message = Message(&[
    (1, "publications", Always(&Each(&Nested(&PUBLICATION)))),
    (2, "epoch", Always(&Text)),
    (3, "offset", Always(&Int)),
]);

static EXPIRY: Message =
    Message(&[(1, "client", Text), (2, "version", Text), (3, "expires", Bool), (4, "ttl", Int)]);

static SUB_EXPIRY: Message = Message(&[(1, "expires", Bool), (2, "ttl", Int)]);

/// The bytes of commands, one a line. What the schema doesn't have is left out.
pub(crate) fn commands(lines: &str) -> Vec<u8> {
    let mut out = vec![];
    for line in lines.lines() {
        let command: &RawValue = serde_json::from_str(line).expect(line);
        prefixed(&mut out, &COMMAND.bytes(command));
    }
    out
}

/// The messages of a frame from the server, as JSON.
pub(crate) fn replies(mut frame: &[u8]) -> Vec<String> {
    let mut replies = vec![];
    while !frame.is_empty() {
        replies.push(REPLY.json(taken(&mut frame)));
    }
    replies
}

/// The bytes behind `hex:`.
pub(crate) fn unhex(hex: &str) -> Vec<u8> {
    let hex: String = hex.split_ascii_whitespace().collect();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for at in 0.. {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            break;
        }
    }
    number
}

/// The next bytes that have their length before them.
fn taken<'b>(bytes: &mut &'b [u8]) -> &'b [u8] {
    let len = usize::try_from(varint(bytes)).unwrap();
    let (taken, rest) = bytes.split_at(len);
    *bytes = rest;
    taken
}

/// A value on the wire: a number or bytes.
#[derive(Clone, Copy)]
enum Wire<'b> {
    Number(u64),
    Bytes(&'b [u8]),
}

impl<'b> Wire<'b> {
    fn bytes(self) -> &'b [u8] {
        let Self::Bytes(bytes) = self else { panic!("a number in place of bytes") };
        bytes
    }

    fn number(self) -> u64 {
        let Self::Number(number) = self else { panic!("bytes in place of a number") };
        number
    }
}

/// All fields of a message, in the order of the wire.
fn fields(mut bytes: &[u8]) -> Vec<(u32, Wire<'_>)> {
    let mut fields = vec![];
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let value = match tag & 7 {
            0 => Wire::Number(varint(&mut bytes)),
            2 => Wire::Bytes(taken(&mut bytes)),
            other => panic!("wire type {other}"),
        };
        fields.push(((tag >> 3) as u32, value));
    }
    fields
}

impl Message {
    fn bytes(&self, json: &RawValue) -> Vec<u8> {
        let given: HashMap<&str, &RawValue> = serde_json::from_str(json.get()).unwrap();
        let mut out = vec![];
        for (number, name, kind) in self.0 {
            if let Some(value) = given.get(name) {
                kind.put(&mut out, *number, value);
            }
        }
        out
    }

    /// Fields in the order of the schema. One that the schema doesn't have is a fault.
    fn json(&self, bytes: &[u8]) -> String {
        let fields = fields(bytes);
        for (number, _) in &fields {
            assert!(self.0.iter().any(|(known, ..)| known == number), "field {number}");
        }
        let members = self.0.iter().filter_map(|(number, name, kind)| {
            let values = fields.iter().filter(|(field, _)| field == number);
            let values: Vec<Wire<'_>> = values.map(|(_, value)| *value).collect();
            kind.json(&values).map(|value| format!("\"{name}\":{value}"))
        });
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    }
}

impl Kind {
    fn put(&self, out: &mut Vec<u8>, number: u32, json: &RawValue) {
        let text = |json: &RawValue| serde_json::from_str::<String>(json.get()).unwrap();
        let mut put = |bytes: &[u8]| {
            put_varint(out, u64::from(number) << 3 | 2);
            prefixed(out, bytes);
        };
        match self {
            Always(kind) => kind.put(out, number, json),
            Bool | Int => {
                let value = match json.get() {
                    "true" => 1,
                    "false" => 0,
                    // Negative ones have ten bytes.
                    number => number.parse::<i128>().unwrap() as u64,
                };
                put_varint(out, u64::from(number) << 3);
                put_varint(out, value);
            }
            Text => put(text(json).as_bytes()),
            Bytes => match json.get().strip_prefix("\"hex:") {
                Some(hex) => put(&unhex(hex.trim_end_matches('"'))),
                None => put(json.get().as_bytes()),
            },
            Nested(message) => put(&message.bytes(json)),
            Each(kind) => {
                let values: Vec<&RawValue> = serde_json::from_str(json.get()).unwrap();
                values.into_iter().for_each(|value| kind.put(out, number, value));
            }
            Map(kind) => {
                let entries: HashMap<String, &RawValue> = serde_json::from_str(json.get()).unwrap();
                for (key, value) in entries {
                    let mut entry = vec![10];
                    prefixed(&mut entry, key.as_bytes());
                    kind.put(&mut entry, 2, value);
                    put(&entry);
                }
            }
        }
    }

    /// A field's values as JSON; nothing when there are none.
    fn json(&self, values: &[Wire<'_>]) -> Option<String> {
        if let Always(kind) = self {
            return kind.json(values).or_else(|| {
                Some(match kind {
                    Text => "\"\"".into(),
                    Each(_) => "[]".into(),
                    Map(_) => "{}".into(),
                    _ => "0".into(),
                })
            });
        }
        let last = *values.last()?;
        let text = |bytes: &[u8]| {
            serde_json::to_string(std::str::from_utf8(bytes).expect("text is UTF-8")).unwrap()
        };
        Some(match self {
            Bool => (last.number() != 0).to_string(),
            Int => last.number().to_string(),
            Text => text(last.bytes()),
            Bytes => match serde_json::from_slice::<&RawValue>(last.bytes()) {
                Ok(json) => json.get().into(),
                Err(_) => format!("\"hex:{}\"", hex(last.bytes())),
            },
            Nested(message) => message.json(last.bytes()),
            Each(kind) => {
                let each = values.iter().filter_map(|value| kind.json(&[*value]));
                format!("[{}]", each.collect::<Vec<_>>().join(","))
            }
            Map(kind) => {
                let entries = values.iter().map(|entry| {
                    let parts = fields(entry.bytes());
                    let part = |number| parts.iter().find(|(part, _)| *part == number);
                    let key = part(1).map_or(&b""[..], |(_, key)| key.bytes());
                    let value = part(2).map_or(Wire::Bytes(b""), |(_, value)| *value);
                    format!("{}:{}", text(key), kind.json(&[value]).unwrap())
                });
                format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
            }
            Always(_) => unreachable!("handled above"),
        })
    }
}

#[test]
fn the_vectors_of_the_specification() {
    for (command, bytes) in [
        ("{\"id\":1,\"connect\":{}}", "04 08 01 22 00"),
        ("{\"id\":1,\"connect\":{\"name\":\"js\"}}", "08 08 01 22 04 22 02 6a 73"),
        ("{\"id\":2,\"subscribe\":{\"channel\":\"test\"}}", "0a 08 02 2a 06 0a 04 74 65 73 74"),
        ("{}", "00"),
    ] {
        assert_eq!(commands(command), unhex(bytes), "{command}");
    }
    for (bytes, reply) in [
        (
            "19 08 02 12 15 08 67 12 11 70 65 72 6d 69 73 73 69 6f 6e 20 64 65 6e 69 65 64",
            "{\"id\":2,\"error\":{\"code\":103,\"message\":\"permission denied\"}}",
        ),
        (
            "10 22 0e 12 04 74 65 73 74 22 06 22 02 7b 7d 30 01",
            "{\"push\":{\"channel\":\"test\",\"pub\":{\"data\":{},\"offset\":1}}}",
        ),
        ("00", "{}"),
    ] {
        assert_eq!(replies(&unhex(bytes)), [reply]);
    }
}
