//! JSON replies: values in, one Reply each out, appended to a buffer.
//!
//! No frame header and no line feed: the caller joins replies with `\n`. Empty fields are left out,
//! as the schema wants, except those that are always written; empty results are there as `{}`.
//! Written by hand because the payloads are JSON already and publications are the hot path;
//! escaping is serde_json's.

use super::codes::{ErrorCode, Unsubscribed};
use super::reply::{ConnectResult, Publication, SubscribeResult};

/// A ping: the Reply with nothing in it.
pub const PING: &[u8] = b"{}";

/// Reply to `connect`.
pub fn put_connect(out: &mut Vec<u8>, id: u32, result: &ConnectResult<'_>) {
    reply(out, id, "connect", |fields| {
        fields.text("client", result.client);
        fields.text("version", result.version);
        fields.flag("expires", result.expires);
        fields.number("ttl", result.ttl);
        fields.payload("data", result.data.unwrap_or_default());
        if !result.subs.is_empty() {
            fields.object("subs", |subs| {
                for (channel, sub) in result.subs {
                    subs.escaped_name(channel);
                    object(subs.out, |fields| subscribe_fields(fields, sub));
                }
            });
        }
        fields.number("ping", result.ping);
        fields.flag("pong", result.pong);
        fields.text("session", result.session);
        fields.text("node", result.node);
        fields.number("time", result.time);
    });
}

/// Reply to `subscribe`.
pub fn put_subscribe(out: &mut Vec<u8>, id: u32, result: &SubscribeResult<'_>) {
    reply(out, id, "subscribe", |fields| subscribe_fields(fields, result));
}

/// Reply to `unsubscribe`.
pub fn put_unsubscribe(out: &mut Vec<u8>, id: u32) {
    reply(out, id, "unsubscribe", |_| ());
}

/// Reply to `publish`.
pub fn put_publish(out: &mut Vec<u8>, id: u32) {
    reply(out, id, "publish", |_| ());
}

/// Reply to `refresh`; `ttl` in seconds, none when the connection no longer expires.
pub fn put_refresh(out: &mut Vec<u8>, id: u32, ttl: Option<u32>) {
    reply(out, id, "refresh", |fields| expiry_fields(fields, ttl));
}

/// Reply to `sub_refresh`; `ttl` in seconds, none when the subscription no longer expires.
pub fn put_sub_refresh(out: &mut Vec<u8>, id: u32, ttl: Option<u32>) {
    reply(out, id, "sub_refresh", |fields| expiry_fields(fields, ttl));
}

/// Reply to any command: it failed.
pub fn put_error(out: &mut Vec<u8>, id: u32, error: ErrorCode) {
    put_error_as(out, id, error, error.temporary());
}

/// The same, said to be temporary whatever the error: the answer to a `sub_refresh` with an expired
/// token, after which SDKs come back with a new one.
pub fn put_temporary_error(out: &mut Vec<u8>, id: u32, error: ErrorCode) {
    put_error_as(out, id, error, true);
}

fn put_error_as(out: &mut Vec<u8>, id: u32, error: ErrorCode, temporary: bool) {
    reply(out, id, "error", |fields| {
        fields.number("code", error.code());
        fields.text("message", error.message());
        fields.flag("temporary", temporary);
    });
}

/// Push of a live publication. Written once for all subscribers of the channel.
pub fn put_push_publication(out: &mut Vec<u8>, channel: &str, publication: &Publication<'_>) {
    push(out, channel, "pub", |fields| publication_fields(fields, publication));
}

/// Push: the server ended the subscription.
pub fn put_push_unsubscribe(out: &mut Vec<u8>, channel: &str, why: Unsubscribed) {
    push(out, channel, "unsubscribe", |fields| {
        fields.number("code", why.code());
        fields.text("reason", why.reason());
    });
}

/// A bare ClientInfo, to be the `info` of publications, joins and presence entries.
pub fn put_client_info(
    out: &mut Vec<u8>,
    user: &str,
    client: &str,
    conn_info: Option<&[u8]>,
    chan_info: Option<&[u8]>,
) {
    object(out, |fields| {
        // Always written, also when empty.
        fields.name("user");
        put_string(fields.out, user);
        fields.name("client");
        put_string(fields.out, client);
        fields.payload("conn_info", conn_info.unwrap_or_default());
        fields.payload("chan_info", chan_info.unwrap_or_default());
    });
}

fn subscribe_fields(fields: &mut Fields<'_>, result: &SubscribeResult<'_>) {
    fields.flag("expires", result.expires);
    fields.number("ttl", result.ttl);
    fields.flag("recoverable", result.recoverable);
    fields.text("epoch", result.epoch);
    if !result.publications.is_empty() {
        fields.name("publications");
        let mut before = b'[';
        for publication in result.publications {
            fields.out.push(before);
            object(fields.out, |fields| publication_fields(fields, publication));
            before = b',';
        }
        fields.out.push(b']');
    }
    fields.flag("recovered", result.recovered);
    fields.number("offset", result.offset);
    fields.flag("positioned", result.positioned);
    fields.payload("data", result.data.unwrap_or_default());
    fields.flag("was_recovering", result.was_recovering);
    fields.flag("delta", result.delta);
}

fn publication_fields(fields: &mut Fields<'_>, publication: &Publication<'_>) {
    fields.payload("data", publication.data);
    fields.payload("info", publication.info.unwrap_or_default());
    fields.number("offset", publication.offset);
    if !publication.tags.is_empty() {
        fields.object("tags", |tags| {
            for (key, value) in publication.tags {
                tags.escaped_name(key);
                put_string(tags.out, value);
            }
        });
    }
    fields.text("epoch", publication.epoch.unwrap_or_default());
}

fn expiry_fields(fields: &mut Fields<'_>, ttl: Option<u32>) {
    fields.flag("expires", ttl.is_some());
    fields.number("ttl", ttl.unwrap_or_default());
}

/// `{"id":1,"<result>":{...}}`; an id of 0 is left out like any other 0.
fn reply(out: &mut Vec<u8>, id: u32, result: &str, fill: impl FnOnce(&mut Fields<'_>)) {
    object(out, |reply| {
        reply.number("id", id);
        reply.object(result, fill);
    });
}

/// `{"push":{"channel":"...","<body>":{...}}}`.
fn push(out: &mut Vec<u8>, channel: &str, body: &str, fill: impl FnOnce(&mut Fields<'_>)) {
    object(out, |reply| {
        reply.object("push", |push| {
            push.text("channel", channel);
            push.object(body, fill);
        });
    });
}

fn object(out: &mut Vec<u8>, fill: impl FnOnce(&mut Fields<'_>)) {
    out.push(b'{');
    fill(&mut Fields { out, started: false });
    out.push(b'}');
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

    fn object(&mut self, name: &str, fill: impl FnOnce(&mut Fields<'_>)) {
        self.name(name);
        object(self.out, fill);
    }

    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.name(name);
            put_string(self.out, value);
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.name(name);
            self.out.extend_from_slice(b"true");
        }
    }

    fn number<N: serde::Serialize + Default + PartialEq>(&mut self, name: &str, value: N) {
        if value != N::default() {
            self.name(name);
            put_value(self.out, &value);
        }
    }

    /// JSON put in as it is, less its line feeds, which are white space there: one message stays on
    /// one line.
    fn payload(&mut self, name: &str, json: &[u8]) {
        if json.is_empty() {
            return;
        }
        self.name(name);
        if json.contains(&b'\n') {
            json.split(|&byte| byte == b'\n').for_each(|part| self.out.extend_from_slice(part));
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
