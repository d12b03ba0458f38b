//! Presence by survey, in the place of a broker of presence: each node keeps its own clients at their homes, and a
//! read is a question to all nodes, which the control thread asks.
//!
//! ```text
//!  home --Members--> this thread --ControlEvent::Presence--> control thread --survey--> other nodes
//!  home <--answer--- this thread <------Inbound::Answer--------------'
//! ```
//! Changes of presence cost nothing: there is no store, and nothing to refresh.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::broker_mail;
use super::broker_threads::{Begin, ControlEvent, Figures, Inbound, Service};
use crate::hub::broker::{BrokerEvent, Command, Ticket};
use crate::shard::mail::{Batch, Mail};

/// A read of a home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceRead {
    /// The home.
    pub home: usize,
    /// Names the answer.
    pub ticket: Ticket,
    /// The channel.
    pub channel: String,
    /// The numbers are enough.
    pub counts: bool,
}

/// What the thread needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Homes of this node.
    pub homes: usize,
}

impl Service for Settings {
    fn name(&self) -> &'static str {
        "presence"
    }

    fn threads(&self) -> usize {
        1
    }

    fn figures(&self) -> Figures {
        Figures::sized(0, 0, 1)
    }

    fn probe_interval(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn run(self: Arc<Self>, begin: Begin) {
        let Begin { events, mut inbox, mail, begins, figures, .. } = begin;
        let events: Rc<dyn super::broker_threads::Events> = Rc::from(events);
        (0..self.homes).for_each(|home| events.take(home, vec![BrokerEvent::Connected]));
        drop(begins);
        let of_mail = events.clone();
        tokio::task::spawn_local(async move {
            broker_mail::take(mail, &*of_mail, |batch| open(&*of_mail, batch)).await;
        });
        while let Some(inbound) = inbox.recv().await {
            if let Inbound::Answer(home, event) = inbound {
                if matches!(event, BrokerEvent::Failed { .. }) {
                    figures.refused.fetch_add(1, Ordering::Relaxed);
                }
                events.take(home, vec![event]);
            }
        }
    }
}

fn open(events: &dyn super::broker_threads::Events, batch: Batch) {
    let home = batch.from.index();
    let (mut done, mut reads) = (Vec::new(), Vec::new());
    for mail in batch.mail {
        let Mail::Command(command) = mail else { continue };
        match *command {
            // The home has it already, and other nodes will ask it.
            Command::Presence(update) => {
                done.extend(update.ticket.map(|ticket| BrokerEvent::Done { ticket }));
            }
            Command::Members { ticket, channel, counts } => {
                let read = PresenceRead { home, ticket, channel: channel.into(), counts };
                reads.push(ControlEvent::Presence(read));
            }
            other => done.extend(broker_mail::failure(&other)),
        }
    }
    if !done.is_empty() {
        events.take(home, done);
    }
    if !reads.is_empty() {
        events.control(reads);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::base::id::ShardId;
    use crate::hub::broker::PresenceUpdate;

    #[derive(Default)]
    struct Sink(RefCell<Vec<String>>);

    impl super::super::broker_threads::Events for Sink {
        fn take(&self, home: usize, events: Vec<BrokerEvent>) {
            self.0.borrow_mut().push(format!("{home} {events:?}"));
        }

        fn control(&self, events: Vec<ControlEvent>) {
            self.0.borrow_mut().push(format!("{events:?}"));
        }

        fn flush(&self) -> bool {
            false
        }

        fn has_room(&self, _: usize) {}
    }

    #[test]
    fn changes_are_done_at_once_and_reads_are_questions() {
        let sink = Sink::default();
        let update = |ticket| {
            let (channel, changes) = ("news".into(), Vec::new());
            Command::Presence(Box::new(PresenceUpdate { channel, ticket, changes }))
        };
        let members = Command::Members { ticket: Ticket(2), channel: "news".into(), counts: true };
        let commands = [update(Some(Ticket(1))), update(None), members];
        let mail = commands.into_iter().map(|of| Mail::Command(Box::new(of))).collect();
        open(&sink, Batch { from: ShardId(3), mail, bytes: 0 });
        let events = sink.0.into_inner();
        assert_eq!(events[0], "3 [Done { ticket: Ticket(1) }]");
        assert!(events[1].contains("counts: true") && events.len() == 2, "{events:?}");
    }
}
