//! The way in: commands of homes come as mail, and go to the queue of a server or to the wishes of a home.
//!
//! The thread empties its mailbox at once, so that no home waits for a server: what a thread keeps for servers
//! is bounded in bytes, and commands beyond that fail.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Connected, Shared, commands, fence};
use crate::cluster::hash::jump;
use crate::cluster::tops::TopRead;
use crate::hub::broker::{BrokerEvent, Command};
use crate::node::broker_mail::{self, channel, cost, failure};
use crate::node::broker_threads::Figures;
use crate::node::control_mail::Bell;
use crate::shard::mail::{Batch, Mail, Mailbox};

/// Takes mail until the thread ends.
pub(super) async fn run(
    shared: Rc<Shared>,
    servers: Rc<[Rc<Connected>]>,
    mail: (Mailbox, Arc<Bell>),
) {
    broker_mail::take(mail, &*shared.events, |batch| open(&shared, &servers, batch)).await;
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
