//! What subscribers saw, held against what was promised: between the reply to its subscribe and its
//! end a subscription is a gap-free piece of its channel's one order.

use std::collections::{BTreeMap, BTreeSet};

/// A publication, by its number in the payload.
#[derive(Debug)]
struct Published {
    channel: String,
    sent: u64,
    acked: Option<u64>,
    delivered: bool,
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

/// One subscription of one client, from the reply on.
#[derive(Debug)]
struct Segment {
    client: usize,
    channel: String,
    /// When it was asked for and when the reply came.
    asked: u64,
    opened: u64,
    /// Epoch and offset of the reply, when it is positioned.
    start: Option<(String, u64)>,
    seen: Vec<(usize, u64)>,
    /// The same, to look up.
    seen_set: BTreeSet<usize>,
    holes: u64,
    end: End,
}

/// All that was published and seen. Moments are numbers of steps.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) step: u64,
    published: Vec<Published>,
    segments: Vec<Segment>,
    /// Which publication has a place in a stream.
    places: BTreeMap<(String, String, u64), usize>,
}

impl History {
    /// A publish is about to be sent; the answer is the number for its payload.
    pub(crate) fn publish(&mut self, channel: &str) -> usize {
        let (channel, sent) = (channel.to_owned(), self.step);
        self.published.push(Published { channel, sent, acked: None, delivered: false });
        self.published.len() - 1
    }

    pub(crate) fn acked(&mut self, publication: usize) {
        self.published[publication].acked = Some(self.step);
    }

    pub(crate) fn opened(
        &mut self,
        client: usize,
        channel: &str,
        asked: u64,
        start: Option<(String, u64)>,
    ) -> usize {
        self.segments.push(Segment {
            client,
            channel: channel.to_owned(),
            asked,
            opened: self.step,
            start,
            seen: Vec::new(),
            seen_set: BTreeSet::new(),
            holes: 0,
            end: End::Open,
        });
        self.segments.len() - 1
    }

    pub(crate) fn ended(&mut self, segment: usize, end: End) {
        self.segments[segment].end = end;
    }

    /// A publication reached a subscription.
    pub(crate) fn delivered(
        &mut self,
        segment: usize,
        publication: usize,
        offset: u64,
    ) -> Result<(), String> {
        let seen = &mut self.segments[segment];
        let what = || format!("client {} on {}", seen.client, seen.channel);
        let Some(published) = self.published.get_mut(publication) else {
            return Err(format!("{}: publication {publication} was never sent", what()));
        };
        published.delivered = true;
        if published.channel != seen.channel {
            return Err(format!("{}: got one of {}", what(), published.channel));
        }
        if published.acked.is_some_and(|acked| acked < seen.asked) {
            return Err(format!("{}: {publication} is older than the subscription", what()));
        }
        if !seen.seen_set.insert(publication) {
            return Err(format!("{}: {publication} came twice", what()));
        }
        let has_history = seen.channel.contains(':');
        let before = seen.seen.last().map(|(_, offset)| *offset);
        let before = before.or_else(|| seen.start.as_ref().map(|(_, offset)| *offset));
        match before {
            _ if !has_history && offset != 0 => {
                return Err(format!("{}: an offset without history", what()));
            }
            _ if has_history && offset == 0 => {
                return Err(format!("{}: no offset", what()));
            }
            Some(before) if has_history && offset != before + 1 => {
                if seen.start.is_some() || offset <= before {
                    return Err(format!("{}: offset {offset} behind {before}", what()));
                }
                seen.holes += 1;
            }
            _ => {}
        }
        if let Some((epoch, _)) = &seen.start {
            let place = (seen.channel.clone(), epoch.clone(), offset);
            let other = *self.places.entry(place).or_insert(publication);
            if other != publication {
                return Err(format!("{}: {offset} is {publication} and {other}", what()));
            }
        }
        seen.seen.push((publication, offset));
        Ok(())
    }

    /// Holds everything against everything. `lossy`: the counters say that deliveries were lost;
    /// `served`: the clients that must have all that is theirs by now.
    pub(crate) fn verify(&self, lossy: bool, served: &[usize]) -> Result<(), String> {
        let mut next: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        let mut before: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for segment in &self.segments {
            if segment.holes > 0 && !lossy {
                return Err(format!("a hole, and no counter moved: {segment:?}"));
            }
            for pair in segment.seen.windows(2) {
                next.entry(pair[0].0).or_default().insert(pair[1].0);
                before.entry(pair[1].0).or_default().insert(pair[0].0);
            }
        }
        if !lossy {
            for (of, others) in next.iter().chain(&before) {
                if others.len() > 1 {
                    return Err(format!("{of} has several neighbours: {others:?}"));
                }
            }
        }
        one_order(&next)?;
        for segment in self.segments.iter().filter(|segment| served.contains(&segment.client)) {
            self.complete(segment, lossy)?;
        }
        Ok(())
    }

    /// A subscription that is still open has all that was published since it began.
    fn complete(&self, segment: &Segment, lossy: bool) -> Result<(), String> {
        // Who isn't positioned isn't told of what was lost.
        if segment.end != End::Open || (lossy && segment.start.is_none()) {
            return Ok(());
        }
        for (at, published) in self.published.iter().enumerate() {
            if published.channel == segment.channel
                && published.sent > segment.opened
                && (published.acked.is_some() || published.delivered)
                && !segment.seen_set.contains(&at)
            {
                return Err(format!(
                    "client {} on {} never got {at} {published:?}, subscribed at {}",
                    segment.client, segment.channel, segment.opened
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn summary(&self) -> String {
        let seen: usize = self.segments.iter().map(|segment| segment.seen.len()).sum();
        let told = self.segments.iter().filter(|segment| segment.end == End::Told).count();
        format!(
            "{} publications, {} subscriptions, {seen} deliveries, {told} told of a gap",
            self.published.len(),
            self.segments.len()
        )
    }
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

    fn history(pieces: &[&[usize]]) -> History {
        let mut history = History::default();
        for _ in 0..6 {
            history.publish("plain");
        }
        for piece in pieces {
            let segment = history.opened(0, "plain", 0, None);
            for at in *piece {
                history.delivered(segment, *at, 0).unwrap();
            }
            history.ended(segment, End::Gone);
        }
        history
    }

    #[test]
    fn the_checker_sees_gaps_and_swaps() {
        assert_eq!(history(&[&[0, 1, 2], &[1, 2, 3]]).verify(false, &[0]), Ok(()));
        assert!(history(&[&[0, 1, 2], &[0, 2, 3]]).verify(false, &[0]).is_err());
        assert_eq!(history(&[&[0, 1, 2], &[0, 2, 3]]).verify(true, &[0]), Ok(()));
        assert!(history(&[&[0, 1, 2], &[2, 1]]).verify(true, &[0]).is_err());
        let mut late = history(&[]);
        late.step = 1;
        let segment = late.opened(0, "plain", 0, None);
        late.step = 2;
        let at = late.publish("plain");
        assert_eq!(late.verify(false, &[0]), Ok(()));
        late.acked(at);
        assert!(late.verify(false, &[0]).is_err());
        late.delivered(segment, at, 0).unwrap();
        assert_eq!(late.verify(false, &[0]), Ok(()));
        assert!(late.delivered(segment, at, 0).is_err());
    }
}
