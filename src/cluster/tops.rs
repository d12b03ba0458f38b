//! Reads that the position of a channel most often answers: of the position alone, and of what came behind a
//! position without publications. After a lost connection there is one for each channel; a script then reads the
//! positions of many channels, and its reply is one value, since each value of a reply costs the node as much
//! as all else that it does for the channel.

use compact_str::CompactString;

use super::names::Layout;
use super::operations::{Awaited, Operations, Reply, Request, Settled, seconds};
use super::scripts::Script;
use crate::hub::broker::{BrokerEvent, FailureCause, Ticket};
use crate::hub::history::{Epoch, Page, Position};

/// A read that the position most often answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopRead {
    /// Of the command.
    pub ticket: Ticket,
    /// The channel.
    pub channel: CompactString,
    /// The publications to read when there are some; a limit of 0: none.
    pub page: Page,
    /// Time for which the position is kept.
    pub meta_ttl_ms: u64,
}

/// Positions in one script: it blocks Redis while it runs, for 2 us a position.
const POSITIONS_MAX: usize = 128;

/// One read in so many prolongs the life of the position, where lines check theirs again and again.
pub(super) const PROLONGING: u64 = 16;

impl Operations {
    /// Positions of several channels can be read together: in a Cluster their keys have slots of their own.
    pub fn reads_tops_together(&self) -> bool {
        *self.names.layout() == Layout::Plain
    }

    /// The requests of reads that came behind each other. `failed`: events of those that can't be read here.
    pub fn tops(
        &self,
        reads: Vec<TopRead>,
        failed: &mut Vec<BrokerEvent>,
        mut each: impl FnMut(Request, Awaited),
    ) {
        let mut reads = reads.into_iter().filter_map(|read| {
            let checked = self.check(&read.channel, true, Some(read.ticket));
            checked.map(|()| read).map_err(|event| failed.extend(event)).ok()
        });
        loop {
            let some: Vec<TopRead> = reads.by_ref().take(POSITIONS_MAX).collect();
            if some.is_empty() {
                return;
            }
            let keys = some.iter().map(|read| self.position_key(&read.channel)).collect();
            for read in some.iter().filter(|read| read.ticket.0.is_multiple_of(PROLONGING)) {
                self.prolong(read, &mut each);
            }
            let request = Request::Script { script: Script::Tops, keys, arguments: vec![] };
            each(request, Awaited::Tops(some));
        }
    }

    /// The requests of one such read: two plain commands cost Redis less than a script.
    pub(super) fn top(&self, read: TopRead, mut each: impl FnMut(Request, Awaited)) {
        if read.page.limit == 0 || read.ticket.0.is_multiple_of(PROLONGING) {
            self.prolong(&read, &mut each);
        }
        let arguments = vec![self.position_key(&read.channel).into(), b"e".into(), b"s".into()];
        let request = Request::Plain { name: "HMGET", arguments };
        each(request, Awaited::Top(Box::new(read)));
    }

    fn prolong(&self, read: &TopRead, each: &mut impl FnMut(Request, Awaited)) {
        if read.meta_ttl_ms > 0 {
            let position = self.position_key(&read.channel).into();
            let arguments = vec![position, seconds(read.meta_ttl_ms)];
            each(Request::Plain { name: "EXPIRE", arguments }, Awaited::Nothing);
        }
    }

    fn position_key(&self, channel: &str) -> String {
        self.history_keys(channel).1
    }

    /// The reply to one read: `[epoch, top]`.
    pub(super) fn settle_top(&self, read: TopRead, values: &[Reply], epoch: &str) -> Settled {
        match super::operations::position(values.get(1), values.first()) {
            Some(top) => self.settle_position(read, top, epoch),
            None => self.read_again(read, epoch),
        }
    }

    /// The reply to several.
    pub(super) fn settle_tops(&self, reads: Vec<TopRead>, reply: &Reply, epoch: &str) -> Settled {
        let text: &[u8] = if let Reply::Bytes(text) = reply { text } else { b"" };
        let Some(positions) = positions(text).filter(|all| all.len() == reads.len()) else {
            let cause = FailureCause::Unavailable;
            let failed = |read: TopRead| BrokerEvent::Failed { ticket: read.ticket, cause };
            let failed = reads.into_iter().map(failed).collect();
            return Settled::Faulty(failed, "a malformed list of positions".into());
        };
        let (mut events, mut requests) = (Vec::with_capacity(reads.len()), Vec::new());
        for (read, position) in reads.into_iter().zip(positions) {
            let settled = match position {
                Some(top) => self.settle_position(read, top, epoch),
                None => self.read_again(read, epoch),
            };
            match settled {
                Settled::Event(event) => events.push(event),
                Settled::Again(request, awaited) => requests.push((request, awaited)),
                _ => {}
            }
        }
        Settled::Several(events, requests)
    }

    fn settle_position(&self, read: TopRead, top: Position, epoch: &str) -> Settled {
        if read.page.limit > 0 && top.offset > 0 {
            return self.read_again(read, epoch);
        }
        Settled::Event(BrokerEvent::History { ticket: read.ticket, top, entries: vec![] })
    }

    /// There is no position, and the script makes one, or there are publications.
    fn read_again(&self, read: TopRead, epoch: &str) -> Settled {
        let TopRead { ticket, channel, page, meta_ttl_ms } = read;
        let request = self.read(&channel, &page, meta_ttl_ms, epoch);
        Settled::Again(request, Awaited::History { ticket, page })
    }
}

/// The positions in the reply of the script; `None` within: there is no position. `None`: it is malformed.
fn positions(mut text: &[u8]) -> Option<Vec<Option<Position>>> {
    fn line<'t>(text: &mut &'t [u8]) -> Option<&'t str> {
        let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
        let line = std::str::from_utf8(&text[..end]).ok()?;
        *text = text.get(end + 1..).unwrap_or_default();
        Some(line)
    }
    let mut all = Vec::new();
    while !text.is_empty() {
        let bytes: usize = line(&mut text)?.parse().ok()?;
        let epoch = std::str::from_utf8(text.get(..bytes)?).ok()?;
        text = text.get(bytes..)?.strip_prefix(b"\n")?;
        let offset = line(&mut text)?.parse().ok()?;
        let epoch = (!epoch.is_empty()).then(|| Epoch::from(epoch));
        all.push(epoch.map(|epoch| Position { offset, epoch: Some(epoch) }));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::names::Names;
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

    fn read(ticket: u64, channel: &str) -> TopRead {
        let since = Some(Since { offset: 0, epoch: "".into() });
        let page = Page { since, limit: 1024, reverse: false };
        TopRead { ticket: Ticket(ticket), channel: channel.into(), page, meta_ttl_ms: 1_000 }
    }

    #[test]
    fn positions_have_epochs_of_any_text() {
        let of = |offset, epoch: &str| Some(Position { offset, epoch: Some(epoch.into()) });
        let text = b"8\nabcdefgh\n0\n0\n\n0\n3\na\nb\n18446744073709551615";
        assert_eq!(positions(text).unwrap(), [of(0, "abcdefgh"), None, of(u64::MAX, "a\nb")]);
        assert_eq!(positions(b"").unwrap(), []);
        for wrong in [&b"x"[..], b"9\nabc\n0", b"1\nab\n0", b"1\na\n-1", b"1\na", b"1\n\xff\n0"] {
            assert_eq!(positions(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn many_reads_are_few_scripts_and_some_of_them_prolong() {
        let (mut failed, mut scripts, mut plain) = (Vec::new(), Vec::new(), 0);
        let reads = (0..300).map(|number| read(number, &format!("c{number}")));
        let unusable = read(300, "meta.x");
        operations().tops(
            reads.chain([unusable]).collect(),
            &mut failed,
            |request, awaited| match (request, awaited) {
                (Request::Script { script: Script::Tops, keys, .. }, Awaited::Tops(reads)) => {
                    scripts.push((keys.len(), reads.len(), keys[0].clone()));
                }
                (Request::Plain { name: "EXPIRE", .. }, Awaited::Nothing) => plain += 1,
                other => panic!("{other:?}"),
            },
        );
        let expected = [("0", 128), ("128", 128), ("256", 44)]
            .map(|(first, count)| (count, count, format!("p.stream.meta.c{first}")));
        assert_eq!((scripts, plain), (expected.to_vec(), 19));
        assert!(matches!(failed[..], [BrokerEvent::Failed { ticket: Ticket(300), .. }]));
    }

    #[test]
    fn a_channel_without_publications_is_answered_and_any_other_read() {
        let reads = ["quiet", "busy", "new"].map(|name| read(1, name)).to_vec();
        let reply = Reply::Bytes(b"4\nlife\n0\n4\nlife\n7\n0\n\n0".into());
        let Settled::Several(events, requests) = operations().settle_tops(reads, &reply, "fresh")
        else {
            panic!()
        };
        let top = Position { offset: 0, epoch: Some("life".into()) };
        let [BrokerEvent::History { top: of, entries, .. }] = &events[..] else { panic!() };
        assert_eq!((of, entries.len()), (&top, 0));
        let keys = |request: &Request| match request {
            Request::Script { script: Script::ReadStream, keys, .. } => keys[0].clone(),
            other => panic!("{other:?}"),
        };
        let read: Vec<String> = requests.iter().map(|(request, _)| keys(request)).collect();
        assert_eq!(read, ["p.stream.busy", "p.stream.new"]);
    }

    #[test]
    fn a_malformed_list_fails_all_reads() {
        for reply in [Reply::Nil, Reply::Bytes(b"4\nlife\n0".into())] {
            let reads = vec![read(1, "a"), read(2, "b")];
            let Settled::Faulty(failed, _) = operations().settle_tops(reads, &reply, "fresh")
            else {
                panic!()
            };
            assert_eq!(failed.len(), 2);
        }
    }
}
