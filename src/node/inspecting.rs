//! Connections and closes of this node, found by asking all shards: in slices where no index answers.

use std::time::Duration;

use tokio::time::Instant;

use super::control_mail::{Busy, ControlMail};
use crate::base::id::ShardId;
use crate::base::limits::API_LARGE_ANSWER_CREDITS;
use crate::shard::mail::{Close, ClosesOf, Inspect, Inspected, Inspecting, Mail, Seen};

/// A search ends so soon, with what it has found by then.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(10);

/// What a search has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The best ones, with their shards.
    pub(super) connections: Vec<(ShardId, Seen)>,
    /// How many there are, as far as the search has come.
    pub(super) found: u64,
    /// Not all connections were looked at.
    pub(super) is_partial: bool,
}

/// Looks for connections, at most `max` (up to 100).
///
/// # Errors
/// A shard takes no more questions now.
pub(super) async fn connections(
    control_mail: &ControlMail,
    of: &Inspecting,
    max: u16,
) -> Result<Found, Busy> {
    let (mut all, began) = (Found::default(), Instant::now());
    for shard in control_mail.shards() {
        let mut next = Some(0);
        while let Some(cursor) = next {
            if began.elapsed() > SEARCH_TIME_MAX {
                all.is_partial = true;
                break;
            }
            let floor = match all.connections.last() {
                Some((_, last)) if all.connections.len() >= usize::from(max) => rank(of, last),
                _ => 0,
            };
            let inspected = ask(control_mail, shard, of, (cursor, floor, max)).await?;
            next = inspected.next;
            all.found += inspected.found;
            all.connections.extend(inspected.connections.into_iter().map(|seen| (shard, seen)));
            all.connections.sort_by_key(|(_, seen)| std::cmp::Reverse(rank(of, seen)));
            all.connections.truncate(max.into());
            if matches!(of, Inspecting::Channel(_)) && all.connections.len() >= usize::from(max) {
                // Those of a channel have no order: the first ones are as good as any.
                all.is_partial |= next.is_some();
                next = None;
            }
        }
    }
    Ok(all)
}

/// The latest closes, newest first, and the number of all that are remembered.
///
/// # Errors
/// A shard takes no more questions now.
pub(super) async fn closes(
    control_mail: &ControlMail,
    of: ClosesOf,
    max: u16,
) -> Result<(Vec<(ShardId, Close)>, u64), Busy> {
    let (mut all, mut found) = (Vec::new(), 0);
    let of = Inspecting::Closes(of);
    for shard in control_mail.shards() {
        let inspected = ask(control_mail, shard, &of, (0, 0, max)).await?;
        found += inspected.found;
        all.extend(inspected.closes.into_iter().map(|close| (shard, close)));
    }
    all.sort_by_key(|(_, close)| std::cmp::Reverse(close.at));
    all.truncate(max.into());
    Ok((all, found))
}

async fn ask(
    control_mail: &ControlMail,
    shard: ShardId,
    of: &Inspecting,
    (cursor, floor, max): (u32, u64, u16),
) -> Result<Inspected, Busy> {
    let of = of.clone();
    let sent = control_mail.ask(shard, API_LARGE_ANSWER_CREDITS, |asker| {
        Mail::Inspect(Box::new(Inspect { asker, of, cursor, floor, max }))
    })?;
    match sent.await {
        Ok(Mail::Inspected { inspected, .. }) => Ok(*inspected),
        // The shard has ended.
        _ => Ok(Inspected::default()),
    }
}

fn rank(of: &Inspecting, seen: &Seen) -> u64 {
    match of {
        Inspecting::Queues => seen.queued_bytes as u64,
        _ => seen.since_tick.into(),
    }
}
