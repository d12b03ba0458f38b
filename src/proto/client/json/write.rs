//! JSON replies: values in, one Reply each out, appended to a buffer.
//!
//! No frame header and no line feed: the caller joins replies with `\n`. Empty fields are left out,
//! as the schema wants, except those that are always written; empty results are there as `{}`.
//! Written by hand because the payloads are JSON already and publications are the hot path;
//! escaping is serde_json's.

use super::super::reply::{
    Body, ConnectResult, DataForm, Publication, Push, Reply, SubscribeResult,
};
use crate::base::info::ClientInfo;

/// See [`Encoding::put_reply`](super::super::Encoding::put_reply). An id of 0 is left out like any
/// other 0.
pub(crate) fn put_reply(out: &mut Vec<u8>, id: u32, reply: &Reply<'_>) -> Option<usize> {
    object(out, |fields| {
        fields.number("id", id);
        match *reply {
            Reply::Error { code, temporary } => fields.object("error", |fields| {
                fields.number("code", code.code());
                fields.text("message", code.message());
                fields.flag("temporary", temporary);
            }),
            Reply::AppError { code, message, temporary } => fields.object("error", |fields| {
                fields.number("code", code);
                fields.text("message", message);
                fields.flag("temporary", temporary);
            }),
            Reply::Connect(result) => {
                fields.object("connect", |fields| connect_fields(fields, &result, false));
            }
            Reply::Subscribe(result) => {
                return fields.object("subscribe", |fields| subscribe_fields(fields, &result));
            }
            Reply::Unsubscribe => fields.object("unsubscribe", |_| ()),
            Reply::Publish => fields.object("publish", |_| ()),
            Reply::Presence(body) => return fields.body("presence", body),
            Reply::PresenceStats { clients, users } => fields.object("presence_stats", |fields| {
                fields.value("num_clients", clients);
                fields.value("num_users", users);
            }),
            Reply::History(body) => return fields.body("history", body),
            Reply::Rpc { data } => fields.object("rpc", |fields| fields.payload("data", data)),
            Reply::Refresh { ttl } => {
                fields.object("refresh", |fields| expiry_fields(fields, ttl));
            }
            Reply::SubRefresh { ttl } => {
                fields.object("sub_refresh", |fields| expiry_fields(fields, ttl));
            }
        }
        None
    })
}

/// See [`Encoding::put_push`](super::super::Encoding::put_push).
pub(crate) fn put_push(out: &mut Vec<u8>, channel: &str, push: &Push<'_>) {
    if let Push::Publication(publication) = push {
        out.reserve(channel.len() + room_for(publication));
    }
    object(out, |fields| {
        fields.object("push", |fields| push_fields(fields, channel, push));
    });
}

/// Bytes that a publication takes with the names around it, unless it has much to escape, or tags: a buffer
/// that is made at its length doesn't grow piece by piece.
fn room_for(publication: &Publication<'_>) -> usize {
    const NAMES: usize = 96;
    let info = publication.info.as_ref().map_or(0, |info| {
        NAMES + info.user.len() + info.client.len() + info.conn_info.len() + info.chan_info.len()
    });
    NAMES + publication.data.len() + info
}

/// A push with no Reply around it.
pub(crate) fn put_bare_push(out: &mut Vec<u8>, channel: &str, push: &Push<'_>) {
    object(out, |fields| push_fields(fields, channel, push));
}

fn push_fields(fields: &mut Fields<'_>, channel: &str, push: &Push<'_>) {
    fields.text("channel", channel);
    match *push {
        Push::Publication(publication) => {
            fields.object("pub", |fields| publication_fields(fields, &publication));
        }
        Push::Join(info) => fields.object("join", |fields| fields.info(&info)),
        Push::Leave(info) => fields.object("leave", |fields| fields.info(&info)),
        Push::Unsubscribe { code, reason } => fields.object("unsubscribe", |fields| {
            fields.number("code", code);
            fields.text("reason", reason);
        }),
        Push::Subscribe(subscribe) => fields.object("subscribe", |fields| {
            fields.flag("recoverable", subscribe.recoverable);
            fields.text("epoch", subscribe.epoch);
            fields.number("offset", subscribe.offset);
            fields.flag("positioned", subscribe.positioned);
            fields.payload("data", subscribe.data);
        }),
        Push::Message(data) => {
            fields.object("message", |fields| fields.payload("data", data));
        }
        Push::Connect(result) => {
            fields.object("connect", |fields| connect_fields(fields, &result, false));
        }
        Push::Disconnect { code, reason } => fields.object("disconnect", |fields| {
            fields.number("code", code);
            fields.text("reason", reason);
        }),
        Push::Refresh { ttl } => fields.object("refresh", |fields| expiry_fields(fields, ttl)),
    }
}

/// See [`put_connect_result`](super::super::put_connect_result).
pub(crate) fn put_connect_result(out: &mut Vec<u8>, result: &ConnectResult<'_>) {
    object(out, |fields| connect_fields(fields, result, true));
}

/// Appends a publication, alone.
pub(crate) fn put_publication(out: &mut Vec<u8>, publication: &Publication<'_>) {
    object(out, |fields| publication_fields(fields, publication));
}

/// See [`Encoding::put_publications`](super::super::Encoding::put_publications).
pub(crate) fn put_publications<'p>(
    out: &mut Vec<u8>,
    publications: impl IntoIterator<Item = Publication<'p>>,
) {
    let mut publications = publications.into_iter().peekable();
    // An empty list is left out, unlike that of a HistoryResult.
    if publications.peek().is_some() {
        list(out, publications);
    }
}

/// See [`Encoding::put_history`](super::super::Encoding::put_history).
pub(crate) fn put_history<'p>(
    out: &mut Vec<u8>,
    publications: impl IntoIterator<Item = Publication<'p>>,
    epoch: &str,
    offset: u64,
) {
    object(out, |fields| {
        // Always written, also when empty.
        fields.name("publications");
        list(fields.out, publications);
        fields.string("epoch", epoch);
        fields.value("offset", offset);
    });
}

/// See [`Encoding::put_presence`](super::super::Encoding::put_presence).
pub(crate) fn put_presence<'p>(
    out: &mut Vec<u8>,
    entries: impl IntoIterator<Item = ClientInfo<'p>>,
) {
    object(out, |fields| {
        // Always written, also when empty.
        fields.object("presence", |presence| {
            for info in entries {
                presence.escaped_name(info.client);
                object(presence.out, |fields| info_fields(fields, &info));
            }
        });
    });
}

/// See [`put_position`](super::super::put_position).
pub(crate) fn put_position(out: &mut Vec<u8>, channel: &str, epoch: &str, offset: u64) {
    put_string(out, channel);
    out.push(b':');
    object(out, |fields| {
        fields.number("offset", offset);
        fields.text("epoch", epoch);
    });
}

/// `positions`: where the client stands is written also where it is at the beginning, and whether all was
/// recovered also where it wasn't.
fn connect_fields(fields: &mut Fields<'_>, result: &ConnectResult<'_>, positions: bool) {
    fields.text("client", result.client);
    fields.text("version", result.version);
    fields.flag("expires", result.expires);
    fields.number("ttl", result.ttl);
    fields.payload("data", result.data);
    if !result.subs.is_empty() {
        fields.object("subs", |subs| {
            for (channel, sub) in result.subs {
                subs.escaped_name(channel);
                let elsewhere = object(subs.out, |fields| {
                    if positions && sub.offset == 0 {
                        fields.value("offset", 0);
                    }
                    if positions && sub.was_recovering && !sub.recovered {
                        fields.value("recovered", false);
                    }
                    subscribe_fields(fields, sub)
                });
                debug_assert!(elsewhere.is_none(), "publications of server-side ones are here");
            }
        });
    }
    fields.number("ping", result.ping);
    fields.flag("pong", result.pong);
    fields.text("session", result.session);
    fields.text("node", result.node);
    fields.number("time", result.time);
}

/// Returns where publications from elsewhere belong.
fn subscribe_fields(fields: &mut Fields<'_>, result: &SubscribeResult<'_>) -> Option<usize> {
    fields.flag("expires", result.expires);
    fields.number("ttl", result.ttl);
    fields.flag("recoverable", result.recoverable);
    fields.text("epoch", result.epoch);
    let elsewhere = match result.publications.len() {
        0 => None,
        _ => fields.body("publications", result.publications),
    };
    fields.flag("recovered", result.recovered);
    fields.number("offset", result.offset);
    fields.flag("positioned", result.positioned);
    fields.payload("data", result.data);
    fields.flag("was_recovering", result.was_recovering);
    fields.flag("delta", result.delta);
    elsewhere
}

fn publication_fields(fields: &mut Fields<'_>, publication: &Publication<'_>) {
    match publication.form {
        DataForm::Plain => fields.payload("data", publication.data),
        // Bytes that are not UTF-8 have no form here: the requester of a patch has checked them.
        DataForm::Text | DataForm::Patch => {
            fields.text("data", &String::from_utf8_lossy(publication.data));
        }
    }
    if let Some(info) = &publication.info {
        fields.info(info);
    }
    fields.number("offset", publication.offset);
    if !publication.tags.is_empty() {
        fields.object("tags", |tags| {
            for (name, value) in publication.tags.iter() {
                tags.escaped_name(name);
                put_string(tags.out, value);
            }
        });
    }
    fields.flag("delta", publication.form == DataForm::Patch);
    fields.text("channel", publication.channel);
    fields.text("epoch", publication.epoch.unwrap_or_default());
    fields.number("time", publication.time_ms);
}

fn info_fields(fields: &mut Fields<'_>, info: &ClientInfo<'_>) {
    // Always written, also when empty.
    fields.string("user", info.user);
    fields.string("client", info.client);
    fields.payload("conn_info", info.conn_info);
    fields.payload("chan_info", info.chan_info);
    fields.number("subscribed_at", info.subscribed_at);
}

fn expiry_fields(fields: &mut Fields<'_>, ttl: Option<u32>) {
    fields.flag("expires", ttl.is_some());
    fields.number("ttl", ttl.unwrap_or_default());
}

fn list<'p>(out: &mut Vec<u8>, publications: impl IntoIterator<Item = Publication<'p>>) {
    out.push(b'[');
    for (at, publication) in publications.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        object(out, |fields| publication_fields(fields, &publication));
    }
    out.push(b']');
}

fn object<R>(out: &mut Vec<u8>, fill: impl FnOnce(&mut Fields<'_>) -> R) -> R {
    out.push(b'{');
    let filled = fill(&mut Fields { out, started: false });
    out.push(b'}');
    filled
}

/// The members of an object that is being written. Names are the schema's and need no escape.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    started: bool,
}

impl Fields<'_> {
    fn name(&mut self, name: &str) {
        self.separate();
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn escaped_name(&mut self, name: &str) {
        self.separate();
        put_string(self.out, name);
        self.out.push(b':');
    }

    fn separate(&mut self) {
        if self.started {
            self.out.push(b',');
        }
        self.started = true;
    }

    fn object<R>(&mut self, name: &str, fill: impl FnOnce(&mut Fields<'_>) -> R) -> R {
        self.name(name);
        object(self.out, fill)
    }

    fn info(&mut self, info: &ClientInfo<'_>) {
        self.object("info", |fields| info_fields(fields, info));
    }

    /// A value that is made already. Returns where it belongs when it is elsewhere.
    fn body(&mut self, name: &str, body: Body<'_>) -> Option<usize> {
        self.name(name);
        match body {
            Body::Here(b"") | Body::Elsewhere(0) => self.out.extend_from_slice(b"{}"),
            Body::Here(json) => self.out.extend_from_slice(json),
            Body::Elsewhere(_) => return Some(self.out.len()),
        }
        None
    }

    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.string(name, value);
        }
    }

    /// A text that is written also when it is empty.
    fn string(&mut self, name: &str, value: &str) {
        self.name(name);
        put_string(self.out, value);
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.name(name);
            self.out.extend_from_slice(b"true");
        }
    }

    fn number<N: serde::Serialize + Default + PartialEq>(&mut self, name: &str, value: N) {
        if value != N::default() {
            self.value(name, value);
        }
    }

    /// A number that is written also when it is 0.
    fn value<N: serde::Serialize>(&mut self, name: &str, value: N) {
        self.name(name);
        put_value(self.out, &value);
    }

    /// JSON put in as it is, less its line ends, which are white space there: one message stays on one
    /// line, also where a carriage return ends one, as in server-sent events.
    fn payload(&mut self, name: &str, json: &[u8]) {
        if json.is_empty() {
            return;
        }
        self.name(name);
        let is_end = |byte: &u8| matches!(*byte, b'\n' | b'\r');
        // Without a short cut out of the loop, so that it becomes vector code.
        if json.iter().fold(false, |found, byte| found | is_end(byte)) {
            json.split(is_end).for_each(|part| self.out.extend_from_slice(part));
        } else {
            self.out.extend_from_slice(json);
        }
    }
}

/// A JSON string.
fn put_string(out: &mut Vec<u8>, text: &str) {
    // Without a short cut out of the loop, so that it becomes vector code.
    let plain = text
        .bytes()
        .fold(true, |plain, byte| plain & (byte >= 0x20) & (byte != b'"') & (byte != b'\\'));
    if plain {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        put_value(out, text);
    }
}

fn put_value<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Writing to a Vec does not fail, and the values here are numbers and strings.
    serde_json::to_writer(out, value).expect("numbers and strings have a JSON form");
}
