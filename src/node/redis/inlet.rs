//! The way in: commands of homes come as mail, and go to the queue of a server or to the wishes of a home.
//!
//! The thread empties its mailbox at once, so that no home waits for a server: what a thread keeps for servers
//! is bounded in bytes, and commands beyond that fail.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Connected, Figures, Shared, commands, fence};
use crate::base::heap::HeapBytes as _;
use crate::cluster::hash::jump;
use crate::cluster::tops::TopRead;
use crate::hub::broker::{BrokerEvent, Command, FailureCause};
use crate::node::control_mail::Bell;
use crate::shard::mail::{Batch, Mail, Mailbox};

/// Batches opened before other tasks have their turn.
const BATCHES_MAX: usize = 64;

/// News that found no room are sent again after so long, even if no home rings.
const RETRY: Duration = Duration::from_millis(20);

/// The same for those of which this task doesn't know.
const LATE_RETRY: Duration = Duration::from_millis(500);

/// Takes mail until the thread ends.
pub(super) async fn run(
    shared: Rc<Shared>,
    servers: Rc<[Rc<Connected>]>,
    (mailbox, bell): (Mailbox, Arc<Bell>),
) {
    loop {
        for _ in 0..BATCHES_MAX {
            let Some(batch) = mailbox.take() else { break };
            open(&shared, &servers, *batch);
        }
        let waits = shared.events.flush();
        mailbox.take_turned(|shard| shared.events.has_room(shard.index()));
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

fn open(shared: &Shared, servers: &[Rc<Connected>], batch: Batch) {
    let home = batch.from.index();
    shared.handle(batch.mail.len());
    let mut failed = Vec::new();
    let mut tops = Tops::new(shared, servers, home);
    for mail in batch.mail {
        // Homes send nothing else here.
        let Mail::Command(command) = mail else { continue };
        if !admit(shared, &command, &mut failed) {
            continue;
        }
        match *command {
            Command::Hold => {
                fence::hold(shared, servers, home);
                continue;
            }
            Command::Fence { key } => {
                fence::publish(shared, servers, home, key);
                continue;
            }
            Command::Resume => {
                fence::resume(shared, servers, home);
                continue;
            }
            _ => {}
        }
        let at = jump(channel(&command), servers.len() as u32) as usize;
        let server = &servers[at];
        let wishes = |channel: &str| {
            server.wishes_of(shared, home, shared.settings.operations.names.partition(channel))
        };
        match *command {
            Command::Listen { channel } => wishes(&channel).listen(channel),
            Command::Unlisten { channel } => wishes(&channel).unlisten(&channel),
            command => {
                if let Some(command) = tops.add(at, command) {
                    tops.send(at);
                    commands::take(shared, server, home, command);
                }
            }
        }
    }
    (0..servers.len()).for_each(|at| tops.send(at));
    if !failed.is_empty() {
        shared.events.take(home, failed);
    }
}

/// Reads of a batch that positions most often answer, by server: those that come behind each other go together. The
/// order of a home's commands is kept.
struct Tops<'a> {
    shared: &'a Shared,
    servers: &'a [Rc<Connected>],
    home: usize,
    /// The reads for each server, and their bytes in the account of the thread; empty before the first.
    waiting: Vec<(Vec<TopRead>, usize)>,
}

impl<'a> Tops<'a> {
    fn new(shared: &'a Shared, servers: &'a [Rc<Connected>], home: usize) -> Self {
        Self { shared, servers, home, waiting: Vec::new() }
    }

    /// Takes a read of that kind. Another command comes back.
    fn add(&mut self, server: usize, command: Command) -> Option<Command> {
        let cost = match &command {
            Command::Read { expects: Some(0), .. }
                if self.shared.settings.operations.reads_tops_together() =>
            {
                cost(&command)
            }
            _ => return Some(command),
        };
        if let Command::Read { ticket, channel, page, meta_ttl_ms, .. } = command {
            self.waiting.resize_with(self.servers.len(), Default::default);
            let (reads, costs) = &mut self.waiting[server];
            reads.push(TopRead { ticket, channel, page, meta_ttl_ms });
            *costs += cost;
        }
        None
    }

    /// Sends the reads for a server, before another command does.
    fn send(&mut self, server: usize) {
        if let Some(waiting) = self.waiting.get_mut(server)
            && !waiting.0.is_empty()
        {
            let waiting = std::mem::take(waiting);
            commands::take_tops(self.shared, &self.servers[server], self.home, waiting);
        }
    }
}

/// Counts the bytes of a command. One for which there is no room fails; wishes to listen have room always,
/// since a home has one for each channel.
fn admit(shared: &Shared, command: &Command, failed: &mut Vec<BrokerEvent>) -> bool {
    if matches!(
        command,
        Command::Listen { .. }
            | Command::Unlisten { .. }
            | Command::Hold
            | Command::Fence { .. }
            | Command::Resume
    ) {
        return true;
    }
    let bytes = cost(command);
    let waiting = shared.bytes.fetch_add(bytes, Ordering::Relaxed);
    if waiting + bytes <= shared.settings.queue_bytes_max {
        return true;
    }
    shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
    failed.extend(failure(command));
    Figures::add(&shared.figures.refused, 1);
    false
}

/// Bytes that a command counts in the queue.
pub(super) fn cost(command: &Command) -> usize {
    size_of::<Command>() + command.heap_bytes()
}

/// The event of a command that is not sent; none if no answer is expected.
pub(super) fn failure(command: &Command) -> Option<BrokerEvent> {
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
    Some(BrokerEvent::Failed { ticket, cause: FailureCause::Unavailable })
}

fn channel(command: &Command) -> &str {
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
