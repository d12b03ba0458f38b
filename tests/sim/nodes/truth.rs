//! The checker: it knows from Redis which publication followed which, and holds each subscription against that,
//! from its begin to its end or to the notice that publications are missing.

use std::collections::{BTreeMap, BTreeSet};

use super::redis::Fact;

/// What clients and operators can rely on. Each rule is shown to fail by a [`super::plan::Sabotage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// Each publication of a subscription with a position follows the one before it in the stream, unless the
    /// client got 2500, 3010 or `recovered: false` in between.
    Chain,
    /// No subscription gets a publication twice.
    Twice,
    /// A recovery that succeeds brings all up to the position that it reports.
    Recovery,
    /// Without faults, each subscriber has the newest publication in the end.
    End,
    /// A publication that was acknowledged is in the stream, and only once if it had an idempotency key.
    Stored,
    /// No connection is closed because of the broker.
    Connection,
    /// An error because of the broker is a temporary one, of the operation.
    Temporary,
    /// Each request is answered.
    Answer,
    /// In the end, exactly the subscribers are present, on all nodes.
    Presence,
    /// A client that joined doesn't join again before it leaves, and the reverse.
    Events,
    /// A channel of a node has one read open at most.
    Reads,
    /// In the end nothing is left: no subscription at Redis, no operation, no memory.
    Rest,
    /// Where histories lack nothing, nobody is told that publications are missing.
    Needless,
}

/// A rule that was broken, and how.
pub(crate) type Broken = (Rule, String);

/// A broken rule as an error.
pub(crate) fn broken<T>(rule: Rule, text: impl Into<String>) -> Result<T, Broken> {
    Err((rule, text.into()))
}

/// The publications that a subscriber may have as its latest: several where the stream went back there.
pub(crate) type Latest = BTreeSet<u64>;

/// A subscriber's place in a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) epoch: String,
    pub(crate) offset: u64,
    pub(crate) latest: Latest,
}

/// A publication that somebody made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    pub(crate) channel: String,
    pub(crate) key: String,
    /// Its publisher got its acknowledgement.
    pub(crate) is_acknowledged: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// By number.
    made: BTreeMap<u64, Made>,
    /// For each publication of a stream: those that it followed, 0 for none. Several where a publisher tried
    /// again behind a failover, which loses the results of keys, too.
    before: BTreeMap<u64, Latest>,
    /// The publications that stood at an offset of an epoch of a channel; 0: the beginning.
    stood: BTreeMap<(String, String, u64), Latest>,
    /// Publications that a failover lost.
    lost: BTreeSet<u64>,
    /// Those that went out without history.
    sent: BTreeMap<u64, u32>,
    /// Channels that lost their results of keys.
    forgotten: BTreeSet<String>,
    /// Somebody was told of a gap, though histories lack nothing.
    pub(crate) needless: Option<String>,
    /// A client joined twice, or left twice, though no fault loses events.
    pub(crate) repeated_event: Option<String>,
    /// Facts of each kind, for the figures.
    pub(crate) figures: BTreeMap<&'static str, u64>,
}

impl Truth {
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.figures.entry(what).or_default() += 1;
    }

    /// A publication begins: its number.
    pub(crate) fn make(&mut self, channel: &str, key: &str) -> u64 {
        let number = self.made.len() as u64 + 1;
        let (channel, key) = (channel.to_owned(), key.to_owned());
        self.made.insert(number, Made { channel, key, is_acknowledged: false });
        number
    }

    pub(crate) fn note(&mut self, fact: Fact) {
        match fact {
            Fact::Published { number, before } => {
                self.count("published");
                self.before.entry(number).or_default().insert(before);
            }
            Fact::Stands { channel, epoch, offset, newest } => {
                self.stood.entry((channel, epoch, offset)).or_default().insert(newest);
            }
            Fact::Sent { number } => *self.sent.entry(number).or_default() += 1,
            Fact::Lost { numbers, channel } => {
                self.count("failovers");
                self.lost.extend(numbers);
                self.forgotten.insert(channel);
            }
            Fact::Forgotten { channel } => {
                self.forgotten.insert(channel);
            }
        }
    }

    /// Its publisher got the acknowledgement.
    pub(crate) fn acknowledged(&mut self, number: u64) -> Result<(), Broken> {
        let made = self.made.get_mut(&number).unwrap();
        made.is_acknowledged = true;
        if self.before.contains_key(&number) || self.sent.contains_key(&number) {
            return Ok(());
        }
        broken(Rule::Stored, format!("{number} {made:?} is acknowledged, and Redis never had it"))
    }

    /// The place of a subscription that begins at a position.
    pub(crate) fn place(&self, channel: &str, epoch: &str, offset: u64) -> Result<Place, Broken> {
        let key = (channel.to_owned(), epoch.to_owned(), offset);
        match self.stood.get(&key) {
            Some(latest) => Ok(Place { epoch: epoch.to_owned(), offset, latest: latest.clone() }),
            None => broken(Rule::Recovery, format!("no stream ever stood at {key:?}")),
        }
    }

    /// Whether a subscriber may have as its latest one that a failover lost.
    pub(crate) fn is_lost(&self, latest: &Latest) -> bool {
        latest.iter().any(|number| self.lost.contains(number))
    }

    /// A publication for a subscriber with a position. `excused`: this one may follow any.
    pub(crate) fn check(
        &self,
        place: &mut Place,
        offset: u64,
        number: u64,
        excused: bool,
    ) -> Result<(), Broken> {
        if offset <= place.offset {
            return broken(Rule::Twice, format!("{number} at {offset} behind {place:?}"));
        }
        let Some(before) = self.before.get(&number) else {
            return broken(Rule::Chain, format!("{number} at {offset} is in no stream"));
        };
        if !excused && place.latest.is_disjoint(before) {
            let text = format!("{number} at {offset} follows {before:?}, behind {place:?}");
            return broken(Rule::Chain, text);
        }
        (place.offset, place.latest) = (offset, Latest::from([number]));
        Ok(())
    }

    /// In the end: what was acknowledged is in the stream, and with a key only once. `log`: the publications of
    /// a channel.
    pub(crate) fn check_stored(&self, log: impl Fn(&str) -> Vec<u64>) -> Result<(), Broken> {
        let mut counts: BTreeMap<&str, BTreeMap<u64, u32>> = BTreeMap::new();
        for (number, made) in &self.made {
            let channel = made.channel.as_str();
            let of_channel = counts.entry(channel).or_insert_with(|| {
                let mut counts = BTreeMap::new();
                log(channel).into_iter().for_each(|of| *counts.entry(of).or_default() += 1);
                counts
            });
            let count = of_channel.get(number).copied().unwrap_or_default();
            let sent = self.sent.get(number).copied().unwrap_or_default();
            let is_lost = self.lost.contains(number);
            if made.is_acknowledged && count + sent == 0 && !is_lost {
                return broken(Rule::Stored, format!("{number} {made:?} is not in the stream"));
            }
            let may_repeat = made.key.is_empty() || self.forgotten.contains(channel);
            if count + sent > 1 && !may_repeat {
                let text = format!("{number} {made:?} is there {} times", count + sent);
                return broken(Rule::Stored, text);
            }
        }
        Ok(())
    }
}

#[test]
fn a_publication_follows_the_one_before_it() {
    let mut truth = Truth::default();
    let numbers: Vec<u64> = (0..3).map(|_| truth.make("a", "")).collect();
    let mut before = 0;
    for (offset, number) in numbers.iter().enumerate() {
        truth.note(Fact::Published { number: *number, before });
        let (offset, epoch) = (offset as u64 + 1, "E".into());
        truth.note(Fact::Stands { channel: "a".into(), epoch, offset, newest: *number });
        before = *number;
    }
    let begin = truth.place("a", "E", 1).unwrap();
    let rule = |offset, number, excused| {
        truth.check(&mut begin.clone(), offset, number, excused).err().map(|(rule, _)| rule)
    };
    assert_eq!((rule(2, 2, false), rule(3, 3, true)), (None, None));
    assert_eq!((rule(3, 3, false), rule(1, 1, false)), (Some(Rule::Chain), Some(Rule::Twice)));
    assert!(truth.place("a", "another", 1).is_err());
    assert!(!truth.is_lost(&begin.latest));
    truth.note(Fact::Lost { channel: "a".into(), numbers: vec![1] });
    assert!(truth.is_lost(&begin.latest));
}

#[test]
fn an_acknowledged_publication_is_there_once() {
    let mut truth = Truth::default();
    let number = truth.make("a", "key");
    assert!(truth.acknowledged(number).is_err());
    truth.note(Fact::Published { number, before: 0 });
    assert_eq!(truth.acknowledged(number), Ok(()));
    assert_eq!(truth.check_stored(|_| vec![number]), Ok(()));
    assert!(truth.check_stored(|_| vec![number, number]).is_err());
    assert!(truth.check_stored(|_| vec![]).is_err());
}
