//! What shards tell each other, and how it travels.
//!
//! ```text
//!  shard A                                           shard B
//!  mail -> outbox for B --(end of turn: one batch)--> mailbox of B (bounded FIFO, all senders)
//!                          then ring B's alarm, once
//! ```
//! One queue for each receiver, whoever sends: what is sent first arrives first. A batch is one
//! pointer, and carries all that a turn had for that shard.
//!
//! Each request (subscribe, publish, ...) gets exactly one answer, and spends a credit that comes
//! back with it, so that answers always fit. Deliveries are not answered: when the receiver can't
//! take them they become a gap. Clean-up (unsubscribe of a dead connection) is derived from what the
//! connection still owes, and waits there.

pub(crate) mod acks;
pub(crate) mod app;
pub(crate) mod app_events;
mod asker;
mod closes;
pub(crate) mod credits;
pub(crate) mod emulation;
mod handover;
mod lane;
pub(crate) mod mailbox;
mod messages;
pub(crate) mod post;
pub(crate) mod shard_set;

pub use self::app_events::{AppEvent, AppEvents};
pub use self::asker::{Asker, Method};
pub use self::closes::{Close, ClosesOf};
pub use self::handover::{HandoverAction, HandoverStep, Outcome};
pub use self::lane::{Flushed, MailLane};
pub use self::mailbox::{BROKER, Batch, CONTROL, Letterbox, Mailbox, Outside, PRESENCE_BROKER};
pub use self::messages::{
    AdminCommand, Answer, Failure, Inspect, Inspected, Inspecting, List, ListOf, Listed, Mail,
    Membership, Order, Publish, Read, Reading, Recover, Recovery, Seen, SeenSub, Subscribe,
    Subscribed, Unsubscribe, UserConn, WebRequest,
};
pub use crate::session::PublishOptions;
