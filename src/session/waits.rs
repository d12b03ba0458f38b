//! The reasons for which a client's commands stop, and the one way in which they go on.
//!
//! A command that can't be carried out yet changes nothing: its bytes stay in the connection's input,
//! the connection isn't read further, and with the answer at hand the command is handled once more
//! from its beginning. So nothing of a half-done command has to be kept, and commands keep their order.

use crate::base::id::ShardId;

/// The answer that the commands of a connection wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Credit at a home, or for a call of the application: too many requests are unanswered there.
    Credit(ShardId),
    /// The check of a token's signature.
    TokenCheck,
    /// A reply of the application.
    Application,
    /// Homes, which may wait for a broker in turn: they count the user's connections and make the
    /// subscriptions of the `connect`.
    Broker,
    /// Answers to commands before it: too many of them are out, or one of them has to be first.
    EarlierCommands,
}

impl WaitsFor {
    /// Whether an answered command lets the connection go on. The other reasons have an answer of
    /// their own, and to handle the command before it comes would only stop it again.
    pub fn ends_with_answers(self) -> bool {
        match self {
            Self::EarlierCommands | Self::Broker => true,
            Self::Credit(_) | Self::TokenCheck | Self::Application => false,
        }
    }

    /// Whether it is the node that is late and not the client, whose time to connect stands still
    /// meanwhile.
    pub fn is_of_the_node(self) -> bool {
        match self {
            Self::Credit(_) | Self::TokenCheck | Self::Application | Self::Broker => true,
            Self::EarlierCommands => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_the_nodes_or_ends_with_answers_to_commands() {
        for (waits, answers, node) in [
            (WaitsFor::Credit(ShardId(3)), false, true),
            (WaitsFor::TokenCheck, false, true),
            (WaitsFor::Application, false, true),
            (WaitsFor::Broker, true, true),
            (WaitsFor::EarlierCommands, true, false),
        ] {
            assert_eq!(waits.ends_with_answers(), answers, "{waits:?}");
            assert_eq!(waits.is_of_the_node(), node, "{waits:?}");
        }
    }

    #[test]
    fn a_connection_keeps_its_reason_in_two_bytes() {
        assert_eq!(size_of::<Option<WaitsFor>>(), 2);
    }
}
