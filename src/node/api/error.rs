//! Errors of API methods.

use crate::edge::channels::NameFault;
use crate::node::cluster::SurveyOutcome;
use crate::node::control_mail::Busy;
use crate::node::listing::ListFault;
use crate::proto::client::ErrorCode;

/// Why a method has no result. Fronts send code and message (server API, 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::node) enum ApiError {
    #[error("internal server error")]
    Internal,
    #[error("internal server error: the channel's shard takes no more now, try again")]
    Busy,
    #[error("internal server error: the node is short of memory, try again")]
    ShortOfMemory,
    #[error("internal server error: the broker can't be reached, try again")]
    BrokerUnavailable,
    #[error("internal server error: the stored data is not JSON")]
    NotJson,
    #[error("internal server error: done on this node, maybe not on the others")]
    OnlyHere,
    #[error("internal server error: other nodes can't be reached")]
    NodesUnreachable,
    #[error("internal server error: another node has not answered in time")]
    NodeSilent,
    #[error("internal server error: another node can't answer")]
    NodeFailed,
    #[error("internal server error: the pattern can't be used")]
    UnusablePattern,
    #[error("unknown channel")]
    UnknownChannel,
    #[error("not found")]
    NotFound,
    #[error("limit exceeded")]
    LimitExceeded,
    #[error("limit exceeded: the answer would be too long")]
    AnswerTooLong,
    #[error("bad request")]
    BadRequest,
    #[error("bad request: too many entries, or too long for so many channels")]
    TooMuch,
    #[error("bad request: the payload is nested too deep")]
    TooDeep,
    #[error("bad request: the pattern is too long")]
    LongPattern,
    #[error("not available")]
    NotAvailable,
    #[error("unrecoverable position")]
    UnrecoverablePosition,
}

/// A result or an error, as a method returns it.
pub(in crate::node) type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    /// Its number.
    pub(in crate::node) fn code(self) -> u16 {
        match self {
            Self::Internal
            | Self::Busy
            | Self::ShortOfMemory
            | Self::BrokerUnavailable
            | Self::NotJson
            | Self::OnlyHere
            | Self::NodesUnreachable
            | Self::NodeSilent
            | Self::NodeFailed
            | Self::UnusablePattern => 100,
            Self::UnknownChannel => 102,
            Self::NotFound => 104,
            Self::LimitExceeded | Self::AnswerTooLong => 106,
            Self::BadRequest | Self::TooMuch | Self::TooDeep | Self::LongPattern => 107,
            Self::NotAvailable => 108,
            Self::UnrecoverablePosition => 112,
        }
    }
}

impl From<NameFault> for ApiError {
    fn from(fault: NameFault) -> Self {
        match fault {
            NameFault::Unknown => Self::UnknownChannel,
            NameFault::TooLong | NameFault::BadName => Self::BadRequest,
        }
    }
}

impl From<Busy> for ApiError {
    fn from(_: Busy) -> Self {
        Self::Busy
    }
}

impl From<ListFault> for ApiError {
    fn from(fault: ListFault) -> Self {
        match fault {
            ListFault::Pattern => Self::BadRequest,
            ListFault::LongPattern => Self::LongPattern,
            ListFault::TooLong => Self::AnswerTooLong,
            ListFault::Busy => Self::Busy,
            ListFault::Internal => Self::Internal,
        }
    }
}

impl From<SurveyOutcome> for ApiError {
    fn from(outcome: SurveyOutcome) -> Self {
        match outcome {
            SurveyOutcome::Complete => Self::Internal,
            SurveyOutcome::Unsent => Self::NodesUnreachable,
            SurveyOutcome::Timeout => Self::NodeSilent,
            SurveyOutcome::Refused => Self::NodeFailed,
            SurveyOutcome::TooLong => Self::AnswerTooLong,
            SurveyOutcome::TooMany => Self::Busy,
        }
    }
}

impl From<ErrorCode> for ApiError {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::LimitExceeded => Self::LimitExceeded,
            ErrorCode::NotAvailable => Self::NotAvailable,
            ErrorCode::UnrecoverablePosition => Self::UnrecoverablePosition,
            ErrorCode::UnknownChannel => Self::UnknownChannel,
            _ => Self::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_begin_with_the_text_of_their_code() {
        for (error, code, text) in [
            (ApiError::Internal, 100, "internal server error"),
            (ApiError::Busy, 100, "internal server error"),
            (ApiError::ShortOfMemory, 100, "internal server error"),
            (ApiError::BrokerUnavailable, 100, "internal server error"),
            (ApiError::NotJson, 100, "internal server error"),
            (ApiError::OnlyHere, 100, "internal server error"),
            (ApiError::NodesUnreachable, 100, "internal server error"),
            (ApiError::NodeSilent, 100, "internal server error"),
            (ApiError::NodeFailed, 100, "internal server error"),
            (ApiError::UnusablePattern, 100, "internal server error"),
            (ApiError::UnknownChannel, 102, "unknown channel"),
            (ApiError::NotFound, 104, "not found"),
            (ApiError::LimitExceeded, 106, "limit exceeded"),
            (ApiError::AnswerTooLong, 106, "limit exceeded"),
            (ApiError::BadRequest, 107, "bad request"),
            (ApiError::TooMuch, 107, "bad request"),
            (ApiError::TooDeep, 107, "bad request"),
            (ApiError::LongPattern, 107, "bad request"),
            (ApiError::NotAvailable, 108, "not available"),
            (ApiError::UnrecoverablePosition, 112, "unrecoverable position"),
        ] {
            assert_eq!(error.code(), code, "{error:?}");
            assert!(error.to_string().starts_with(text), "{error:?}");
        }
    }
}
