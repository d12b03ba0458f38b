//! A node's state and the control thread's end of its mail, without shards: a test answers in their place.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::control_mail::{Bell, ControlMail};
use crate::base::id::ShardId;
use crate::base::limits::MAILBOX_BATCHES;
use crate::config::{self, Config, Sources};
use crate::edge::address_limits::{AddressLimits, AddressOptions};
use crate::edge::client_id::ClientIdSealer;
use crate::edge::jwt::TokenKeys;
use crate::hub::names::NameHasher;
use crate::io::Alarm;
use crate::session::Rules;
use crate::shard::crypto::Crypto;
use crate::shard::mail::{Mail, MailLane, Mailbox};
use crate::shard::{Memory, NodeParts, NodeState, Notices, fixture};

/// A node without shards.
pub(super) struct Bench {
    pub(super) node: Arc<NodeState>,
    pub(super) control_mail: Arc<ControlMail>,
    shards: Vec<Mailbox>,
    /// The mail of shards to the control thread.
    answers: Vec<MailLane>,
    /// The control thread's end, until its mail runs.
    control: Option<(Mailbox, Arc<Bell>)>,
}

/// The configuration of these environment variables.
fn config(variables: &[(&str, &str)]) -> Config {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let environment = variables.iter().map(owned).collect();
    config::load(&Sources { environment, ..Sources::default() }).unwrap().config
}

impl Bench {
    /// A node with so many shards and bytes of memory, and options by environment variables.
    pub(super) fn new(shards: usize, memory_limit: u64, variables: &[(&str, &str)]) -> Self {
        Self::named("node", shards, memory_limit, variables)
    }

    /// The same with an id of its own.
    pub(super) fn named(
        id: &str,
        shards: usize,
        memory_limit: u64,
        variables: &[(&str, &str)],
    ) -> Self {
        let (letterboxes, mailboxes): (Vec<_>, Vec<_>) = (0..shards)
            .map(|_| Mailbox::new(MAILBOX_BATCHES, Alarm::new(Arc::new(Bell::default()))))
            .unzip();
        let bell = Arc::new(Bell::default());
        let (own, mailbox) = Mailbox::new(MAILBOX_BATCHES, Alarm::new(bell.clone()));
        Self {
            node: Arc::new(node(id, config(variables), shards, memory_limit)),
            control_mail: Arc::new(ControlMail::new(&letterboxes)),
            shards: mailboxes,
            answers: (0..shards).map(|_| MailLane::new(own.clone())).collect(),
            control: Some((mailbox, bell)),
        }
    }

    /// Waits for what is wanted, with `shard` in the place of every shard: it is shown each message of the
    /// control thread, and what it returns is sent there.
    pub(super) async fn with_shards<T>(
        &mut self,
        wanted: impl Future<Output = T>,
        mut shard: impl FnMut(ShardId, Mail) -> Option<Mail>,
    ) -> T {
        if let Some((mailbox, bell)) = self.control.take() {
            tokio::spawn(Arc::clone(&self.control_mail).run(mailbox, bell, |_, _| {}));
        }
        tokio::pin!(wanted);
        loop {
            tokio::select! {
                biased;
                result = &mut wanted => return result,
                () = tokio::task::yield_now() => {}
            }
            for (at, (mailbox, answers)) in self.shards.iter().zip(&mut self.answers).enumerate() {
                let id = ShardId(at as u8);
                while let Some(batch) = mailbox.take() {
                    batch.mail.into_iter().filter_map(|mail| shard(id, mail)).for_each(|mail| {
                        answers.push(mail);
                    });
                }
                answers.flush(id);
                mailbox.take_turned(|_| {});
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a zero of time for the log")]
fn node(id: &str, config: Config, shards: usize, memory_limit: u64) -> NodeState {
    NodeState::new(NodeParts {
        rules: rules(id, config),
        options: fixture::options(),
        names: NameHasher::new(7, shards),
        crypto: Crypto::Inline,
        memory: Memory::simulated(memory_limit),
        addresses: AddressLimits::new(AddressOptions::default(), 7, 100),
        notices: Notices::new(Instant::now()),
        tls: None,
    })
}

fn rules(id: &str, config: Config) -> Rules {
    Rules {
        client: ArcSwap::from_pointee(config.client),
        keys: TokenKeys::new(&config.tokens.connection).unwrap(),
        subscription_keys: None,
        channels: config.channels.into_shared(),
        admin: None,
        api: ArcSwap::from_pointee(None),
        origins: ArcSwap::from_pointee(config.origins),
        client_ids: ClientIdSealer::new(&[7; 32]),
        session_ids: ClientIdSealer::new(&[8; 32]),
        node_id: id.to_owned(),
        rpc: ArcSwap::from_pointee(config.rpc),
    }
}
