//! What the operations of a home share: the ways of a step, commands to the broker, options of streams.

use crate::base::id::ShardId;
use crate::edge::channels::Namespace;
use crate::hub::broker::Command;
use crate::hub::history::StreamOptions;
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::mail::{BROKER, Mail};

/// The ways of a step: what it reads, and where mail goes.
pub(super) struct Turn<'a> {
    pub(super) cx: &'a Cx,
    pub(super) out: &'a mut Post,
    pub(super) codec: &'a mut Codec,
}

/// Sends a command to the broker of channels.
pub(super) fn command(cx: &Cx, out: &mut Post, command: Command) {
    command_to(cx, out, BROKER, command);
}

/// Sends a command to a broker.
pub(super) fn command_to(cx: &Cx, out: &mut Post, broker: ShardId, command: Command) {
    if matches!(command, Command::Read { .. }) {
        cx.counters().broker_reads.add(1);
    }
    out.send(cx, broker, Mail::Command(Box::new(command)));
}

/// The options of a namespace for its channels' streams.
pub(super) fn stream_options(namespace: &Namespace) -> StreamOptions {
    StreamOptions {
        size: namespace.history_size,
        ttl_ms: namespace.history_ttl_ms,
        meta_ttl_ms: namespace.history_meta_ttl_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::broker::Ticket;
    use crate::hub::history::{Epoch, Page};
    use crate::shard::fixture::{Plan, Posts};

    #[test]
    fn reads_are_counted() {
        let (cx, mut posts) = (Plan::default().cx(), Posts::new(2, 8));
        let (ticket, page) = (Ticket(1), Page::default());
        let channel = || "news".into();
        let read =
            Command::Read { ticket, channel: channel(), page, meta_ttl_ms: 0, expects: None };
        command(&cx, &mut posts.post, read);
        let epoch = Epoch::from("a life");
        let renew = Command::Renew { ticket, channel: channel(), epoch, meta_ttl_ms: 0 };
        command(&cx, &mut posts.post, renew);
        posts.post.flush(&cx);
        assert_eq!((posts.sent_to(BROKER.0).len(), cx.counters().broker_reads.get()), (2, 1));
    }
}
