//! Whether a channel has changed since a position: two plain commands, since a script costs Redis several times as
//! much. After a connection was lost each channel is looked at, and hardly any has changed.
//!
//! ```text
//!  HMGET position --> CheckTop --.
//!  XRANGE stream  --> Check <----'  nothing newer, and they agree: the answer; else a read by the script
//! ```
//! Something may be published between the two. Then they don't agree.

use std::cell::RefCell;
use std::rc::Rc;

use compact_str::CompactString;

use super::operations::{Awaited, Operations, Reply, Request, Settled, seconds};
use super::tops::PROLONGING;
use crate::hub::broker::{BrokerEvent, Ticket};
use crate::hub::history::Page;

/// The reply to the first command, for the second one.
pub type Top = Rc<RefCell<Option<Reply>>>;

/// A check that waits for its second reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub(super) ticket: Ticket,
    pub(super) channel: CompactString,
    /// The read that it replaces.
    pub(super) page: Page,
    pub(super) meta_ttl_ms: u64,
    top: Top,
}

impl Operations {
    /// The commands of a check.
    pub(super) fn check_commands(
        &self,
        (ticket, channel): (Ticket, CompactString),
        page: Page,
        meta_ttl_ms: u64,
        mut each: impl FnMut(Request, Awaited),
    ) {
        let position = self.names.stream_meta(&channel);
        if meta_ttl_ms > 0 && ticket.0.is_multiple_of(PROLONGING) {
            let arguments = vec![position.clone().into(), seconds(meta_ttl_ms)];
            each(Request::Plain { name: "EXPIRE", arguments }, Awaited::Nothing);
        }
        let top = Top::default();
        let arguments = vec![position.into(), b"e".into(), b"s".into()];
        each(Request::Plain { name: "HMGET", arguments }, Awaited::CheckTop(top.clone()));
        let since = page.since.as_ref().map_or(0, |since| since.offset);
        let arguments = vec![
            self.names.stream(&channel).into(),
            Vec::from(since.saturating_add(1).to_string()),
            b"+".into(),
            b"COUNT".into(),
            b"2".into(),
        ];
        let check = Check { ticket, channel, page, meta_ttl_ms, top };
        let awaited = Awaited::Check(Box::new(check));
        each(Request::Plain { name: "XRANGE", arguments }, awaited);
    }

    /// The answer, if nothing is newer and both replies agree.
    fn unchanged(&self, check: &Check, reply: &Reply) -> Option<BrokerEvent> {
        let top = check.top.borrow_mut().take()?;
        let Reply::List(values) = &top else { return None };
        let [epoch, offset] = &values[..] else { return None };
        let whole = Reply::List(vec![offset.clone(), epoch.clone(), reply.clone()]);
        let event = self.history(check.ticket, &check.page, &whole)?;
        let BrokerEvent::History { top, entries, .. } = &event else { return None };
        let first = check.page.since.as_ref().map_or(0, |since| since.offset) + 1;
        let agrees = match &entries[..] {
            [] => true,
            [entry] => entry.record.offset() == top.offset,
            _ => false,
        };
        (top.offset <= first && agrees).then_some(event)
    }

    /// The event, or the next request, behind the second reply.
    pub(super) fn settle_check(&self, check: &Check, reply: &Reply, epoch: &str) -> Settled {
        if let Some(event) = self.unchanged(check, reply) {
            return Settled::Event(event);
        }
        let Check { ticket, channel, page, meta_ttl_ms, .. } = check;
        let request = self.read(channel, page, *meta_ttl_ms, epoch);
        Settled::Again(request, Awaited::History { ticket: *ticket, page: page.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::names::{Layout, Names};
    use crate::cluster::operations::Fresh;
    use crate::hub::broker::Command;
    use crate::hub::history::Since;

    fn operations() -> Operations {
        Operations {
            names: Names::new("p", Layout::Plain),
            use_lists: false,
            presence_ttl_s: 60,
            presence_users: false,
            presence_field_ttl: false,
        }
    }

    fn bytes(text: &str) -> Reply {
        Reply::Bytes(text.into())
    }

    fn entry(offset: u64) -> Reply {
        let fields = Reply::List(vec![bytes("d"), bytes("\"\x011")]);
        Reply::List(vec![bytes(&format!("{offset}-0")), fields])
    }

    /// The outcome of a check from offset 6 on, by both replies.
    fn settled(top: Reply, entries: Vec<Reply>) -> Settled {
        let (operations, fresh) = (operations(), Fresh { now_ms: 1, epoch: "fresh" });
        let since = Some(Since { offset: 6, epoch: "".into() });
        let page = Page { since, limit: 1024, reverse: false };
        let (ticket, channel) = (Ticket(1), "c".into());
        let expects = Some(7);
        let read = Command::Read { ticket, channel, page, meta_ttl_ms: 1_000, expects };
        let mut awaited = Vec::new();
        operations
            .requests(read, fresh, |request, of| {
                assert!(matches!(request, Request::Plain { name: "HMGET" | "XRANGE", .. }));
                awaited.push(of);
            })
            .unwrap();
        let mut awaited = awaited.into_iter();
        let first = operations.settle(awaited.next().unwrap(), top, fresh);
        assert!(matches!(first, Settled::Nothing));
        operations.settle(awaited.next().unwrap(), Reply::List(entries), fresh)
    }

    #[test]
    fn a_channel_without_news_is_answered_and_any_other_read() {
        let top = |offset: &str| Reply::List(vec![bytes("a life"), bytes(offset)]);
        for (of, entries) in [
            (top("7"), vec![entry(7)]),
            // The publication at the position is removed, or the stream went back.
            (top("7"), vec![]),
            (top("5"), vec![]),
        ] {
            let settled = settled(of, entries);
            assert!(matches!(settled, Settled::Event(BrokerEvent::History { .. })), "{settled:?}");
        }
        for (of, entries) in [
            (top("8"), vec![entry(7), entry(8)]),
            // One came in between.
            (top("7"), vec![entry(7), entry(8)]),
            (top("7"), vec![entry(8)]),
            // No position: the script makes one.
            (Reply::List(vec![Reply::Nil, Reply::Nil]), vec![]),
        ] {
            let settled = settled(of, entries);
            let is_read = matches!(settled, Settled::Again(Request::Script { .. }, _));
            assert!(is_read, "{settled:?}");
        }
    }
}
