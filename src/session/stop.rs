//! The ways in which a command ends without its effect.

use std::sync::Arc;

use crate::edge::channels::{NameFault, Refusal};
use crate::edge::proxy::{AppDisconnect, AppError, ProxyOptions};
use crate::proto::client::{Disconnect, ErrorCode};
use crate::session::WaitsFor;
use crate::session::verdict::TokenKind;

/// The reason why a command has no effect now. The texts are details for the log.
#[derive(Debug, PartialEq)]
pub enum Stop {
    /// An error in the reply; the connection goes on.
    Error(ErrorCode, &'static str),
    /// The same, marked as temporary whatever the error is.
    TemporaryError(ErrorCode, &'static str),
    /// The node is over its memory limit, and the command would take more.
    NoMemory,
    /// The connection is closed.
    Close(Disconnect, &'static str),
    /// An error of the application's.
    AppError(AppError),
    /// The application closes the connection.
    AppClose(AppDisconnect),
    /// The command's token has a signature that has to be checked elsewhere first.
    Verify(TokenKind),
    /// The application decides, and has to be called first.
    Call(Arc<ProxyOptions>),
    /// The command is handled again once that answer is there.
    Wait(WaitsFor),
    /// The same, and later commands go on meanwhile. The number of the deferred command.
    Defer(u32),
}

/// Text of [`Stop::NoMemory`].
pub const NO_MEMORY: &str = "over roost.memory_limit";

impl Stop {
    /// The command is handled once more: an answer to it may be at hand, and has to stay there.
    pub fn comes_back(&self) -> bool {
        matches!(self, Self::Verify(_) | Self::Call(_) | Self::Wait(_) | Self::Defer(_))
    }

    /// The client gets an error as the reply.
    pub fn is_error(&self) -> bool {
        matches!(
            self,
            Self::Error(..) | Self::TemporaryError(..) | Self::NoMemory | Self::AppError(_)
        )
    }
}

impl From<ErrorCode> for Stop {
    fn from(code: ErrorCode) -> Self {
        Self::Error(code, "")
    }
}

impl From<Disconnect> for Stop {
    fn from(why: Disconnect) -> Self {
        Self::Close(why, "")
    }
}

impl From<NameFault> for Stop {
    fn from(fault: NameFault) -> Self {
        match fault {
            NameFault::Unknown => {
                Self::Error(ErrorCode::UnknownChannel, "no namespace of that name is configured")
            }
            NameFault::TooLong => {
                Self::Error(ErrorCode::BadRequest, "the name is longer than channel.max_length")
            }
            NameFault::BadName => Self::Error(
                ErrorCode::BadRequest,
                "the name is not ASCII, not as channel_regex, or no subject of NATS",
            ),
        }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::PermissionDenied(why) => Self::Error(ErrorCode::PermissionDenied, why),
            Refusal::BadRequest(why) => Self::Error(ErrorCode::BadRequest, why),
            Refusal::TokenExpired(why) => Self::Error(ErrorCode::TokenExpired, why),
            Refusal::Expired(why) => Self::Error(ErrorCode::Expired, why),
            Refusal::InvalidToken(why) => Self::Close(Disconnect::InvalidToken, why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_and_names_become_the_protocols_codes() {
        for refusal in [
            Refusal::PermissionDenied("a"),
            Refusal::BadRequest("b"),
            Refusal::TokenExpired("c"),
            Refusal::Expired("d"),
            Refusal::InvalidToken("e"),
        ] {
            let code = match Stop::from(refusal) {
                Stop::Error(code, _) => code.code(),
                Stop::Close(close, _) => close.code(),
                other => panic!("{other:?}"),
            };
            assert_eq!(code, refusal.code());
        }
        for fault in [NameFault::Unknown, NameFault::TooLong, NameFault::BadName] {
            let Stop::Error(code, _) = Stop::from(fault) else { panic!("{fault:?}") };
            assert_eq!(code.code(), fault.error_code());
        }
    }

    #[test]
    fn a_command_comes_back_or_is_answered_with_an_error_or_closes() {
        let app = AppError { code: 1000, message: "no".into(), temporary: false };
        let close = AppDisconnect { code: 4000, reason: "no".into() };
        for (stop, back, error) in [
            (Stop::from(ErrorCode::Internal), false, true),
            (Stop::TemporaryError(ErrorCode::TokenExpired, ""), false, true),
            (Stop::NoMemory, false, true),
            (Stop::AppError(app), false, true),
            (Stop::from(Disconnect::BadRequest), false, false),
            (Stop::AppClose(close), false, false),
            (Stop::Verify(TokenKind::Connection), true, false),
            (Stop::Call(crate::session::testing::proxy()), true, false),
            (Stop::Wait(WaitsFor::EarlierCommands), true, false),
            (Stop::Defer(3), true, false),
        ] {
            assert_eq!((stop.comes_back(), stop.is_error()), (back, error), "{stop:?}");
        }
    }
}
