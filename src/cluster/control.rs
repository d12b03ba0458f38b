//! Messages between nodes: each says which node it is from, and one thing.
//!
//! ```text
//!  P.control      all nodes: Node (a ping), Shutdown, Unsubscribe, Subscribe, Disconnect, Refresh,
//!                 SurveyRequest, Notification
//!  P.node.UID     one node: SurveyResponse, SurveyRequest, Node (the answer to an unknown node's ping)
//! ```
//! A node drops its own messages: it carries out its commands itself, also when the broker is away.

use prost::Message as _;

pub use super::schema::{
    Disconnect, Metrics, Node, Notification, Refresh, Subscribe, SurveyRequest, SurveyResponse,
    Unsubscribe,
};
use crate::proto::client::nodes::NotProtobuf;
use crate::proto::client::schema::FilterNode;

/// A message of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// The node that sends it.
    pub uid: String,
    /// Its content.
    pub message: Message,
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The state of the node.
    Node(Node),
    /// The node ends.
    Shutdown,
    /// End subscriptions.
    Unsubscribe(Unsubscribe),
    /// Make subscriptions.
    Subscribe(Subscribe),
    /// End connections.
    Disconnect(Disconnect),
    /// A question that each node answers.
    SurveyRequest(SurveyRequest),
    /// The answer of a node.
    SurveyResponse(SurveyResponse),
    /// For whom it concerns; an unknown operation is ignored.
    Notification(Notification),
    /// Change the expiry of connections.
    Refresh(Refresh),
    /// Of a kind that is not known: ignored.
    Unknown,
}

impl Command {
    /// Reads a message. The first one present counts, in the order in which all nodes look.
    ///
    /// # Errors
    /// It is no Protobuf.
    pub fn read(bytes: &[u8]) -> Result<Self, NotProtobuf> {
        let all = super::schema::Command::decode(bytes).map_err(|_| NotProtobuf)?;
        let in_order = [
            all.node.map(Message::Node),
            all.shutdown.map(|_| Message::Shutdown),
            all.unsubscribe.map(Message::Unsubscribe),
            all.subscribe.map(Message::Subscribe),
            all.disconnect.map(Message::Disconnect),
            all.survey_request.map(Message::SurveyRequest),
            all.survey_response.map(Message::SurveyResponse),
            all.notification.map(Message::Notification),
            all.refresh.map(Message::Refresh),
        ];
        let message = in_order.into_iter().flatten().next().unwrap_or(Message::Unknown);
        Ok(Self { uid: all.uid, message })
    }

    /// Its bytes.
    pub fn write(self) -> Vec<u8> {
        let mut all = super::schema::Command { uid: self.uid, ..<_>::default() };
        match self.message {
            Message::Node(node) => all.node = Some(node),
            Message::Shutdown => all.shutdown = Some(super::schema::Shutdown {}),
            Message::Unsubscribe(unsubscribe) => all.unsubscribe = Some(unsubscribe),
            Message::Subscribe(subscribe) => all.subscribe = Some(subscribe),
            Message::Disconnect(disconnect) => all.disconnect = Some(disconnect),
            Message::SurveyRequest(request) => all.survey_request = Some(request),
            Message::SurveyResponse(response) => all.survey_response = Some(response),
            Message::Notification(notification) => all.notification = Some(notification),
            Message::Refresh(refresh) => all.refresh = Some(refresh),
            Message::Unknown => {}
        }
        all.encode_to_vec()
    }
}

/// Kinds of messages, for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// See [`Message`].
    Node,
    /// See [`Message`].
    Shutdown,
    /// See [`Message`].
    Unsubscribe,
    /// See [`Message`].
    Subscribe,
    /// See [`Message`].
    Disconnect,
    /// See [`Message`].
    SurveyRequest,
    /// See [`Message`].
    SurveyResponse,
    /// See [`Message`].
    Notification,
    /// See [`Message`].
    Refresh,
    /// See [`Message`].
    Unknown,
}

impl Kind {
    /// All of them, as metrics name them; the place of a kind is its number.
    pub const NAMES: [&'static str; 10] = [
        "node",
        "shutdown",
        "unsubscribe",
        "subscribe",
        "disconnect",
        "survey_request",
        "survey_response",
        "notification",
        "refresh",
        "unknown",
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.get(self as usize).copied().unwrap_or_default()
    }
}

impl Message {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Shutdown => Kind::Shutdown,
            Self::Unsubscribe(_) => Kind::Unsubscribe,
            Self::Subscribe(_) => Kind::Subscribe,
            Self::Disconnect(_) => Kind::Disconnect,
            Self::SurveyRequest(_) => Kind::SurveyRequest,
            Self::SurveyResponse(_) => Kind::SurveyResponse,
            Self::Notification(_) => Kind::Notification,
            Self::Refresh(_) => Kind::Refresh,
            Self::Unknown => Kind::Unknown,
        }
    }

    /// Bytes that it takes, about.
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Node(message) => message.encoded_len(),
                Self::Unsubscribe(message) => message.encoded_len(),
                Self::Subscribe(message) => message.encoded_len(),
                Self::Disconnect(message) => message.encoded_len(),
                Self::SurveyRequest(message) => message.encoded_len(),
                Self::SurveyResponse(message) => message.encoded_len(),
                Self::Notification(message) => message.encoded_len(),
                Self::Refresh(message) => message.encoded_len(),
                Self::Shutdown | Self::Unknown => 0,
            }
    }
}

/// The connections that a message means.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    user: &'a str,
    all_users: bool,
    client: &'a str,
    session: &'a str,
    spared: &'a [String],
    labels: Option<&'a FilterNode>,
}

/// A connection, as a selection sees it.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// User id; empty: anonymous.
    pub user: &'a str,
    /// Client id.
    pub client: &'a str,
    /// Session id.
    pub session: &'a str,
}

impl Selection<'_> {
    /// The user whose connections it means; empty: the anonymous ones, or those of all users.
    pub fn user(&self) -> &str {
        self.user
    }

    /// It means connections of all users.
    pub fn is_of_all_users(&self) -> bool {
        self.all_users
    }

    /// The client id of the one connection that it means; empty: any.
    pub fn client(&self) -> &str {
        self.client
    }

    /// The session of the one connection that it means; empty: any.
    pub fn session(&self) -> &str {
        self.session
    }

    /// It can't mean a connection of this node: those have no labels, and it selects by some.
    pub fn is_empty(&self) -> bool {
        self.labels.is_some()
    }

    /// Whether it means a connection. An empty user means the anonymous ones. Connections of this node have
    /// no labels, and a message that asks for some means none of them.
    pub fn contains(&self, connection: Connection<'_>) -> bool {
        let Connection { user, client, session } = connection;
        (self.all_users || self.user == user)
            && (self.client.is_empty() || self.client == client)
            && (self.session.is_empty() || self.session == session)
            && !self.spared.iter().any(|spared| spared == client)
            && self.labels.is_none()
    }
}

impl Message {
    /// The connections that it means; `None` for a message that means none.
    pub fn selection(&self) -> Option<Selection<'_>> {
        macro_rules! of {
            ($message:expr, $spared:expr) => {
                Some(Selection {
                    user: &$message.user,
                    all_users: $message.all_users,
                    client: &$message.client,
                    session: &$message.session,
                    spared: $spared,
                    labels: $message.label_filter.as_ref(),
                })
            };
        }
        match self {
            Self::Unsubscribe(message) => of!(message, &[]),
            Self::Subscribe(message) => of!(message, &[]),
            Self::Disconnect(message) => of!(message, &message.whitelist),
            Self::Refresh(message) => of!(message, &[]),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(pair).collect()
    }

    /// An object without the fields that have their default, as the vectors leave them out.
    fn object(fields: &[(&str, Value)]) -> Value {
        let said = |value: &Value| match value {
            Value::Null => false,
            Value::Bool(value) => *value,
            Value::Number(value) => value.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty() && text != "0",
            Value::Array(list) => !list.is_empty(),
            Value::Object(_) => true,
        };
        let fields = fields.iter().filter(|(_, value)| said(value));
        Value::Object(fields.map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }

    fn filter(node: &FilterNode) -> Value {
        object(&[
            ("op", json!(node.op)),
            ("key", json!(node.key)),
            ("cmp", json!(node.cmp)),
            ("val", json!(node.val)),
            ("vals", json!(node.vals)),
            ("nodes", node.nodes.iter().map(filter).collect()),
        ])
    }

    fn shown(message: &Message) -> (&'static str, Value) {
        let labels = |node: &Option<FilterNode>| node.as_ref().map_or(Value::Null, filter);
        let packed = |bytes: &[u8]| json!(STANDARD.encode(bytes));
        match message {
            Message::Node(node) => {
                let metrics = node.metrics.as_ref().map_or(Value::Null, |metrics| {
                    object(&[
                        ("interval", json!(metrics.interval)),
                        ("items", json!(metrics.items)),
                    ])
                });
                let fields = object(&[
                    ("uid", json!(node.uid)),
                    ("name", json!(node.name)),
                    ("version", json!(node.version)),
                    ("num_clients", json!(node.num_clients)),
                    ("num_users", json!(node.num_users)),
                    ("num_channels", json!(node.num_channels)),
                    ("uptime", json!(node.uptime)),
                    ("metrics", metrics),
                    ("data", packed(&node.data)),
                    ("num_subs", json!(node.num_subs)),
                ]);
                ("node", fields)
            }
            Message::Shutdown => ("shutdown", Value::Object(Map::new())),
            Message::Unsubscribe(message) => {
                let fields = object(&[
                    ("channel", json!(message.channel)),
                    ("user", json!(message.user)),
                    ("client", json!(message.client)),
                    ("session", json!(message.session)),
                    ("code", json!(message.code)),
                    ("reason", json!(message.reason)),
                    ("label_filter", labels(&message.label_filter)),
                    ("all_users", json!(message.all_users)),
                ]);
                ("unsubscribe", fields)
            }
            Message::Subscribe(message) => {
                let since = message.recover_since.as_ref().map_or(Value::Null, |since| {
                    let offset = json!(since.offset.to_string());
                    object(&[("offset", offset), ("epoch", json!(since.epoch))])
                });
                let fields = object(&[
                    ("user", json!(message.user)),
                    ("channel", json!(message.channel)),
                    ("emit_presence", json!(message.emit_presence)),
                    ("emit_join_leave", json!(message.emit_join_leave)),
                    ("expire_at", json!(message.expire_at.to_string())),
                    ("position", json!(message.position)),
                    ("recover", json!(message.recover)),
                    ("channel_info", packed(&message.channel_info)),
                    ("client", json!(message.client)),
                    ("data", packed(&message.data)),
                    ("recover_since", since),
                    ("session", json!(message.session)),
                    ("push_join_leave", json!(message.push_join_leave)),
                    ("source", json!(message.source)),
                    ("label_filter", labels(&message.label_filter)),
                    ("all_users", json!(message.all_users)),
                ]);
                ("subscribe", fields)
            }
            Message::Disconnect(message) => {
                let fields = object(&[
                    ("user", json!(message.user)),
                    ("whitelist", json!(message.whitelist)),
                    ("code", json!(message.code)),
                    ("reason", json!(message.reason)),
                    ("reconnect", json!(message.reconnect)),
                    ("client", json!(message.client)),
                    ("session", json!(message.session)),
                    ("label_filter", labels(&message.label_filter)),
                    ("all_users", json!(message.all_users)),
                ]);
                ("disconnect", fields)
            }
            Message::SurveyRequest(message) => {
                let id = json!(message.id.to_string());
                let data = packed(&message.data);
                ("survey_request", object(&[("id", id), ("op", json!(message.op)), ("data", data)]))
            }
            Message::SurveyResponse(message) => {
                let id = json!(message.id.to_string());
                let data = packed(&message.data);
                let fields = [("id", id), ("code", json!(message.code)), ("data", data)];
                ("survey_response", object(&fields))
            }
            Message::Notification(message) => {
                let fields = [("op", json!(message.op)), ("data", packed(&message.data))];
                ("notification", object(&fields))
            }
            Message::Refresh(message) => {
                let fields = object(&[
                    ("user", json!(message.user)),
                    ("client", json!(message.client)),
                    ("expired", json!(message.expired)),
                    ("expire_at", json!(message.expire_at.to_string())),
                    ("info", packed(&message.info)),
                    ("session", json!(message.session)),
                    ("label_filter", labels(&message.label_filter)),
                    ("all_users", json!(message.all_users)),
                ]);
                ("refresh", fields)
            }
            Message::Unknown => ("unknown", Value::Null),
        }
    }

    #[test]
    fn messages_are_read_and_written_as_in_the_vectors() {
        let lines = include_str!("../../tests/vectors/redis/control-vectors.jsonl").lines();
        let mut checked = 0;
        for line in lines {
            let vector: Value = serde_json::from_str(line).unwrap();
            let bytes = unhex(vector["hex"].as_str().unwrap());
            let command = Command::read(&bytes).unwrap();
            let (kind, fields) = shown(&command.message);
            assert_eq!(command.uid, vector["command"]["uid"], "{line}");
            assert_eq!(fields, vector["command"][kind], "{line}");
            assert_eq!(command.write(), bytes, "{line}");
            checked += 1;
        }
        assert_eq!(checked, 23);
    }

    #[test]
    fn the_first_message_counts() {
        let two = super::super::schema::Command {
            uid: "n".into(),
            shutdown: Some(super::super::schema::Shutdown {}),
            disconnect: Some(Disconnect::default()),
            ..<_>::default()
        };
        let read = Command::read(&two.encode_to_vec()).unwrap();
        assert_eq!(read.message, Message::Shutdown);
        assert_eq!(Command::read(b"").unwrap().message, Message::Unknown);
        assert_eq!(Command::read(b"\xff"), Err(NotProtobuf));
    }

    #[test]
    fn a_selection_narrows() {
        let of = |user, client, session| Connection { user, client, session };
        let bob = of("bob", "c1", "s1");
        let selects = |message: &Disconnect, connection| {
            let message = Message::Disconnect(message.clone());
            message.selection().unwrap().contains(connection)
        };
        let disconnect = Disconnect { user: "bob".into(), ..<_>::default() };
        assert!(selects(&disconnect, bob) && !selects(&disconnect, of("ann", "c1", "s1")));
        let anonymous = Disconnect::default();
        assert!(selects(&anonymous, of("", "c", "s")) && !selects(&anonymous, bob));
        let everybody = Disconnect { all_users: true, ..<_>::default() };
        assert!(selects(&everybody, bob) && selects(&everybody, of("", "c", "s")));
        let client = Disconnect { client: "c2".into(), ..disconnect.clone() };
        assert!(!selects(&client, bob) && selects(&client, of("bob", "c2", "s1")));
        let session = Disconnect { session: "s2".into(), ..disconnect.clone() };
        assert!(!selects(&session, bob) && selects(&session, of("bob", "c1", "s2")));
        let spared = Disconnect { whitelist: vec!["c1".into()], ..disconnect.clone() };
        assert!(!selects(&spared, bob) && selects(&spared, of("bob", "c2", "s1")));
        let labelled = Disconnect { label_filter: Some(FilterNode::default()), ..disconnect };
        assert!(!selects(&labelled, bob));
        assert!(Message::Shutdown.selection().is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(command) = Command::read(&bytes) {
                let again = command.write();
                // Bytes, since a metric may be no number.
                prop_assert_eq!(Command::read(&again).unwrap().write(), again);
            }
        }
    }
}
