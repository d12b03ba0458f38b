//! Distinct users of a node: one with connections on several shards counts once.
//!
//! Each shard knows its own users; nothing is kept for the sum. So it is counted on request, and every
//! few seconds for metrics: shards name the hashes of their users in slices. Of very many users only a part
//! is named, those whose hash ends in some zeros, and the number is what that part stands for: beyond
//! [`NAMED_MAX`] it is an estimate, right to about 1 %.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::control_mail::{Busy, ControlMail};
use crate::base::limits::API_LARGE_ANSWER_CREDITS;
use crate::shard::NodeState;
use crate::shard::mail::{List, ListOf, Mail};

/// Hashes of users that are named in one count, about.
const NAMED_MAX: u64 = 65_536;

/// How often they are counted for metrics.
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts every few seconds, for those who read [`NodeState::users`].
pub(super) async fn keep_counting(node: Arc<NodeState>, control_mail: Arc<ControlMail>) {
    let mut every = tokio::time::interval(INTERVAL);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        // A shard without room gets the question again then.
        let _ = count(&node, &control_mail).await;
    }
}

/// Counts the users of a node, and keeps the number for [`NodeState::users`].
///
/// # Errors
/// A shard takes no more now.
pub(super) async fn count(node: &NodeState, control_mail: &ControlMail) -> Result<u64, Busy> {
    let on_shards: u64 = node.counters.iter().map(|shard| shard.users.get()).sum();
    let users = match node.counters.len() {
        1 => on_shards,
        _ if on_shards == 0 => 0,
        _ => distinct(control_mail, zeros(on_shards)).await?,
    };
    node.users.store(users, Ordering::Relaxed);
    Ok(users)
}

/// In how many zeros the hash of a user ends that is named, when there are so many.
fn zeros(users: u64) -> u32 {
    (0..63).find(|zeros| users >> zeros <= NAMED_MAX).unwrap_or(63)
}

async fn distinct(control_mail: &ControlMail, zeros: u32) -> Result<u64, Busy> {
    let mut named = HashSet::new();
    for shard in control_mail.shards() {
        let mut next = Some(0);
        while let Some(cursor) = next {
            let of = ListOf::Users { zeros };
            let asked = control_mail.ask(shard, API_LARGE_ANSWER_CREDITS, |asker| {
                Mail::List(List { asker, cursor, of })
            })?;
            let Ok(Mail::Listed { listed, .. }) = asked.await else { return Err(Busy) };
            named.extend(listed.users);
            next = listed.next;
        }
    }
    Ok((named.len() as u64) << zeros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_named_unless_they_are_too_many() {
        for (users, expected) in [
            (0, 0),
            (1, 0),
            (NAMED_MAX, 0),
            (NAMED_MAX + 1, 0),
            (2 * NAMED_MAX + 1, 1),
            (1 << 20, 4),
            (u64::MAX, 48),
        ] {
            assert!(zeros(users) == expected || users >> zeros(users) <= NAMED_MAX, "{users}");
        }
        assert_eq!((zeros(1), zeros(NAMED_MAX), zeros(1 << 20)), (0, 0, 4));
    }
}
