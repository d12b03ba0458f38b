//! The simulated broker: streams, presence, and for each node what is on its way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use compact_str::CompactString;

use crate::base::info::ClientInfo;
use crate::base::rng::Rng;
use crate::hub::broker::{
    BrokerEvent, Command, Delivered, Entry, FailureCause, PresenceChange, Publishing,
};
use crate::hub::history::{Epoch, Page, Position, Published, Record};

/// A channel at the broker.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) epoch: Epoch,
    pub(super) entries: VecDeque<Entry>,
    pub(super) top: u64,
    /// The number of the publication at `top`; 0 before the first.
    pub(super) newest: u64,
    /// All publications of its life, by number.
    all: Vec<u64>,
    /// It went back in this life.
    pub(super) went_back: bool,
    /// Results by idempotency key.
    results: BTreeMap<CompactString, Position>,
}

impl Stream {
    fn new(epoch: Epoch) -> Self {
        let (entries, results) = (VecDeque::new(), BTreeMap::new());
        Self { epoch, entries, top: 0, newest: 0, all: Vec::new(), went_back: false, results }
    }

    fn position(&self) -> Position {
        Position { offset: self.top, epoch: Some(self.epoch.clone()) }
    }

    fn page(&self, page: &Page) -> Vec<Entry> {
        let since = page.since.as_ref().map_or(0, |since| since.offset);
        let behind = self.entries.iter().filter(|of| of.record.offset() > since);
        match page.reverse {
            true => behind.rev().take(page.limit).cloned().collect(),
            false => behind.take(page.limit).cloned().collect(),
        }
    }
}

/// The connection of a node.
#[derive(Debug, Default)]
pub(super) struct Wire {
    pub(super) is_connected: bool,
    pub(super) listens: BTreeSet<CompactString>,
    /// Channels that it listens to again later.
    pub(super) interrupted: BTreeSet<CompactString>,
    pub(super) commands: VecDeque<Command>,
    answers: VecDeque<BrokerEvent>,
    /// By channel: in order there, in none between them.
    deliveries: BTreeMap<CompactString, VecDeque<BrokerEvent>>,
}

impl Wire {
    pub(super) fn is_still(&self) -> bool {
        self.commands.is_empty()
            && self.answers.is_empty()
            && self.interrupted.is_empty()
            && self.deliveries.values().all(VecDeque::is_empty)
    }

    /// Something that is on its way, of any kind; a delivery may come once more later, or not at all.
    pub(super) fn next(&mut self, rng: &mut Rng, faults: bool) -> Option<BrokerEvent> {
        let way = rng.below(1 + self.deliveries.len() as u64) as usize;
        let (twice, lost) = (faults && rng.one_in(8), faults && rng.one_in(40));
        if way == 0 {
            return self.answers.pop_front();
        }
        let queue = self.deliveries.values_mut().nth(way - 1)?;
        let event = queue.pop_front()?;
        if twice {
            queue.push_back(event.clone());
        }
        (!lost).then_some(event)
    }
}

/// All that nodes share.
pub(super) struct Broker {
    pub(super) streams: BTreeMap<CompactString, Stream>,
    /// Copies that a failover may go back to.
    copies: BTreeMap<CompactString, Stream>,
    pub(super) present: BTreeMap<CompactString, BTreeMap<CompactString, Box<[u8]>>>,
    pub(super) wires: Vec<Wire>,
    /// Publications that a channel keeps.
    kept: usize,
    /// Offsets grow by up to so much.
    step: u64,
    pub(super) reads: u64,
    epochs: u64,
}

pub(super) fn number(record: &Record) -> u64 {
    std::str::from_utf8(record.data()).unwrap().parse().unwrap()
}

impl Broker {
    pub(super) fn new(
        channels: &[&str],
        nodes: usize,
        kept: usize,
        step: u64,
        rng: &mut Rng,
    ) -> Self {
        let stream = |name: &&str| (CompactString::new(name), Stream::new(Epoch::new(rng)));
        let streams: BTreeMap<_, _> = channels.iter().map(stream).collect();
        Self {
            copies: streams.clone(),
            streams,
            present: BTreeMap::new(),
            wires: (0..nodes).map(|_| Wire::default()).collect(),
            kept,
            step,
            reads: 0,
            epochs: 0,
        }
    }

    fn next_epoch(&mut self) -> Epoch {
        self.epochs += 1;
        Epoch::from(format!("epoch-{}", self.epochs).as_str())
    }

    pub(super) fn copy(&mut self) {
        self.copies = self.streams.clone();
    }

    /// Goes back to the copy of a channel. The numbers of the publications that are lost, if the copy is of the
    /// same life.
    pub(super) fn go_back(&mut self, channel: &str) -> Vec<u64> {
        let copy = self.copies[channel].clone();
        let stream = self.streams.get_mut(channel).unwrap();
        if copy.epoch != stream.epoch || copy.top >= stream.top {
            return Vec::new();
        }
        let lost = stream.all.split_off(copy.all.len());
        *stream = Stream { went_back: true, ..copy };
        lost
    }

    /// Begins a channel anew.
    pub(super) fn forget(&mut self, channel: &str) {
        let epoch = self.next_epoch();
        *self.streams.get_mut(channel).unwrap() = Stream::new(epoch);
    }

    /// Drops the history of a channel. Not where it has just gone back: that leaves nothing to see it by.
    pub(super) fn expire(&mut self, channel: &str) {
        let stream = self.streams.get_mut(channel).unwrap();
        if !stream.went_back {
            stream.entries.clear();
        }
    }

    /// Carries out the next command of a node. The number of a publication that is new, and of the one before.
    pub(super) fn carry_out(&mut self, node: usize, rng: &mut Rng) -> Option<(u64, u64)> {
        let command = self.wires[node].commands.pop_front()?;
        let wire = &mut self.wires[node];
        match command {
            Command::Listen { channel } => {
                wire.listens.insert(channel.clone());
                wire.answers.push_back(BrokerEvent::Listening { channel });
            }
            Command::Unlisten { channel } => {
                wire.listens.remove(&channel);
                wire.interrupted.remove(&channel);
            }
            Command::Publish(publishing) => return self.publish(node, *publishing, rng),
            Command::Read { ticket, channel, page, .. } => {
                let stream = &self.streams[&channel];
                let (top, entries) = (stream.position(), stream.page(&page));
                wire.answers.push_back(BrokerEvent::History { ticket, top, entries });
                self.reads += 1;
            }
            Command::Renew { ticket, channel, epoch, .. } => {
                if self.streams[&channel].epoch == epoch {
                    let next = self.next_epoch();
                    let stream = self.streams.get_mut(&channel).unwrap();
                    (stream.epoch, stream.went_back) = (next, false);
                }
                let stream = &self.streams[&channel];
                let page = Page { since: None, limit: 1, reverse: true };
                let (top, entries) = (stream.position(), stream.page(&page));
                let wire = &mut self.wires[node];
                wire.answers.push_back(BrokerEvent::History { ticket, top, entries });
            }
            Command::Drop { ticket, .. } => wire.answers.push_back(BrokerEvent::Done { ticket }),
            Command::Presence(update) => {
                let answer = update.ticket.map(|ticket| BrokerEvent::Done { ticket });
                wire.answers.extend(answer);
                let present = self.present.entry(update.channel).or_default();
                for (change, info) in update.changes {
                    let client = CompactString::new(ClientInfo::unpack(&info).unwrap().client);
                    match change {
                        PresenceChange::Enter { .. } | PresenceChange::Refresh => {
                            present.insert(client, info);
                        }
                        PresenceChange::Leave => {
                            present.remove(&client);
                        }
                    }
                }
            }
            Command::Members { ticket, channel, counts } => {
                let present = self.present.get(&channel).cloned().unwrap_or_default();
                let infos: Vec<_> = present.into_values().collect();
                let (clients, users) = (infos.len() as u32, infos.len() as u32);
                wire.answers.push_back(match counts {
                    true => BrokerEvent::MemberCounts { ticket, clients, users },
                    false => BrokerEvent::Members { ticket, infos },
                });
            }
            Command::Announce { .. } | Command::Hold | Command::Fence { .. } | Command::Resume => {
                panic!("nobody does")
            }
        }
        None
    }

    /// Answers the next command of a node that has an answer with an error.
    pub(super) fn fail(&mut self, node: usize) {
        let wire = &mut self.wires[node];
        let ticket = match wire.commands.front() {
            Some(Command::Publish(publishing)) => publishing.ticket,
            Some(
                Command::Read { ticket, .. }
                | Command::Members { ticket, .. }
                | Command::Renew { ticket, .. },
            ) => *ticket,
            _ => return,
        };
        wire.commands.pop_front();
        let cause = FailureCause::Unavailable;
        wire.answers.push_back(BrokerEvent::Failed { ticket, cause });
    }

    fn publish(
        &mut self,
        node: usize,
        publishing: Publishing,
        rng: &mut Rng,
    ) -> Option<(u64, u64)> {
        let Publishing { ticket, channel, record, idempotency_key: key, .. } = publishing;
        let stream = self.streams.get_mut(&channel).unwrap();
        if let Some(position) = stream.results.get(&key).filter(|_| !key.is_empty()) {
            let position = position.clone();
            let answer = BrokerEvent::Published { ticket, position };
            self.wires[node].answers.push_back(answer);
            return None;
        }
        let (after, before) = (stream.top, stream.newest);
        stream.top += 1 + rng.below(self.step);
        let published = record.published();
        let record = Record::new(stream.top, &Published { ..published });
        stream.newest = number(&record);
        let newest = stream.newest;
        stream.all.push(newest);
        let entry = Entry { after, time_ms: 0, delta: false, source: None, record };
        stream.entries.push_back(entry.clone());
        if stream.entries.len() > self.kept {
            stream.entries.pop_front();
        }
        let position = stream.position();
        if !key.is_empty() {
            stream.results.insert(key, position.clone());
        }
        let epoch = position.epoch.clone();
        self.wires[node].answers.push_back(BrokerEvent::Published { ticket, position });
        for wire in self.wires.iter_mut().filter(|wire| wire.listens.contains(&channel)) {
            let (epoch, entry) = (epoch.clone(), entry.clone());
            let delivered = Delivered { channel: channel.clone(), epoch, entry };
            let event = BrokerEvent::Delivered(Box::new(delivered));
            wire.deliveries.entry(channel.clone()).or_default().push_back(event);
        }
        Some((newest, before))
    }

    /// The connection that carries a channel to a node is lost, with all that is on its way there.
    pub(super) fn interrupt(&mut self, node: usize, channel: &str) {
        let wire = &mut self.wires[node];
        if wire.listens.remove(channel) {
            wire.deliveries.remove(channel);
            wire.interrupted.insert(channel.into());
            wire.answers.push_back(BrokerEvent::Interrupted { channel: channel.into() });
        }
    }

    /// It is there again.
    pub(super) fn resume(&mut self, node: usize) {
        let wire = &mut self.wires[node];
        if let Some(channel) = wire.interrupted.pop_first() {
            wire.listens.insert(channel.clone());
            wire.answers.push_back(BrokerEvent::Listening { channel });
        }
    }
}

#[test]
fn a_broker_goes_back_to_its_copy() {
    let mut rng = Rng::new(1);
    let mut broker = Broker::new(&["a"], 1, 10, 1, &mut rng);
    let mut publish = |broker: &mut Broker, number: u64| {
        let text = number.to_string();
        let published = Published { data: text.as_bytes(), ..Published::default() };
        let publishing = Publishing {
            ticket: crate::hub::broker::Ticket(number),
            channel: "a".into(),
            record: Record::new(0, &published),
            options: crate::hub::history::StreamOptions::default(),
            idempotency_key: text.as_str().into(),
            version: 0,
            version_epoch: CompactString::default(),
            delta: false,
        };
        broker.publish(0, publishing, &mut rng)
    };
    assert_eq!(publish(&mut broker, 5), Some((5, 0)));
    // The same key once more.
    assert_eq!(publish(&mut broker, 5), None);
    broker.copy();
    assert_eq!(publish(&mut broker, 6), Some((6, 5)));
    assert_eq!((broker.go_back("a"), broker.streams["a"].top), (vec![6], 1));
    assert_eq!(publish(&mut broker, 7), Some((7, 5)));
    broker.forget("a");
    assert_eq!(broker.streams["a"].top, 0);
}
