use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::crypto_pool::testing::Bench;
use super::super::crypto_pool::{self, Queues};
use super::*;
use crate::base::id::ShardId;
use crate::edge::jwt::testing::{Pair, key_set};
use crate::edge::jwt::{TokenKeys, TokenOptions};
use crate::shard::crypto::CryptoJob;
use crate::shard::signatures::{Interest, Signed, TokenKind};

impl KeySource for TokenKeys {
    fn keys(&self, _: TokenKind) -> &TokenKeys {
        self
    }

    fn owner(&self, _: TokenKind) -> TokenKind {
        TokenKind::Connection
    }
}

const DAY: Duration = Duration::from_secs(86_400);

/// Nothing happens unasked, and nothing twice.
const SLOW: Pace = Pace { retry: DAY, refresh: DAY, timeout: DAY };

/// Every unknown key causes a fetch.
const EAGER: Pace = Pace { retry: Duration::ZERO, ..SLOW };

/// The answer of a server.
#[derive(Clone)]
enum Answer {
    /// Status and body.
    Says(u16, String),
    /// Hangs up.
    Nothing,
    /// Keeps its peer waiting.
    Silence,
}

/// A server of key sets.
struct Server {
    url: String,
    requests: Arc<AtomicUsize>,
    answer: Arc<Mutex<Answer>>,
}

impl Server {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(Mutex::new(answer));
        let (seen, said) = (Arc::clone(&requests), Arc::clone(&answer));
        tokio::spawn(async move {
            let mut silent = Vec::new();
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.unwrap());
                }
                assert!(head.starts_with(b"GET /keys HTTP/1.1\r\n"), "{head:?}");
                seen.fetch_add(1, Ordering::SeqCst);
                let answer = said.lock().unwrap().clone();
                match answer {
                    Answer::Nothing => {}
                    Answer::Silence => silent.push(socket),
                    Answer::Says(status, body) => {
                        let length = body.len();
                        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n");
                        let text = format!("{head}connection: close\r\n\r\n{body}");
                        // A reader that has enough hangs up.
                        let _ = socket.write_all(text.as_bytes()).await;
                    }
                }
            }
        });
        Self { url, requests, answer }
    }

    fn says(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// A pool without threads, and a fetcher that is driven step by step.
struct Scene {
    keys: Arc<TokenKeys>,
    jobs: Sender<CryptoJob>,
    bench: Bench<TokenKeys>,
    fetcher: Fetcher<TokenKeys>,
    asked: u64,
}

impl Scene {
    fn new(url: &str, pace: Pace) -> Self {
        let options = TokenOptions { jwks_public_endpoint: url.into(), ..Default::default() };
        let keys = Arc::new(TokenKeys::new(&options).unwrap());
        let (Queues { jobs, again, asks }, inlets) = crypto_pool::queues();
        let bench = Bench::new(&keys, inlets);
        let fetcher = Fetcher::new(Arc::clone(&keys), Client::plain(), asks, again, pace);
        Self { keys, jobs, bench, fetcher, asked: 0 }
    }

    /// Checks these tokens, all at once; the answers in their order.
    async fn answers(&mut self, tokens: &[String]) -> Vec<Signed> {
        let first = self.asked;
        for token in tokens {
            let token = token.as_str().into();
            let kind = TokenKind::Connection;
            let job = SignatureJob {
                token,
                kind,
                home: ShardId(0),
                ticket: self.asked,
                interest: Interest::default(),
            };
            self.jobs.send(CryptoJob::Signature(job)).unwrap();
            self.asked += 1;
        }
        let mut answers = BTreeMap::new();
        loop {
            for (ticket, signed) in self.bench.work() {
                assert!(answers.insert(ticket, signed).is_none(), "answered twice");
            }
            if answers.len() == tokens.len() {
                assert_eq!(answers.keys().next(), (!tokens.is_empty()).then_some(&first));
                return answers.into_values().collect();
            }
            self.step().await;
        }
    }

    async fn step(&mut self) {
        // Only so that a fault ends the test instead of hanging it.
        let step = tokio::time::timeout(Duration::from_secs(60), self.fetcher.step());
        assert!(step.await.expect("nothing happens"));
    }
}

fn token(pair: &Pair, kid: &str) -> String {
    pair.token(&json!({"alg": "ES256", "kid": kid}), &json!({}))
}

fn set(pairs: &[(&Pair, &str)]) -> Answer {
    let keys: Vec<_> = pairs.iter().map(|(pair, kid)| pair.jwk(kid)).collect();
    Answer::Says(200, key_set(&keys))
}

const GOOD: Signed = Signed::Good { until: None };

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn unknown_keys_cause_one_fetch() {
    block_on(async {
        let (pair, other) = (Pair::ec("P-256"), Pair::ec("P-256"));
        let server = Server::start(set(&[(&pair, "a")])).await;
        let mut scene = Scene::new(&server.url, SLOW);
        assert_eq!(
            scene.answers(&[token(&pair, "a"), token(&other, "a")]).await,
            [GOOD, Signed::Bad]
        );
        assert_eq!(server.requests(), 1);
        // Known by now.
        assert_eq!(scene.answers(&[token(&pair, "a")]).await, [GOOD]);
        // A storm of keys that nobody has, and what is good in the midst of it.
        let mut storm: Vec<_> = (0..200).map(|at| token(&other, &at.to_string())).collect();
        storm.push(token(&pair, "a"));
        let answers = scene.answers(&storm).await;
        let good: Vec<_> = answers.iter().filter(|signed| **signed != Signed::Bad).collect();
        assert_eq!(good, [&GOOD]);
        assert_eq!(server.requests(), 1);
    });
}

#[test]
fn a_storm_before_any_key_is_known() {
    block_on(async {
        let pair = Pair::ec("P-256");
        let server = Server::start(set(&[(&pair, "a")])).await;
        let mut scene = Scene::new(&server.url, SLOW);
        let storm: Vec<_> =
            (0..200).map(|at| token(&pair, if at % 2 == 0 { "a" } else { "b" })).collect();
        let answers = scene.answers(&storm).await;
        for (at, signed) in answers.into_iter().enumerate() {
            assert_eq!(signed, if at % 2 == 0 { GOOD } else { Signed::Bad }, "{at}");
        }
        assert_eq!(server.requests(), 1);
    });
}

#[test]
fn keys_rotate() {
    block_on(async {
        let (old, new) = (Pair::ec("P-256"), Pair::ec("P-256"));
        let server = Server::start(set(&[(&old, "old")])).await;
        let mut scene = Scene::new(&server.url, EAGER);
        assert_eq!(scene.answers(&[token(&old, "old")]).await, [GOOD]);
        server.says(set(&[(&old, "old"), (&new, "new")]));
        assert_eq!(scene.answers(&[token(&new, "new")]).await, [GOOD]);
        assert_eq!(scene.answers(&[token(&old, "old")]).await, [GOOD]);
        assert_eq!((server.requests(), scene.keys.generation()), (2, 0));
        server.says(set(&[(&new, "new")]));
        assert_eq!(scene.answers(&[token(&new, "newer")]).await, [Signed::Bad]);
        assert_eq!((server.requests(), scene.keys.generation()), (3, 1));
        assert_eq!(scene.answers(&[token(&old, "old")]).await, [Signed::Bad]);
        assert_eq!(scene.answers(&[token(&new, "new")]).await, [GOOD]);
    });
}

#[test]
fn endpoints_that_fail() {
    block_on(async {
        let pair = Pair::ec("P-256");
        let large = format!("{{\"keys\":[]{}}}", " ".repeat(BODY_BYTES_MAX));
        for answer in [
            Answer::Nothing,
            Answer::Says(500, key_set(&[pair.jwk("a")])),
            Answer::Says(302, key_set(&[pair.jwk("a")])),
            Answer::Says(200, "<html>".into()),
            Answer::Says(200, large),
        ] {
            let server = Server::start(answer).await;
            let mut scene = Scene::new(&server.url, SLOW);
            let tokens = [token(&pair, "a"), token(&pair, "b")];
            assert_eq!(scene.answers(&tokens).await, [Signed::Unavailable; 2]);
            // Not fetched again so soon.
            assert_eq!(scene.answers(&tokens[..1]).await, [Signed::Unavailable]);
            assert_eq!(server.requests(), 1);
        }
        let server = Server::start(Answer::Silence).await;
        let mut scene = Scene::new(&server.url, Pace { timeout: Duration::from_millis(5), ..SLOW });
        assert_eq!(scene.answers(&[token(&pair, "a")]).await, [Signed::Unavailable]);
        // Nobody there, and no address at all.
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        for url in [format!("http://{gone}/keys"), "http://[x/keys".into()] {
            let mut scene = Scene::new(&url, SLOW);
            assert_eq!(scene.answers(&[token(&pair, "a")]).await, [Signed::Unavailable]);
        }
    });
}

#[test]
fn it_comes_back() {
    block_on(async {
        let pair = Pair::ec("P-256");
        let server = Server::start(Answer::Nothing).await;
        let mut scene = Scene::new(&server.url, EAGER);
        assert_eq!(scene.answers(&[token(&pair, "a")]).await, [Signed::Unavailable]);
        server.says(set(&[(&pair, "a")]));
        assert_eq!(scene.answers(&[token(&pair, "a")]).await, [GOOD]);
        // Its keys stay good while it is away, and no others.
        server.says(Answer::Says(503, String::new()));
        let tokens = [token(&pair, "a"), token(&pair, "b")];
        assert_eq!(scene.answers(&tokens).await, [GOOD, Signed::Unavailable]);
        assert_eq!(scene.answers(&tokens[..1]).await, [GOOD]);
        assert_eq!((server.requests(), scene.keys.generation()), (3, 0));
    });
}

#[test]
fn keys_are_fetched_again_unasked() {
    block_on(async {
        let (old, new) = (Pair::ec("P-256"), Pair::ec("P-256"));
        let server = Server::start(set(&[(&old, "k")])).await;
        let mut scene = Scene::new(&server.url, Pace { refresh: Duration::ZERO, ..SLOW });
        assert_eq!(scene.answers(&[token(&old, "k")]).await, [GOOD]);
        server.says(set(&[(&new, "k")]));
        while scene.keys.generation() == 0 {
            scene.step().await;
        }
        let tokens = [token(&old, "k"), token(&new, "k")];
        assert_eq!(scene.answers(&tokens).await, [Signed::Bad, GOOD]);
    });
}

#[test]
fn places_for_endpoints() {
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let mut known = Known { endpoints: BTreeMap::new(), pace: Pace::NODE };
    let endpoint =
        |name: u64| Endpoint { kind: TokenKind::Connection, url: format!("https://i/{name}") };
    let ask = |known: &mut Known, name: u64, now: Instant| {
        let kind = TokenKind::Connection;
        let job = SignatureJob {
            token: "t".into(),
            kind,
            home: ShardId(0),
            ticket: name,
            interest: Interest::default(),
        };
        match known.ask(Ask { job, endpoint: endpoint(name) }, now) {
            Asked::Waits => "waits".to_owned(),
            Asked::Answered(Again::Check(_)) => "check".to_owned(),
            Asked::Answered(Again::Unavailable(_)) => "unavailable".to_owned(),
            Asked::Fetch { forgotten: None } => "fetch".to_owned(),
            Asked::Fetch { forgotten: Some(endpoint) } => format!("fetch, not {}", endpoint.url),
        }
    };
    for name in 0..64 {
        assert_eq!(ask(&mut known, name, at(0)), "fetch");
        assert_eq!(ask(&mut known, name, at(0)), "waits");
    }
    // All places are taken by endpoints with a fetch in progress.
    assert_eq!(ask(&mut known, 100, at(99)), "unavailable");
    for name in 0..64 {
        // 7 gave no keys, 9 was the first that gave some.
        let now = at(if name == 9 { 1 } else { 2 });
        let jobs = known.fetched(&endpoint(name), name != 7, now);
        assert_eq!(jobs.len(), 2);
        let good = jobs.iter().all(|again| matches!(again, Again::Check(_)));
        assert_eq!(good, name != 7, "{name}");
    }
    assert_eq!(known.next_refresh(), Some(at(3_601)));
    for (name, seconds, expected) in [
        (0, 11, "check"),
        (7, 11, "unavailable"),
        // 9 may be fetched again from 11 on, all others from 12 on.
        (100, 10, "unavailable"),
        (100, 12, "fetch, not https://i/7"),
        (101, 12, "fetch, not https://i/9"),
        (101, 12, "waits"),
        (0, 12, "fetch"),
        (102, 12, "fetch, not https://i/1"),
    ] {
        assert_eq!(ask(&mut known, name, at(seconds)), expected, "{name} at {seconds}");
    }
    assert_eq!(known.endpoints.len(), 64);
    // Endpoints with keys and without a fetch.
    assert!(known.refresh(at(3_601)).is_empty());
    assert_eq!(known.refresh(at(3_602)).len(), 60);
    assert!(known.refresh(at(3_602)).is_empty());
    assert_eq!(known.next_refresh(), None);
    // One that keeps its keys over a failed refresh is refreshed again.
    assert!(known.fetched(&endpoint(5), false, at(3_603)).is_empty());
    assert_eq!(known.next_refresh(), Some(at(7_203)));
}
