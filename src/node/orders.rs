//! Orders about connections of users: every shard carries them out on its own.

use compact_str::CompactString;
use tokio::sync::oneshot;

use super::control_mail::{Busy, ControlMail};
use crate::base::id::ShardId;
use crate::shard::mail::{AdminCommand, Mail, Order};

/// Connections that an order is about: all of a user, or the one of a client id or session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// Empty are the anonymous ones.
    pub(super) user: CompactString,
    /// Those of all users, whatever `user` is.
    pub(super) all_users: bool,
    /// Client id; empty: any.
    pub(super) client: CompactString,
    /// Session; empty: any.
    pub(super) session: CompactString,
}

/// Sends an order to a shard.
///
/// # Errors
/// The shard takes no more now.
pub(super) fn send(
    control_mail: &ControlMail,
    shard: ShardId,
    target: &Target,
    command: &AdminCommand,
) -> Result<oneshot::Receiver<Mail>, Busy> {
    let Target { user, all_users, client, session } = target.clone();
    let command = command.clone();
    control_mail.ask(shard, 1, |asker| {
        Mail::Order(Box::new(Order { asker, user, all_users, client, session, command }))
    })
}

/// Orders all shards to do something, and waits until all have done it.
///
/// # Errors
/// A shard takes no more now; the others carry it out all the same.
pub(super) async fn carry_out(
    control_mail: &ControlMail,
    target: &Target,
    command: &AdminCommand,
) -> Result<(), Busy> {
    let shards = control_mail.shards();
    let sent: Vec<_> = shards.map(|shard| send(control_mail, shard, target, command)).collect();
    let mut done = Ok(());
    for sent in sent {
        match sent {
            Ok(sent) => _ = sent.await,
            Err(busy) => done = Err(busy),
        }
    }
    done
}
