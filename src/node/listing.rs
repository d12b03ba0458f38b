//! The channels with subscribers on this node.

use compact_str::CompactString;

use super::control_mail::{Busy, ControlMail};
use super::slices::Slice;
use crate::base::limits::{API_LARGE_ANSWER_CREDITS, API_PATTERN_BYTES_MAX};
use crate::edge::channels::OWN_CHANNEL;
use crate::edge::glob::{Glob, literal_of};
use crate::hub::names::NameHasher;
use crate::proto::client::Encoding;
use crate::shard::mail::{Answer, Asker, List, ListOf, Mail, Read, Reading};

/// Why there is no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListFault {
    /// The pattern is malformed, or too large when prepared.
    Pattern,
    /// The pattern is longer than [`API_PATTERN_BYTES_MAX`].
    LongPattern,
    /// The list is longer than the caller takes.
    TooLong,
    /// A shard takes no more questions now.
    Busy,
    /// A shard has no answer.
    Internal,
}

impl From<Busy> for ListFault {
    fn from(_: Busy) -> Self {
        Self::Busy
    }
}

/// A pattern for names of channels; an empty one is none, and matches all of them.
///
/// # Errors
/// It is malformed or too long.
pub(super) fn glob(pattern: &str) -> Result<Option<Glob>, ListFault> {
    match pattern {
        "" => Ok(None),
        pattern if pattern.len() > API_PATTERN_BYTES_MAX => Err(ListFault::LongPattern),
        pattern => Glob::new(pattern).map(Some).map_err(|_| ListFault::Pattern),
    }
}

/// The channels with subscribers here that match a pattern (all for an empty one), in any order. One without a
/// wildcard is looked up at its home, whatever the number of channels.
///
/// # Errors
/// The pattern can't be used, the list takes more than `bytes_max`, or a shard has no room for the question.
pub(super) async fn channels(
    names: &NameHasher,
    control_mail: &ControlMail,
    pattern: &str,
    bytes_max: usize,
) -> Result<Vec<(CompactString, u32)>, ListFault> {
    let glob = glob(pattern)?;
    if let Some(name) = literal_of(pattern).filter(|name| !name.is_empty()) {
        return match subscribers(names, control_mail, &name).await? {
            0 => Ok(Vec::new()),
            _ if name == OWN_CHANNEL => Ok(Vec::new()),
            _ if name.len() + LISTED_BYTES > bytes_max => Err(ListFault::TooLong),
            count => Ok(vec![(name.into(), count)]),
        };
    }
    let (mut channels, mut bytes) = (Vec::new(), 0);
    let mut slice = Slice::default();
    for shard in control_mail.shards() {
        let mut next = Some(0);
        while let Some(cursor) = next {
            let list = |asker: Asker| Mail::List(List { asker, cursor, of: ListOf::Channels });
            let sent = control_mail.ask(shard, API_LARGE_ANSWER_CREDITS, list)?;
            let Ok(Mail::Listed { listed, .. }) = sent.await else {
                return Err(ListFault::Internal);
            };
            next = listed.next;
            for (name, clients) in listed.channels {
                // A comparison takes steps for each character of both.
                slice.spend(name.len() * (1 + pattern.len() / PATTERN_BYTES_A_STEP)).await;
                if name == OWN_CHANNEL || glob.as_ref().is_some_and(|glob| !glob.matches(&name)) {
                    continue;
                }
                bytes += name.len() + LISTED_BYTES;
                if bytes > bytes_max {
                    return Err(ListFault::TooLong);
                }
                channels.push((name, clients));
            }
        }
    }
    Ok(channels)
}

/// The number of subscribers that a channel has here.
///
/// # Errors
/// The channel's home has no room for the question.
pub(super) async fn subscribers(
    names: &NameHasher,
    control_mail: &ControlMail,
    channel: &str,
) -> Result<u32, ListFault> {
    let hash = names.hash(channel);
    let sent = control_mail.ask(names.home(hash), API_LARGE_ANSWER_CREDITS, |asker| {
        Mail::Read(Box::new(Read {
            channel: channel.into(),
            hash,
            // Its options don't matter.
            namespace: 0,
            asker,
            encoding: Encoding::Json,
            bytes_max: 0,
            what: Reading::Subscribers,
        }))
    });
    match sent?.await {
        Ok(Mail::Answer { answer: Answer::Subscribers(count), .. }) => Ok(count),
        _ => Err(ListFault::Internal),
    }
}

/// Bytes of a channel in a list of them at most, beside its name.
pub(super) const LISTED_BYTES: usize = 32;

/// Bytes of a pattern that are compared with one character about as fast as one byte is copied.
const PATTERN_BYTES_A_STEP: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_checked_before_they_are_prepared() {
        assert!(glob("").unwrap().is_none());
        assert!(glob("a*").unwrap().is_some_and(|glob| glob.matches("ab")));
        assert_eq!(glob("[").unwrap_err(), ListFault::Pattern);
        let long = "*".repeat(API_PATTERN_BYTES_MAX + 1);
        assert_eq!(glob(&long).unwrap_err(), ListFault::LongPattern);
    }
}
