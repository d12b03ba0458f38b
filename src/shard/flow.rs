//! The control flow between the reader of a message and the commands in it.

/// How the reader goes on behind a command or another event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// With the next event.
    On,
    /// Paused: resume at this byte offset of the message once the awaited answer has come.
    Pause(usize),
    /// With the next command; this one waits for the application under that number.
    Defer(u32),
    /// Not with this message: the rest of it is dropped.
    Skip,
    /// Not at all: the session has ended.
    End,
}

impl Flow {
    /// The part of a message that has to be kept until the awaited answer has come.
    pub(crate) fn unhandled(self, message: &[u8]) -> Option<&[u8]> {
        match self {
            Self::Pause(handled) => message.get(handled..),
            Self::On | Self::Defer(_) | Self::Skip | Self::End => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_keeps_the_unhandled_bytes() {
        let message = b"{1}\n{2}";
        assert_eq!(Flow::Pause(4).unhandled(message), Some(&b"{2}"[..]));
        assert_eq!(Flow::Pause(0).unhandled(message), Some(&message[..]));
        for flow in [Flow::On, Flow::Defer(7), Flow::Skip, Flow::End] {
            assert_eq!(flow.unhandled(message), None, "{flow:?}");
        }
    }
}
