//! Commands of the server API as messages between nodes, and back.
//!
//! A message has less than a subscription needs: how it recovers, how long its position is kept, filters and
//! deltas are options of the namespace on the node that has the client.

use compact_str::CompactString;

use crate::base::expiry::Expiry;
use crate::base::limits::API_NESTING_MAX;
use crate::cluster::control::{self, Message, Selection};
use crate::edge::channels::{Asked, ChannelRules};
use crate::edge::jwt::Overrides;
use crate::hub::history::Since;
use crate::node::api::is_nested_deeper;
use crate::node::orders::Target;
use crate::proto::client::schema::StreamPosition;
use crate::proto::client::{self, Unsubscribed};
use crate::session::ServerSub;
use crate::shard::mail::AdminCommand;

/// Where a subscription comes from: the server API.
const BY_SERVER_API: u32 = 10;

/// A close frame's reason at most (RFC 6455 5.5: 125 bytes with the code).
const CLOSE_REASON_BYTES_MAX: usize = 123;

/// Why a message of another node is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it is no command")]
    NoCommand,
    #[error("its channel is not configured here, or its name can't be one")]
    UnknownChannel,
    #[error("a payload is nested too deep")]
    TooDeep,
}

/// The message that has other nodes carry out what this one does.
pub(super) fn message_of(target: &Target, command: &AdminCommand, rules: &ChannelRules) -> Message {
    let Target { user, all_users, client, session } = target;
    let (user, all_users) = (user.to_string(), *all_users);
    let (client, session) = (client.to_string(), session.to_string());
    match command {
        AdminCommand::Disconnect { code, reason, spare } => {
            Message::Disconnect(control::Disconnect {
                user,
                whitelist: spare.iter().map(ToString::to_string).collect(),
                code: u32::from(*code),
                reason: reason.to_string(),
                client,
                session,
                all_users,
                ..<_>::default()
            })
        }
        AdminCommand::Unsubscribe { channel, why } => {
            let usual = || (Unsubscribed::Server.code(), Unsubscribed::Server.reason().into());
            let (code, reason) = why.clone().unwrap_or_else(usual);
            Message::Unsubscribe(control::Unsubscribe {
                channel: channel.to_string(),
                user,
                client,
                session,
                code: u32::from(code),
                reason: reason.to_string(),
                all_users,
                ..<_>::default()
            })
        }
        AdminCommand::Subscribe(sub) => {
            let namespace = rules.namespace(sub.namespace);
            // Other nodes have no options of this call: it says all of them.
            let granted = namespace.grant(Asked::default(), "", false, Some(&sub.overrides));
            let since = sub.since.as_ref();
            Message::Subscribe(control::Subscribe {
                user,
                channel: sub.channel.to_string(),
                emit_presence: granted.presence,
                emit_join_leave: granted.announces,
                expire_at: sub.expires.map_or(0, |expires| expires.seconds().into()),
                position: granted.positioned,
                recover: granted.recoverable,
                channel_info: sub.info.to_vec(),
                client,
                data: sub.data.to_vec(),
                recover_since: since.map(|since| StreamPosition {
                    offset: since.offset,
                    epoch: since.epoch.to_string(),
                }),
                session,
                push_join_leave: granted.join_leave,
                source: BY_SERVER_API,
                all_users,
                ..<_>::default()
            })
        }
        AdminCommand::Refresh { expired, expire_at, info } => Message::Refresh(control::Refresh {
            user,
            client,
            expired: *expired,
            expire_at: (*expire_at).max(0),
            info: info.to_vec(),
            session,
            all_users,
            ..<_>::default()
        }),
    }
}

/// What another node has this one do; `None` when it means no connection here.
///
/// # Errors
/// It can't be carried out here.
pub(super) fn command_of(
    message: Message,
    rules: &ChannelRules,
) -> Result<Option<(Target, AdminCommand)>, Refusal> {
    let Some(selection) = message.selection() else { return Err(Refusal::NoCommand) };
    if selection.is_empty() {
        return Ok(None);
    }
    let target = target_of(&selection);
    let command = match message {
        Message::Disconnect(control::Disconnect { whitelist, code, reason, .. }) => {
            let mut spare: Vec<CompactString> = whitelist.into_iter().map(Into::into).collect();
            spare.sort_unstable();
            let (code, reason) = close_of(code, &reason);
            AdminCommand::Disconnect { code, reason, spare }
        }
        Message::Unsubscribe(control::Unsubscribe { channel, code, reason, .. }) => {
            let code = u16::try_from(code).ok().filter(|code| (2000..3000).contains(code));
            let why = code.map(|code| (code, reason_of(&reason)));
            AdminCommand::Unsubscribe { channel: channel.into(), why }
        }
        Message::Subscribe(subscribe) => {
            AdminCommand::Subscribe(Box::new(subscription_of(subscribe, rules)?))
        }
        Message::Refresh(control::Refresh { expired, expire_at, info, .. }) => {
            AdminCommand::Refresh { expired, expire_at, info: payload(info)? }
        }
        _ => return Err(Refusal::NoCommand),
    };
    Ok(Some((target, command)))
}

fn target_of(selection: &Selection<'_>) -> Target {
    Target {
        user: selection.user().into(),
        all_users: selection.is_of_all_users(),
        client: selection.client().into(),
        session: selection.session().into(),
    }
}

/// Code and reason that a close frame can carry: the usual ones in place of others.
fn close_of(code: u32, reason: &str) -> (u16, CompactString) {
    let usual = client::Disconnect::ForceDisconnect;
    match u16::try_from(code) {
        Ok(code) if (3000..5000).contains(&code) => (code, reason_of(reason)),
        _ => (usual.code(), usual.reason().into()),
    }
}

fn reason_of(reason: &str) -> CompactString {
    let end = (0..=reason.len().min(CLOSE_REASON_BYTES_MAX)).rev();
    let end = end.into_iter().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
    reason[..end].into()
}

fn subscription_of(
    subscribe: control::Subscribe,
    rules: &ChannelRules,
) -> Result<ServerSub, Refusal> {
    let channel = subscribe.channel;
    let checked = rules.check_length(&channel).and_then(|()| rules.resolve_trusted(&channel));
    let namespace = match checked {
        Ok(namespace) if !channel.is_empty() => namespace.index,
        _ => return Err(Refusal::UnknownChannel),
    };
    let since = subscribe.recover_since;
    Ok(ServerSub {
        channel: channel.into(),
        namespace,
        info: payload(subscribe.channel_info)?,
        data: payload(subscribe.data)?,
        overrides: Overrides {
            presence: Some(subscribe.emit_presence),
            join_leave: Some(subscribe.emit_join_leave),
            force_push_join_leave: Some(subscribe.push_join_leave),
            force_recovery: Some(subscribe.recover),
            force_positioning: Some(subscribe.position),
        },
        since: since.map(|since| Since { offset: since.offset, epoch: since.epoch.into() }),
        expires: Expiry::of_positive(subscribe.expire_at),
        ..ServerSub::default()
    })
}

/// A payload for clients, whose parsers may recurse.
fn payload(bytes: Vec<u8>) -> Result<Box<[u8]>, Refusal> {
    let text = std::str::from_utf8(&bytes).ok().filter(|_| client::is_json(&bytes));
    match text.is_some_and(|text| is_nested_deeper(text, API_NESTING_MAX)) {
        true => Err(Refusal::TooDeep),
        false => Ok(bytes.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::channels::{ChannelSyntax, Namespace};
    use crate::proto::client::schema::FilterNode;

    fn rules() -> ChannelRules {
        let without = Namespace { presence: true, force_recovery: true, ..Namespace::default() };
        let without = Namespace { history_size: 5, history_ttl_ms: 60_000, ..without };
        ChannelRules::new(without, Vec::new(), ChannelSyntax::default())
    }

    fn target() -> Target {
        let (user, client, session) = ("u".into(), "c".into(), "s".into());
        Target { user, all_users: false, client, session }
    }

    fn there_and_back(command: &AdminCommand) -> (Message, (Target, AdminCommand)) {
        let message = message_of(&target(), command, &rules());
        (message.clone(), command_of(message, &rules()).unwrap().unwrap())
    }

    #[test]
    fn commands_are_the_same_on_another_node() {
        let spare = vec!["a".into(), "b".into()];
        let disconnect = AdminCommand::Disconnect { code: 4001, reason: "out".into(), spare };
        let unsubscribe = AdminCommand::Unsubscribe { channel: "ch".into(), why: None };
        let refresh = AdminCommand::Refresh { expired: true, expire_at: 7, info: b"{}"[..].into() };
        for command in [disconnect, unsubscribe, refresh] {
            let (_, (there, carried_out)) = there_and_back(&command);
            assert_eq!(there, target());
            let usual = AdminCommand::Unsubscribe {
                channel: "ch".into(),
                why: Some((2000, "server unsubscribe".into())),
            };
            let expected = match command {
                AdminCommand::Unsubscribe { .. } => format!("{usual:?}"),
                command => format!("{command:?}"),
            };
            assert_eq!(format!("{carried_out:?}"), expected);
        }
    }

    #[test]
    fn a_subscription_says_what_its_namespace_and_the_call_decide() {
        let overrides = Overrides { presence: Some(false), ..Overrides::default() };
        let sub = ServerSub {
            channel: "ch".into(),
            overrides,
            data: b"1"[..].into(),
            info: b"2"[..].into(),
            since: Some(Since { offset: 3, epoch: "e".into() }),
            expires: Expiry::of_positive(99),
            ..ServerSub::default()
        };
        let (message, (_, command)) = there_and_back(&AdminCommand::Subscribe(Box::new(sub)));
        let Message::Subscribe(message) = message else { panic!("{message:?}") };
        assert!(message.recover && message.position && !message.emit_presence);
        assert_eq!((message.source, message.expire_at), (10, 99));
        let AdminCommand::Subscribe(sub) = command else { panic!("{command:?}") };
        assert_eq!(sub.since, Some(Since { offset: 3, epoch: "e".into() }));
        assert_eq!((&*sub.data, &*sub.info), (&b"1"[..], &b"2"[..]));
        assert_eq!(sub.overrides.force_recovery, Some(true));
        assert_eq!(sub.overrides.presence, Some(false));
        assert_eq!(sub.expires.map(Expiry::seconds), Some(99));
    }

    #[test]
    fn codes_and_reasons_that_no_frame_carries_are_replaced() {
        let long = "ä".repeat(100);
        for (code, reason, expected) in [
            (0, "", (3503, "force disconnect")),
            (70_000, "x", (3503, "force disconnect")),
            (3000, "x", (3000, "x")),
            (4999, &long, (4999, &long[..122])),
        ] {
            assert_eq!(close_of(code, reason), (expected.0, expected.1.into()));
        }
        let unsubscribe = |code| {
            let message = control::Unsubscribe { code, reason: "r".into(), ..<_>::default() };
            let command = command_of(Message::Unsubscribe(message), &rules());
            let Ok(Some((_, AdminCommand::Unsubscribe { why, .. }))) = command else { panic!() };
            why
        };
        assert_eq!(unsubscribe(2500), Some((2500, "r".into())));
        assert_eq!((unsubscribe(0), unsubscribe(3000)), (None, None));
    }

    #[test]
    fn what_can_not_be_carried_out_is_refused() {
        let of = |message| command_of(message, &rules()).map(|command| command.is_some());
        let subscribe =
            |channel: &str| control::Subscribe { channel: channel.into(), ..<_>::default() };
        assert_eq!(of(Message::Subscribe(subscribe("ch"))), Ok(true));
        for channel in ["", "none:ch", &"x".repeat(1_000)] {
            let refused = of(Message::Subscribe(subscribe(channel)));
            assert_eq!(refused, Err(Refusal::UnknownChannel), "{channel}");
        }
        let data = "[".repeat(1_000) + &"]".repeat(1_000);
        let deep = control::Subscribe { data: data.into(), ..subscribe("ch") };
        assert_eq!(of(Message::Subscribe(deep)), Err(Refusal::TooDeep));
        assert_eq!(of(Message::Shutdown), Err(Refusal::NoCommand));
        let labelled = control::Disconnect {
            label_filter: Some(FilterNode::default()),
            all_users: true,
            ..<_>::default()
        };
        assert_eq!(of(Message::Disconnect(labelled)), Ok(false));
    }
}
