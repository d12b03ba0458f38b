//! Nodes on one bus, with tests in the place of their shards.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::base::id::ShardId;
use crate::cluster::control::{
    Disconnect, Notification, Refresh, Subscribe, SurveyRequest, SurveyResponse, Unsubscribe,
};
use crate::cluster::survey::{Code, channels_in, put_channel, response};
use crate::node::api::{Api, ApiError, DisconnectCall};
use crate::node::testing::Bench;
use crate::proto::client::Encoding;
use crate::proto::http::Reuse;
use crate::session::ServerSub;
use crate::shard::mail::emulation::{CommandsForm, EmulateElsewhere, Emulating, Uptake};
use crate::shard::mail::{Asker, Listed, Mail};

/// A control channel that delivers at once.
#[derive(Default)]
struct Bus {
    members: Mutex<BTreeMap<String, mpsc::Sender<ControlEvent>>>,
    is_down: AtomicBool,
    taken: Mutex<Vec<String>>,
}

impl Bus {
    fn join(&self, uid: &str) -> mpsc::Receiver<ControlEvent> {
        let (sender, receiver) = mpsc::channel(1_000);
        sender.try_send(ControlEvent::Listening).unwrap();
        self.members.lock().unwrap().insert(uid.to_owned(), sender);
        receiver
    }

    fn publish(&self, from: &str, to: &Recipient, message: &Message) {
        let members = self.members.lock().unwrap();
        let receives = |uid: &String| match to {
            Recipient::All => true,
            Recipient::Node(node) => node == uid,
        };
        for (_, member) in members.iter().filter(|(uid, _)| receives(uid)) {
            let command = Command { uid: from.to_owned(), message: message.clone() };
            member.try_send(ControlEvent::Message(Box::new(command))).unwrap();
        }
    }

    /// Another node publishes something to all.
    fn say(&self, from: &str, message: Message) {
        self.publish(from, &Recipient::All, &message);
    }
}

/// The way of one node to the bus.
struct Way {
    bus: Arc<Bus>,
    uid: String,
}

impl Transmit for Way {
    fn send_control(&self, to: Recipient, ticket: Ticket, message: Message) -> bool {
        let is_sent = !self.bus.is_down.load(Ordering::Relaxed);
        if is_sent {
            self.bus.publish(&self.uid, &to, &message);
        }
        let own = self.bus.members.lock().unwrap().get(&self.uid).cloned();
        own.is_some_and(|own| own.try_send(ControlEvent::Sent { ticket, is_sent }).is_ok())
    }

    fn take_entries(&self, uid: &str) {
        self.bus.taken.lock().unwrap().push(uid.to_owned());
    }

    fn answer_presence(&self, _: usize, _: BrokerEvent) {}
}

/// A node on the bus: its state without shards, and the group.
#[expect(clippy::disallowed_methods, reason = "the start of a node")]
fn node(bus: &Arc<Bus>, uid: &str) -> (Bench, Arc<Cluster>) {
    let bench = Bench::named(uid, 2, u64::MAX, &[]);
    let cluster = Cluster::new(Parts {
        node: Arc::clone(&bench.node),
        control_mail: Arc::clone(&bench.control_mail),
        transmit: Arc::new(Way { bus: Arc::clone(bus), uid: uid.to_owned() }),
        name: format!("{uid}'s name"),
        started: Instant::now(),
        metrics_interval: Duration::from_secs(60),
        servers: (Vec::new(), String::new()),
    });
    tokio::spawn(Arc::clone(&cluster).run(bus.join(uid)));
    (bench, cluster)
}

/// A node of the test's own: what the others send is received by the test.
struct Peer {
    uid: &'static str,
    bus: Arc<Bus>,
    received: mpsc::Receiver<ControlEvent>,
}

impl Peer {
    fn join(bus: &Arc<Bus>, uid: &'static str) -> Self {
        let received = bus.join(uid);
        let peer = Self { uid, bus: Arc::clone(bus), received };
        peer.say(Message::Node(Node { uid: uid.to_owned(), ..Node::default() }));
        peer
    }

    fn say(&self, message: Message) {
        self.bus.say(self.uid, message);
    }

    /// Waits for a message of a node that `wanted` takes.
    async fn receive<T>(&mut self, mut wanted: impl FnMut(&str, Message) -> Option<T>) -> T {
        loop {
            let event = self.received.recv().await.unwrap();
            let ControlEvent::Message(command) = event else { continue };
            if let Some(found) = wanted(&command.uid, command.message) {
                return found;
            }
        }
    }

    async fn answer_to(&mut self, request: SurveyRequest) -> SurveyResponse {
        self.say(Message::SurveyRequest(request));
        let answer = |_: &str, message| match message {
            Message::SurveyResponse(response) => Some(response),
            _ => None,
        };
        self.receive(answer).await
    }

    /// Waits for a question.
    async fn question(&mut self) -> SurveyRequest {
        let question = |_: &str, message| match message {
            Message::SurveyRequest(request) => Some(request),
            _ => None,
        };
        self.receive(question).await
    }
}

async fn until(mut reached: impl FnMut() -> bool) {
    while !reached() {
        tokio::task::yield_now().await;
    }
}

/// In the place of shards that have nothing.
fn nothing(_: ShardId, mail: Mail) -> Option<Mail> {
    match mail {
        Mail::List(list) => Some(Mail::Listed { asker: list.asker, listed: Box::default() }),
        Mail::Order(order) => Some(Mail::Ordered { asker: order.asker, connections: 0 }),
        mail => panic!("{mail:?}"),
    }
}

/// In the place of shards: the first one has these channels.
fn with_channels(
    channels: &'static [(&'static str, u32)],
) -> impl FnMut(ShardId, Mail) -> Option<Mail> {
    move |shard, mail| {
        let Mail::List(list) = mail else { return nothing(shard, mail) };
        let channels = channels.iter().filter(|_| shard == ShardId(0));
        let channels = channels.map(|(name, clients)| ((*name).into(), *clients)).collect();
        let listed = Box::new(Listed { channels, ..Listed::default() });
        Some(Mail::Listed { asker: list.asker, listed })
    }
}

#[tokio::test]
async fn nodes_know_each_other_and_what_they_publish() {
    let bus = Arc::new(Bus::default());
    let (_a, a) = node(&bus, "a");
    let (_b, b) = node(&bus, "b");
    until(|| a.known() == 2 && b.known() == 2).await;
    let (_c, c) = node(&bus, "c");
    until(|| [&a, &b, &c].iter().all(|node| node.known() == 3)).await;
    let nodes = c.nodes();
    let names: Vec<_> = nodes.iter().map(|node| (&*node.uid, &*node.name)).collect();
    assert_eq!(names, [("c", "c's name"), ("a", "a's name"), ("b", "b's name")]);
    for node in nodes {
        assert_eq!(node.version, VERSION);
        assert!(node.figures.is_some() && node.data.contains("bytes_per_connection"));
    }
    c.end().await;
    until(|| a.known() == 2 && b.known() == 2).await;
    assert_eq!(*bus.taken.lock().unwrap(), ["c", "c"]);
    // Nothing follows the end.
    c.publish_state(Recipient::All, false);
    tokio::task::yield_now().await;
    assert_eq!(a.known(), 2);
}

#[tokio::test]
async fn commands_of_other_nodes_reach_the_shards_in_their_order() {
    let bus = Arc::new(Bus::default());
    let (mut bench, cluster) = node(&bus, "a");
    let peer = Peer::join(&bus, "peer");
    let user = || "u".to_owned();
    let channel = || "ch".to_owned();
    // Own messages are dropped, and others have no effect.
    bus.say("a", Message::Disconnect(Disconnect { user: user(), ..<_>::default() }));
    peer.say(Message::Notification(Notification { op: "x".into(), data: vec![] }));
    peer.say(Message::Unknown);
    peer.say(Message::Subscribe(Subscribe { channel: "none:x".into(), ..<_>::default() }));
    peer.say(Message::Subscribe(Subscribe { user: user(), channel: channel(), ..<_>::default() }));
    peer.say(Message::Unsubscribe(Unsubscribe { user: user(), ..<_>::default() }));
    peer.say(Message::Refresh(Refresh { all_users: true, expire_at: 7, ..<_>::default() }));
    let whitelist = vec!["z".into(), "y".into()];
    peer.say(Message::Disconnect(Disconnect { user: user(), whitelist, ..<_>::default() }));
    let orders = RefCell::new(BTreeMap::<u8, Vec<String>>::new());
    let all = until(|| orders.borrow().values().map(Vec::len).sum::<usize>() == 8);
    let take = |shard: ShardId, mail| {
        let Mail::Order(order) = mail else { return nothing(shard, mail) };
        let command = match &order.command {
            AdminCommand::Subscribe(sub) => format!("subscribe {}", sub.channel),
            AdminCommand::Unsubscribe { .. } => "unsubscribe".to_owned(),
            AdminCommand::Refresh { .. } => format!("refresh {}", order.all_users),
            AdminCommand::Disconnect { spare, .. } => format!("disconnect {spare:?}"),
        };
        orders.borrow_mut().entry(shard.0).or_default().push(command);
        Some(Mail::Ordered { asker: order.asker, connections: 1 })
    };
    bench.with_shards(all, take).await;
    let expected =
        ["subscribe ch", "unsubscribe", "refresh true", r#"disconnect ["y", "z"]"#].to_vec();
    for orders in orders.borrow().values() {
        assert_eq!(*orders, expected);
    }
    assert_eq!(cluster.counters.orders_refused.load(Ordering::Relaxed), 1);
}

/// An API call to disconnect a user.
async fn disconnect(api: &Api) -> Result<(), ApiError> {
    let target = Target { user: "u".into(), ..Target::default() };
    api.disconnect(DisconnectCall { target, ..DisconnectCall::default() }).await
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the start of a node")]
async fn a_call_is_carried_out_here_and_sent_to_the_others() {
    let bus = Arc::new(Bus::default());
    let (mut bench, cluster) = node(&bus, "a");
    let mut peer = Peer::join(&bus, "peer");
    let (state, mail) = (Arc::clone(&bench.node), Arc::clone(&bench.control_mail));
    let api = Api::new(state, mail, "a".into(), Instant::now(), Some(Arc::clone(&cluster)));
    let orders = RefCell::new(0);
    let mut count = |shard, mail| {
        *orders.borrow_mut() += usize::from(matches!(mail, Mail::Order(_)));
        nothing(shard, mail)
    };
    assert_eq!(bench.with_shards(disconnect(&api), &mut count).await, Ok(()));
    let sent = |from: &str, message| match message {
        Message::Disconnect(message) => Some((from.to_owned(), message)),
        _ => None,
    };
    let (from, message) = peer.receive(sent).await;
    assert_eq!((&*from, &*message.user, message.code), ("a", "u", 3503));
    bus.is_down.store(true, Ordering::Relaxed);
    let partly = bench.with_shards(disconnect(&api), &mut count).await;
    assert_eq!(partly, Err(ApiError::OnlyHere));
    assert_eq!(*orders.borrow(), 4, "two shards, two calls");
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the start of a node")]
async fn the_channels_of_all_nodes_are_added_up() {
    let bus = Arc::new(Bus::default());
    let (mut a, one) = node(&bus, "a");
    let (mut b, two) = node(&bus, "b");
    let (state, mail) = (Arc::clone(&a.node), Arc::clone(&a.control_mail));
    let api = Api::new(state, mail, "a".into(), Instant::now(), Some(Arc::clone(&one)));
    until(|| one.known() == 2 && two.known() == 2).await;
    let calls = async {
        let all = api.channels("", 1_000).await;
        let some = api.channels("x*", 1_000).await;
        let long = api.channels("", 70).await;
        let bad = api.channels("[", 1_000).await;
        bus.is_down.store(true, Ordering::Relaxed);
        (all, some, long, bad, api.channels("", 1_000).await)
    };
    let calls = b.with_shards(calls, with_channels(&[("x1", 2), ("y", 1)]));
    let (all, some, long, bad, down) =
        a.with_shards(calls, with_channels(&[("x1", 3), ("x2", 4)])).await;
    assert_eq!(all, Ok(vec![("x1".into(), 5), ("x2".into(), 4), ("y".into(), 1)]));
    assert_eq!(some, Ok(vec![("x1".into(), 5), ("x2".into(), 4)]));
    assert_eq!(long, Err(ApiError::AnswerTooLong));
    assert_eq!(bad, Err(ApiError::UnusablePattern));
    assert_eq!(down, Err(ApiError::NodesUnreachable));
    let outcomes = one.counters.surveys();
    assert_eq!(outcomes.iter().map(|(_, count)| count).sum::<u64>(), 4);
}

#[tokio::test]
async fn a_survey_ends_with_a_node_that_ends_or_refuses() {
    let bus = Arc::new(Bus::default());
    let (_bench, cluster) = node(&bus, "a");
    let (mut refuses, mut ends) = (Peer::join(&bus, "refuses"), Peer::join(&bus, "ends"));
    until(|| cluster.known() == 3).await;
    let asked = cluster.ask_for_channels("").unwrap();
    let id = ends.question().await.id;
    assert_eq!(refuses.question().await.id, id);
    ends.say(Message::Shutdown);
    let mut data = Vec::new();
    put_channel(&mut data, "ch", 1);
    refuses.say(Message::SurveyResponse(response(id, Code::Ok, data)));
    let all = asked.channels(vec![("ch".into(), 1)], 1_000).await.unwrap();
    assert_eq!(all, [("ch".into(), 2)].into());
    let asked = cluster.ask_for_channels("").unwrap();
    let id = refuses.question().await.id;
    refuses.say(Message::SurveyResponse(response(id, Code::UnknownOperation, Vec::new())));
    assert_eq!(asked.channels(Vec::new(), 1_000).await, Err(SurveyOutcome::Refused));
}

#[tokio::test]
async fn each_question_of_another_node_is_answered() {
    let bus = Arc::new(Bus::default());
    let (mut bench, _cluster) = node(&bus, "a");
    let mut peer = Peer::join(&bus, "peer");
    let request =
        |id, op: &str, data: &[u8]| SurveyRequest { id, op: op.into(), data: data.into() };
    let answers = async {
        let mut answers = Vec::new();
        for (id, op, data) in [
            (1, "channels", &b""[..]),
            (2, "channels", b"\x0a\x01["),
            (3, "channels", b"\xff"),
            (4, "what", b""),
            (5, "centrifuge_emulation", b"\x12\x01s"),
        ] {
            answers.push(peer.answer_to(request(id, op, data)).await);
        }
        answers
    };
    let answers = bench.with_shards(answers, with_channels(&[("x", 3)])).await;
    let codes: Vec<_> = answers.iter().map(|answer| (answer.id, answer.code)).collect();
    assert_eq!(codes, [(1, 0), (2, 2), (3, 2), (4, 3), (5, 2)]);
    let channels = channels_in(&answers[0].data).collect::<Result<Vec<_>, _>>();
    assert_eq!(channels, Ok(vec![("x", 3)]));
}

fn elsewhere(node: &str, session: &str, data: &str, encoding: Encoding) -> EmulateElsewhere {
    let asker = Asker::of(key());
    EmulateElsewhere {
        node: node.into(),
        session: session.into(),
        encoding,
        data: data.as_bytes().into(),
        by: Emulating { from: ShardId(0), asker, cors: "".into(), reuse: Reuse::Keep },
    }
}

fn key() -> crate::base::id::ConnKey {
    crate::base::id::ConnKey { index: 3, generation: std::num::NonZeroU32::MIN }
}

/// Sends commands to a session on another node: the status, once it is there.
fn emulate(cluster: &Arc<Cluster>, of: EmulateElsewhere) -> oneshot::Receiver<u16> {
    let (sender, status) = oneshot::channel();
    cluster.emulate(of, Box::new(move |status| sender.send(status).unwrap()));
    status
}

#[tokio::test]
async fn commands_reach_their_session_on_another_node() {
    let bus = Arc::new(Bus::default());
    let (mut a, one) = node(&bus, "a");
    let (mut b, two) = node(&bus, "b");
    until(|| one.known() == 2 && two.known() == 2).await;
    let session = b.node.rules.session_ids.seal(ShardId(1), key()).text();
    let session = session.as_str();
    let came = RefCell::new(Vec::new());
    let take = |shard: ShardId, mail| {
        let Mail::Emulate(emulate) = mail else { return nothing(shard, mail) };
        assert_eq!((shard, emulate.conn), (ShardId(1), key()));
        assert_eq!(emulate.form, CommandsForm::OfSession);
        let text = String::from_utf8(emulate.emulated.data.to_vec()).unwrap();
        let uptake = if text.contains("full") { Uptake::NoRoom } else { Uptake::Taken };
        came.borrow_mut().push(text);
        let asker = emulate.emulated.by.unwrap().asker;
        Some(Mail::Emulated { asker, uptake })
    };
    let statuses = async {
        let of = |node: &str, session: &str, data: &str, encoding| {
            emulate(&one, elsewhere(node, session, data, encoding))
        };
        let json = Encoding::Json;
        let sent = [
            of("b", session, "{\"id\":1}\n", json),
            of("b", session, "binary", Encoding::Protobuf),
            of("b", session, "full", json),
            of("b", "nobody", "{}", json),
            of("c", session, "{}", json),
        ];
        let mut statuses = Vec::new();
        for sent in sent {
            statuses.push(sent.await.unwrap());
        }
        bus.is_down.store(true, Ordering::Relaxed);
        statuses.push(of("b", session, "{}", json).await.unwrap());
        statuses
    };
    let statuses = a.with_shards(b.with_shards(statuses, take), nothing).await;
    assert_eq!(statuses, [204, 204, 500, 204, 404, 500]);
    assert_eq!(*came.borrow(), [r#""{\"id\":1}\n""#, "binary", r#""full""#]);
}

#[tokio::test]
async fn commands_for_one_session_follow_each_other() {
    let bus = Arc::new(Bus::default());
    let (_bench, cluster) = node(&bus, "a");
    let mut peer = Peer::join(&bus, "peer");
    until(|| cluster.known() == 2).await;
    let of = |session: &str, data: &str| {
        emulate(&cluster, elsewhere("peer", session, data, Encoding::Protobuf))
    };
    let (first, second, third) = (of("s", "1"), of("s", "2"), of("t", "3"));
    let data = |request: &SurveyRequest| request.data.last().copied();
    let (one, three) = (peer.question().await, peer.question().await);
    assert_eq!([data(&one), data(&three)], [Some(b'1'), Some(b'3')], "the second one waits");
    let answer = |request: &SurveyRequest, code| {
        peer.bus.say("peer", Message::SurveyResponse(response(request.id, code, Vec::new())));
    };
    answer(&three, Code::Ok);
    assert_eq!(third.await, Ok(204));
    answer(&one, Code::Invalid);
    assert_eq!(first.await, Ok(204));
    let two = peer.question().await;
    assert_eq!(data(&two), Some(b'2'));
    peer.say(Message::SurveyResponse(response(two.id, Code::Ok, Vec::new())));
    assert_eq!(second.await, Ok(204));
}

#[tokio::test]
async fn a_silent_node_is_forgotten_and_its_answers_are_missed_no_more() {
    let bus = Arc::new(Bus::default());
    let (_bench, cluster) = node(&bus, "a");
    let mut peer = Peer::join(&bus, "peer");
    until(|| cluster.known() == 2).await;
    let asked = cluster.ask_for_channels("").unwrap();
    peer.question().await;
    // As if it were so late.
    cluster.look(cluster.now().after(9_000));
    assert_eq!(asked.channels(Vec::new(), 1_000).await, Ok(BTreeMap::new()));
    assert_eq!(cluster.known(), 1);
    assert_eq!(*bus.taken.lock().unwrap(), ["peer"]);
    let known: BTreeSet<String> = cluster.nodes().into_iter().map(|node| node.uid).collect();
    assert_eq!(known, ["a".to_owned()].into());
    assert_eq!(cluster.counters.forgotten.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_subscription_of_a_call_has_the_options_of_its_namespace() {
    let bus = Arc::new(Bus::default());
    let (_bench, cluster) = node(&bus, "a");
    let mut peer = Peer::join(&bus, "peer");
    let sub = ServerSub { channel: "ch".into(), ..ServerSub::default() };
    let target = Target { user: "u".into(), ..Target::default() };
    let sent = cluster.send_order(&target, &AdminCommand::Subscribe(Box::new(sub)));
    assert!(sent.await);
    let sent = |_: &str, message| match message {
        Message::Subscribe(message) => Some(message),
        _ => None,
    };
    let message = peer.receive(sent).await;
    let expected =
        Subscribe { user: "u".into(), channel: "ch".into(), source: 10, ..Subscribe::default() };
    assert_eq!(message, expected);
}
