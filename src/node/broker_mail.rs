//! The way of homes' commands into a thread, whatever its broker is.
//!
//! The thread empties its mailbox at once, so that no home waits for a server: what a thread keeps for servers is
//! bounded in bytes, and commands beyond that fail.

use std::sync::Arc;
use std::time::Duration;

use super::broker_threads::Events;
use super::control_mail::Bell;
use crate::base::heap::HeapBytes as _;
use crate::hub::broker::{BrokerEvent, Command, FailureCause};
use crate::shard::mail::{Batch, Mailbox};

/// Batches opened before other tasks have their turn.
const BATCHES_MAX: usize = 64;

/// News that found no room are sent again after so long, even if no home rings.
const RETRY: Duration = Duration::from_millis(20);

/// The same for those of which this task doesn't know.
const LATE_RETRY: Duration = Duration::from_millis(500);

/// Takes mail until the thread ends: `open` carries out what is in a batch.
pub(super) async fn take(
    (mailbox, bell): (Mailbox, Arc<Bell>),
    events: &dyn Events,
    mut open: impl FnMut(Batch),
) {
    loop {
        for _ in 0..BATCHES_MAX {
            let Some(batch) = mailbox.take() else { break };
            open(*batch);
        }
        let waits = events.flush();
        mailbox.take_turned(|shard| events.has_room(shard.index()));
        if !mailbox.sleep() {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = bell.rung() => {}
            () = tokio::time::sleep(if waits { RETRY } else { LATE_RETRY }) => {}
        }
        mailbox.awake();
    }
}

/// Bytes that a command counts in the queue.
pub(super) fn cost(command: &Command) -> usize {
    size_of::<Command>() + command.heap_bytes()
}

/// The event of a command that is not sent; none if no answer is expected.
pub(super) fn failure(command: &Command) -> Option<BrokerEvent> {
    failure_for(command, FailureCause::Unavailable)
}

/// The same with its cause.
pub(super) fn failure_for(command: &Command, cause: FailureCause) -> Option<BrokerEvent> {
    let ticket = match command {
        Command::Publish(publishing) => publishing.ticket,
        Command::Read { ticket, .. }
        | Command::Renew { ticket, .. }
        | Command::Drop { ticket, .. }
        | Command::Members { ticket, .. } => *ticket,
        Command::Presence(update) => update.ticket?,
        Command::Listen { .. }
        | Command::Unlisten { .. }
        | Command::Announce { .. }
        | Command::Hold
        | Command::Fence { .. }
        | Command::Resume => return None,
    };
    Some(BrokerEvent::Failed { ticket, cause })
}

/// The channel of a command.
pub(super) fn channel(command: &Command) -> &str {
    match command {
        Command::Publish(publishing) => &publishing.channel,
        Command::Presence(update) => &update.channel,
        Command::Listen { channel }
        | Command::Unlisten { channel }
        | Command::Read { channel, .. }
        | Command::Renew { channel, .. }
        | Command::Drop { channel, .. }
        | Command::Members { channel, .. }
        | Command::Announce { channel, .. } => channel,
        // These are for all channels.
        Command::Hold | Command::Fence { .. } | Command::Resume => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::broker::Ticket;

    #[test]
    fn only_commands_with_an_answer_fail() {
        let ticket = Ticket(3);
        let drop = Command::Drop { ticket, channel: "news".into() };
        let failed = failure_for(&drop, FailureCause::Unsupported);
        let is_expected = matches!(
            failed,
            Some(BrokerEvent::Failed { ticket: Ticket(3), cause: FailureCause::Unsupported })
        );
        assert!(is_expected && channel(&drop) == "news" && cost(&drop) > 0);
        assert!(failure(&Command::Listen { channel: "news".into() }).is_none());
    }
}
