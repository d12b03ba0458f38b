//! What subscribers saw, held against what was promised: between the reply to its subscribe and its
//! end a subscription is a gap-free piece of its channel's one order; where it was recovered it goes
//! on from the piece before.

use std::collections::{BTreeMap, BTreeSet};

use crate::orders::Orders;
use crate::presence::Presence;
use crate::wire::{FilterNode, Publication};

/// A publication, by its number in the payload.
#[derive(Debug)]
struct Published {
    channel: String,
    /// The client that published it; the control side has none.
    by: Option<String>,
    data: Vec<u8>,
    tags: BTreeMap<String, String>,
    sent: u64,
    sent_ms: u64,
    /// When it was first known to be taken.
    seen_ms: Option<u64>,
    acked: Option<u64>,
    /// It is with the home: it will be taken.
    posted: bool,
    delivered: bool,
    /// Where in the stream somebody saw it: epoch and offset.
    place: Option<(String, u64)>,
}

/// How a subscription ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It did not.
    Open,
    /// By the client, or with its connection.
    Gone,
    /// The server told of a gap.
    Told,
}

/// How a subscription begins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Begin {
    pub(crate) client: usize,
    /// As others see it.
    pub(crate) client_id: String,
    pub(crate) channel: String,
    /// When it was asked for.
    pub(crate) asked: u64,
    /// Epoch and offset of what it has at the beginning, when it is positioned.
    pub(crate) start: Option<(String, u64)>,
    /// The missed publications have come with it.
    pub(crate) recovered: bool,
    /// The subscription that it goes on from, without a gap.
    pub(crate) before: Option<usize>,
    pub(crate) filter: Option<FilterNode>,
    /// It is told who comes and goes.
    pub(crate) joins: bool,
}

/// One subscription of one client, from the reply on.
#[derive(Debug)]
struct Segment {
    begin: Begin,
    opened: u64,
    seen: Vec<(usize, u64)>,
    /// The same, to look up.
    seen_set: BTreeSet<usize>,
    holes: u64,
    /// The last join or leave that it received.
    events: BTreeMap<String, bool>,
    end: End,
}

/// The client's request to recover, the answer, and the channel's history.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) channel: &'a str,
    /// Epoch and offset of the request.
    pub(crate) from: (&'a str, u64),
    /// The same of the result.
    pub(crate) top: (&'a str, u64),
    pub(crate) history_size: u64,
    pub(crate) history_ttl_ms: u64,
    /// Publications of one recovery at most.
    pub(crate) limit: u64,
    /// Bytes of one answer at most, and what one publication takes at most.
    pub(crate) bytes_max: u64,
    pub(crate) bytes_each: u64,
    /// Only the latest publication counts.
    pub(crate) latest: bool,
}

/// Whether publications of a channel may be dropped, and then whether the newest comes all the same.
fn dropping(namespaces: &BTreeMap<String, bool>, channel: &str) -> Option<bool> {
    namespaces.get(channel.split_once(':')?.0).copied()
}

/// All that was published and seen. Moments are numbers of steps.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) step: u64,
    /// The virtual time.
    pub(crate) now_ms: u64,
    pub(crate) presence: Presence,
    pub(crate) orders: Orders,
    /// The step in which the node was told to drain.
    pub(crate) drains: Option<u64>,
    /// Namespaces whose publications may be dropped on their way to who is slow, and whether the newest
    /// comes all the same.
    dropping: BTreeMap<String, bool>,
    published: Vec<Published>,
    segments: Vec<Segment>,
    /// Which publication has a place in a stream.
    places: BTreeMap<(String, String, u64), usize>,
    /// Faults, unless join and leave events were lost.
    doubtful: Option<String>,
    /// Faults, unless deliveries were lost.
    overtaken: Option<String>,
    recovered: u64,
}

impl History {
    /// Nothing yet, and see [`Self::dropping`].
    pub(crate) fn new(dropping: BTreeMap<String, bool>) -> Self {
        Self { dropping, ..Self::default() }
    }

    /// A publish is about to be sent; `data` makes the payload of the number, which is the answer.
    pub(crate) fn publish(
        &mut self,
        channel: &str,
        by: Option<&str>,
        tags: BTreeMap<String, String>,
        data: impl FnOnce(usize) -> Vec<u8>,
    ) -> usize {
        let number = self.published.len();
        self.published.push(Published {
            channel: channel.to_owned(),
            by: by.map(str::to_owned),
            data: data(number),
            tags,
            sent: self.step,
            sent_ms: self.now_ms,
            seen_ms: None,
            acked: None,
            posted: false,
            delivered: false,
            place: None,
        });
        number
    }

    pub(crate) fn data(&self, publication: usize) -> &[u8] {
        &self.published[publication].data
    }

    pub(crate) fn acked(&mut self, publication: usize) {
        let published = &mut self.published[publication];
        published.acked = Some(self.step);
        published.seen_ms.get_or_insert(self.now_ms);
    }

    /// It is in the mailbox of the channel's home.
    pub(crate) fn posted(&mut self, publication: usize) {
        self.published[publication].posted = true;
    }

    /// It was refused: it will not be taken.
    pub(crate) fn refused(&mut self, publication: usize) {
        self.published[publication].posted = false;
    }

    pub(crate) fn opened(&mut self, begin: Begin) -> usize {
        self.recovered += u64::from(begin.recovered);
        self.segments.push(Segment {
            begin,
            opened: self.step,
            seen: Vec::new(),
            seen_set: BTreeSet::new(),
            holes: 0,
            events: BTreeMap::new(),
            end: End::Open,
        });
        self.segments.len() - 1
    }

    pub(crate) fn ended(&mut self, segment: usize, end: End) {
        self.segments[segment].end = end;
    }

    /// Epoch and offset of what a positioned subscription has.
    pub(crate) fn position(&self, segment: usize) -> Option<(String, u64)> {
        let segment = &self.segments[segment];
        let (epoch, offset) = segment.begin.start.clone()?;
        Some((epoch, segment.seen.last().map_or(offset, |(_, offset)| *offset)))
    }

    pub(crate) fn filter(&self, segment: usize) -> Option<&FilterNode> {
        self.segments[segment].begin.filter.as_ref()
    }

    /// A publication as it came to somebody, whole: is it one that was published?
    fn known(&mut self, channel: &str, publication: &Publication) -> Result<usize, String> {
        let number = number(&publication.data).ok_or("no number in a publication")?;
        let published = self.published.get_mut(number);
        let published = published.ok_or_else(|| format!("{number} was never sent"))?;
        if published.channel != channel {
            return Err(format!("got one of {}", published.channel));
        }
        if published.data != publication.data {
            return Err(format!(
                "{:?} became {:?}",
                String::from_utf8_lossy(&published.data),
                String::from_utf8_lossy(&publication.data)
            ));
        }
        if published.tags != publication.tags {
            return Err(format!("the tags of {number} are {:?}", publication.tags));
        }
        let by = publication.info.as_ref().map(|info| &info.client);
        if by != published.by.as_ref() {
            return Err(format!("{number} is by {:?}, not by {by:?}", published.by));
        }
        published.delivered = true;
        published.seen_ms.get_or_insert(self.now_ms);
        Ok(number)
    }

    /// Somebody saw a publication at a place.
    fn placed(
        &mut self,
        channel: &str,
        epoch: &str,
        offset: u64,
        publication: usize,
    ) -> Result<(), String> {
        let place = (channel.to_owned(), epoch.to_owned(), offset);
        let other = *self.places.entry(place).or_insert(publication);
        if other != publication {
            return Err(format!("{offset} is {publication} and {other}"));
        }
        let here = (epoch.to_owned(), offset);
        let place = self.published[publication].place.get_or_insert_with(|| here.clone());
        if *place != here {
            return Err(format!("{publication} is at {place:?} and at {here:?}"));
        }
        Ok(())
    }

    /// A publication reached a subscription, live or in the list that it began with.
    pub(crate) fn delivered(
        &mut self,
        segment: usize,
        publication: &Publication,
    ) -> Result<(), String> {
        let begin = &self.segments[segment].begin;
        let (client, channel) = (begin.client, begin.channel.clone());
        self.deliver(segment, publication)
            .map_err(|fault| format!("client {client} on {channel}: {fault}"))
    }

    fn deliver(&mut self, segment: usize, publication: &Publication) -> Result<(), String> {
        let channel = self.segments[segment].begin.channel.clone();
        let offset = publication.offset;
        let number = self.known(&channel, publication)?;
        let seen = &mut self.segments[segment];
        let published = &self.published[number];
        if published.acked.is_some_and(|acked| acked < seen.begin.asked) && !seen.begin.recovered {
            return Err(format!("{number} is older than the subscription"));
        }
        if !seen.seen_set.insert(number) {
            return Err(format!("{number} came twice"));
        }
        if seen.begin.filter.as_ref().is_some_and(|filter| !filter.matches(&published.tags)) {
            return Err(format!("{number} doesn't pass the filter"));
        }
        let has_history = channel.contains(':');
        let start = seen.begin.start.clone();
        let before = seen.seen.last().map(|(_, offset)| *offset);
        let before = before.or_else(|| start.as_ref().map(|(_, offset)| *offset));
        match before {
            _ if !has_history && offset != 0 => {
                return Err("an offset without history".into());
            }
            _ if has_history && offset == 0 => {
                return Err("no offset".into());
            }
            Some(before) if has_history && offset != before + 1 => {
                let filtered = seen.begin.filter.is_some() && offset > before;
                let dropped = offset > before && dropping(&self.dropping, &channel).is_some();
                if !filtered && !dropped && (start.is_some() || offset <= before) {
                    return Err(format!("offset {offset} behind {before}"));
                }
                seen.holes += u64::from(!filtered && !dropped);
            }
            _ => {}
        }
        seen.seen.push((number, offset));
        match start {
            Some((epoch, _)) => self.placed(&channel, &epoch, offset, number),
            None => match &published.place {
                Some((_, known)) if has_history && *known != offset => {
                    Err(format!("{number} is at {known} and at {offset}"))
                }
                _ => Ok(()),
            },
        }
    }

    /// A publication in the answer to a history call.
    pub(crate) fn read(
        &mut self,
        channel: &str,
        epoch: &str,
        publication: &Publication,
    ) -> Result<(), String> {
        let number = self.known(channel, publication)?;
        self.placed(channel, epoch, publication.offset, number)
    }

    /// Whether a stream at `top` may have dropped what it kept since `first` was published: whenever
    /// nothing was published for so long.
    pub(crate) fn may_be_dropped(
        &self,
        channel: &str,
        epoch: &str,
        (first, top): (u64, u64),
        ttl_ms: u64,
    ) -> bool {
        let place = |offset| (channel.to_owned(), epoch.to_owned(), offset);
        if first > top {
            return false;
        }
        // Each was taken between its own sending, and that of those before it, and its being seen.
        let mut earliest = None;
        for (place, at) in self.places.range(place(first)..=place(top)) {
            let published = &self.published[*at];
            let latest = published.seen_ms.unwrap_or(self.now_ms);
            match earliest {
                None if place.2 != first => return true,
                Some(before) if latest >= before + ttl_ms => return true,
                _ => earliest = earliest.max(Some(published.sent_ms)),
            }
        }
        earliest.is_none_or(|before| self.now_ms >= before + ttl_ms)
    }

    /// Whether there is no reason for which a recovery could have failed.
    pub(crate) fn must_recover(&self, wanted: &Wanted<'_>) -> bool {
        let Wanted { channel, from, top, .. } = *wanted;
        let same = (from.0.is_empty() || from.0 == top.0) && from.1 == top.1;
        if wanted.latest {
            return top.1 > 0
                && wanted.bytes_each <= wanted.bytes_max
                && !self.may_be_dropped(channel, top.0, (top.1, top.1), wanted.history_ttl_ms);
        }
        if same {
            return true;
        }
        let missing = top.1.saturating_sub(from.1);
        (from.0.is_empty() || from.0 == top.0)
            && from.1 < top.1
            && missing <= wanted.history_size
            && missing <= wanted.limit
            && missing * wanted.bytes_each <= wanted.bytes_max
            && !self.may_be_dropped(channel, top.0, (from.1 + 1, top.1), wanted.history_ttl_ms)
    }

    /// Somebody came to a channel, or left it, and a subscription was told.
    pub(crate) fn event(&mut self, segment: usize, client_id: &str, came: bool) {
        let seen = &mut self.segments[segment];
        let last = seen.events.insert(client_id.to_owned(), came);
        if last == Some(came) {
            self.doubtful = Some(format!(
                "client {} on {} was told twice that {client_id} came or left: {came}",
                seen.begin.client, seen.begin.channel
            ));
        }
    }

    /// An order of a step ends a subscription: what was acknowledged before has reached it.
    pub(crate) fn overtaken(&mut self, segment: usize, step: u64) {
        let Segment { begin, opened, seen_set, .. } = &self.segments[segment];
        if dropping(&self.dropping, &begin.channel).is_some() {
            return;
        }
        let of_channel = |published: &&Published| published.channel == begin.channel;
        let passes = |p: &Published| begin.filter.as_ref().is_none_or(|f| f.matches(&p.tags));
        let missing = self.published.iter().enumerate().find(|(at, published)| {
            of_channel(published)
                && published.sent > *opened
                && published.acked.is_some_and(|acked| acked < step)
                && passes(published)
                && !seen_set.contains(at)
        });
        if let Some((at, published)) = missing {
            self.overtaken = Some(format!(
                "client {} on {}: an order of step {step} overtook {at} {published:?}",
                begin.client, begin.channel
            ));
        }
    }

    /// Holds everything against everything. `lossy`: the counters say that deliveries were lost;
    /// `served`: the clients that must have all that is theirs by now.
    pub(crate) fn verify(
        &self,
        lossy: bool,
        events_lost: bool,
        served: &[usize],
    ) -> Result<(), String> {
        let mut next: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        let mut neighbours: [BTreeMap<usize, BTreeSet<usize>>; 2] = Default::default();
        for segment in &self.segments {
            if segment.holes > 0 && !lossy {
                return Err(format!("a hole, and no counter moved: {segment:?}"));
            }
            for pair in segment.seen.windows(2) {
                next.entry(pair[0].0).or_default().insert(pair[1].0);
                let dropped = dropping(&self.dropping, &segment.begin.channel).is_some();
                if segment.begin.filter.is_none() && !dropped {
                    neighbours[0].entry(pair[0].0).or_default().insert(pair[1].0);
                    neighbours[1].entry(pair[1].0).or_default().insert(pair[0].0);
                }
            }
            self.nothing_left_out(segment)?;
        }
        if !lossy {
            for (of, others) in neighbours.iter().flatten() {
                if others.len() > 1 {
                    return Err(format!("{of} has several neighbours: {others:?}"));
                }
            }
        }
        one_order(&next)?;
        if let (false, Some(fault)) = (events_lost, &self.doubtful) {
            return Err(fault.clone());
        }
        self.nothing_overtaken(lossy)?;
        for segment in self.segments.iter().filter(|s| served.contains(&s.begin.client)) {
            self.complete(segment, lossy)?;
            if !events_lost {
                self.told_of_all(segment, served)?;
            }
        }
        Ok(())
    }

    /// No order came before what was acknowledged before it.
    pub(crate) fn nothing_overtaken(&self, lossy: bool) -> Result<(), String> {
        match &self.overtaken {
            Some(fault) if !lossy => Err(fault.clone()),
            _ => Ok(()),
        }
    }

    /// A filter let all through that pass it, between the first and the last that came.
    fn nothing_left_out(&self, segment: &Segment) -> Result<(), String> {
        let (Some(filter), Some((epoch, start))) = (&segment.begin.filter, &segment.begin.start)
        else {
            return Ok(());
        };
        if dropping(&self.dropping, &segment.begin.channel).is_some() {
            return Ok(());
        }
        let last = segment.seen.last().map_or(*start, |(_, offset)| *offset);
        let place = |offset| (segment.begin.channel.clone(), epoch.clone(), offset);
        for (place, at) in self.places.range(place(start + 1)..place(last.max(start + 1))) {
            if filter.matches(&self.published[*at].tags) && !segment.seen_set.contains(at) {
                return Err(format!("{at} at {place:?} passes the filter: {segment:?}"));
            }
        }
        Ok(())
    }

    /// A subscription that is still open has all that was published since it began, or since the one
    /// began that it goes on from.
    fn complete(&self, segment: &Segment, lossy: bool) -> Result<(), String> {
        // A subscriber without a position is not notified of a loss.
        if segment.end != End::Open || (lossy && segment.begin.start.is_none()) {
            return Ok(());
        }
        let mut chain = vec![segment];
        while let Some(before) = chain.last().and_then(|segment| segment.begin.before) {
            chain.push(&self.segments[before]);
        }
        let first = chain[chain.len() - 1];
        // Of those that may be dropped the newest comes, if any.
        let newest = match dropping(&self.dropping, &segment.begin.channel) {
            None => None,
            Some(false) => return Ok(()),
            Some(true) => {
                let in_place =
                    self.places.range((segment.begin.channel.clone(), String::new(), 0)..);
                let of_channel = in_place.take_while(|(at, _)| at.0 == segment.begin.channel);
                let start = segment.begin.start.as_ref().map(|(epoch, _)| epoch);
                let of_epoch = of_channel.filter(|(at, _)| Some(&at.1) == start);
                Some(of_epoch.last().map(|(_, number)| *number))
            }
        };
        for (at, published) in self.published.iter().enumerate() {
            if newest.is_some_and(|newest| newest != Some(at)) {
                continue;
            }
            if published.channel == segment.begin.channel
                && published.sent > first.opened
                && (published.acked.is_some() || published.delivered || published.posted)
                && segment.begin.filter.as_ref().is_none_or(|f| f.matches(&published.tags))
                && !chain.iter().any(|segment| segment.seen_set.contains(&at))
            {
                return Err(format!(
                    "client {} on {} never got {at} {published:?}, subscribed at {}, {} before",
                    segment.begin.client,
                    segment.begin.channel,
                    segment.opened,
                    chain.len() - 1
                ));
            }
        }
        Ok(())
    }

    /// A receiver of joins got its own, and all behind it.
    fn told_of_all(&self, segment: &Segment, served: &[usize]) -> Result<(), String> {
        let Begin { joins, client_id, channel, .. } = &segment.begin;
        if segment.end != End::Open || !joins {
            return Ok(());
        }
        // The others may have gone without knowing it.
        let lives = |id: &&str| {
            let mut all = self.segments.iter().filter(|s| s.end == End::Open);
            all.any(|s| s.begin.client_id == *id && served.contains(&s.begin.client))
        };
        let later = self.presence.came_since(channel, segment.opened).filter(lives);
        for came in std::iter::once(client_id.as_str()).chain(later) {
            if segment.events.get(came) != Some(&true) {
                return Err(format!(
                    "client {} on {channel} wasn't told of {came}: {:?}",
                    segment.begin.client, segment.events
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn summary(&self) -> String {
        let seen: usize = self.segments.iter().map(|segment| segment.seen.len()).sum();
        let told = self.segments.iter().filter(|segment| segment.end == End::Told).count();
        format!(
            "{} publications, {} subscriptions ({} recovered), {seen} deliveries, {told} told of a \
             gap",
            self.published.len(),
            self.segments.len(),
            self.recovered
        )
    }
}

/// The number in a payload, which is JSON, or JSON behind a byte that makes it none.
fn number(data: &[u8]) -> Option<usize> {
    #[derive(serde::Deserialize)]
    struct Numbered {
        n: usize,
    }
    let data = data.strip_prefix(b"\xff").unwrap_or(data);
    serde_json::from_slice(data).ok().map(|Numbered { n }| n)
}

/// All pieces fit one order: no circle in who came before whom.
fn one_order(next: &BTreeMap<usize, BTreeSet<usize>>) -> Result<(), String> {
    let mut unmet: BTreeMap<usize, usize> = BTreeMap::new();
    for (from, others) in next {
        unmet.entry(*from).or_default();
        for other in others {
            *unmet.entry(*other).or_default() += 1;
        }
    }
    let mut free: Vec<usize> =
        unmet.iter().filter(|(_, count)| **count == 0).map(|(at, _)| *at).collect();
    while let Some(at) = free.pop() {
        unmet.remove(&at);
        for other in next.get(&at).into_iter().flatten() {
            let count = unmet.get_mut(other).unwrap();
            *count -= 1;
            if *count == 0 {
                free.push(*other);
            }
        }
    }
    if unmet.is_empty() { Ok(()) } else { Err(format!("no one order: {unmet:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(number: usize) -> Vec<u8> {
        format!(r#"{{"n":{number}}}"#).into_bytes()
    }

    fn publication(number: usize, offset: u64) -> Publication {
        Publication { data: data(number), offset, ..Publication::default() }
    }

    fn begin(channel: &str, start: Option<(&str, u64)>) -> Begin {
        let start = start.map(|(epoch, offset)| (epoch.to_owned(), offset));
        Begin { channel: channel.into(), start, ..Begin::default() }
    }

    fn with_published(channel: &str) -> History {
        let mut history = History::default();
        for at in 0..6 {
            let tags = [("t".to_owned(), at.to_string())];
            let tags = if channel == "tagged:a" { tags.into() } else { BTreeMap::new() };
            history.publish(channel, None, tags, data);
        }
        history
    }

    fn history(pieces: &[&[usize]]) -> History {
        let mut history = with_published("plain");
        for piece in pieces {
            let segment = history.opened(begin("plain", None));
            for at in *piece {
                history.delivered(segment, &publication(*at, 0)).unwrap();
            }
            history.ended(segment, End::Gone);
        }
        history
    }

    #[test]
    fn the_checker_sees_gaps_and_swaps() {
        assert_eq!(history(&[&[0, 1, 2], &[1, 2, 3]]).verify(false, false, &[0]), Ok(()));
        assert!(history(&[&[0, 1, 2], &[0, 2, 3]]).verify(false, false, &[0]).is_err());
        assert_eq!(history(&[&[0, 1, 2], &[0, 2, 3]]).verify(true, false, &[0]), Ok(()));
        assert!(history(&[&[0, 1, 2], &[2, 1]]).verify(true, false, &[0]).is_err());
        let mut late = history(&[]);
        late.step = 1;
        let segment = late.opened(begin("plain", None));
        late.step = 2;
        let at = late.publish("plain", None, BTreeMap::new(), data);
        assert_eq!(late.verify(false, false, &[0]), Ok(()));
        late.acked(at);
        assert!(late.verify(false, false, &[0]).is_err());
        late.delivered(segment, &publication(at, 0)).unwrap();
        assert_eq!(late.verify(false, false, &[0]), Ok(()));
        assert!(late.delivered(segment, &publication(at, 0)).is_err());
    }

    #[test]
    fn the_checker_finds_an_order_that_overtook_a_publish() {
        let mut history = history(&[]);
        let segment = history.opened(begin("plain", None));
        history.step = 2;
        let at = history.publish("plain", None, BTreeMap::new(), data);
        history.step = 3;
        history.acked(at);
        // An order of the same step may be before the acknowledgement.
        history.overtaken(segment, 3);
        assert_eq!(history.nothing_overtaken(false), Ok(()));
        history.overtaken(segment, 4);
        assert!(
            history.nothing_overtaken(false).is_err() && history.nothing_overtaken(true).is_ok()
        );
        history.overtaken = None;
        history.delivered(segment, &publication(at, 0)).unwrap();
        history.overtaken(segment, 4);
        assert_eq!(history.nothing_overtaken(false), Ok(()));
    }

    #[test]
    fn the_checker_finds_holes_of_recovery() {
        let mut history = with_published("rec:a");
        let first = history.opened(begin("rec:a", Some(("E", 0))));
        history.delivered(first, &publication(0, 1)).unwrap();
        history.ended(first, End::Gone);
        history.step = 1;
        let at = history.publish("rec:a", None, BTreeMap::new(), data);
        history.acked(at);
        history.step = 2;
        let again =
            Begin { before: Some(first), recovered: true, ..begin("rec:a", Some(("E", 1))) };
        let second = history.opened(again);
        assert!(history.verify(false, false, &[0]).is_err());
        // A hole, another publication at a known place, a known one at another place.
        assert!(history.delivered(second, &publication(at, 3)).is_err());
        let third = history.opened(begin("rec:a", Some(("E", 0))));
        assert!(history.delivered(third, &publication(at, 1)).is_err());
        let fourth = history.opened(begin("rec:a", Some(("E", 1))));
        assert!(history.delivered(fourth, &publication(0, 2)).is_err());
    }

    #[test]
    fn the_checker_finds_publications_lost_by_a_filter() {
        let node = |cmp: &str, val: &str| FilterNode {
            key: "t".into(),
            cmp: cmp.into(),
            val: val.into(),
            ..FilterNode::default()
        };
        let mut history = with_published("tagged:a");
        let tagged = |at: usize| Publication {
            tags: [("t".to_owned(), at.to_string())].into(),
            ..publication(at, at as u64 + 1)
        };
        let all = history.opened(begin("tagged:a", Some(("E", 0))));
        (0..4).for_each(|at| history.delivered(all, &tagged(at)).unwrap());
        history.ended(all, End::Gone);
        let filter = Some(node("neq", "1"));
        let some = history.opened(Begin { filter, ..begin("tagged:a", Some(("E", 0))) });
        assert!(history.delivered(some, &tagged(1)).is_err());
        let filter = Some(node("neq", "1"));
        let some = history.opened(Begin { filter, ..begin("tagged:a", Some(("E", 0))) });
        history.delivered(some, &tagged(0)).unwrap();
        history.delivered(some, &tagged(2)).unwrap();
        history.ended(some, End::Gone);
        history.segments.remove(1);
        assert_eq!(history.verify(false, false, &[]), Ok(()));
        let filter = Some(node("neq", "1"));
        let few = history.opened(Begin { filter, ..begin("tagged:a", Some(("E", 0))) });
        history.delivered(few, &tagged(3)).unwrap();
        assert!(history.verify(false, false, &[]).is_err());
    }
}
