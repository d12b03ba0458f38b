//! Images as released versions have written them. The release behind each of them has to understand it: a node of the
//! one takes over from a node of the other.
//!
//! `ROOST_WRITE_SAMPLES=1` writes them by the program as it is: for a new release, beside the older ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::base::id::{ConnKey, ShardId};
use crate::base::image::ImageReader;
use crate::io::sim::{LinkId, SimDriver};
use crate::io::{Accepted, Driver as _};
use crate::shard::Shard;
use crate::shard::freeze::Frozen;
use crate::shard::freeze::tests::{Alone, masked, node, seat};

/// A file of this folder, which is written before where the environment says so.
#[expect(clippy::disallowed_methods, reason = "a switch of tests")]
pub(crate) fn sample(name: &str, write: impl FnOnce() -> String) -> String {
    let path = format!("{}/src/shard/samples/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("ROOST_WRITE_SAMPLES").is_some() {
        std::fs::write(&path, write()).unwrap();
    }
    std::fs::read_to_string(&path).unwrap()
}

/// Bytes as lines of text.
pub(crate) fn encoded(bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    let lines = text.as_bytes().chunks(100).map(|line| std::str::from_utf8(line).unwrap());
    lines.map(|line| format!("{line}\n")).collect()
}

/// Their bytes.
pub(crate) fn decoded(lines: &str) -> Vec<u8> {
    STANDARD.decode(lines.replace('\n', "")).unwrap()
}

/// A shard of connections with these keys, on a network of its own, and of an image.
fn thawed(keys: &[ConnKey], image: &[u8]) -> (Alone, Vec<LinkId>) {
    let mut alone = Alone::new();
    let mut links = Vec::new();
    let sockets = keys.iter().map(|key| {
        let mut driver = SimDriver::new(&alone.world, ShardId(0));
        links.push(alone.world.borrow_mut().connect_to(ShardId(0)));
        let Accepted::Socket(socket) = driver.accept() else { panic!("no socket") };
        driver.watch(*key, &socket).unwrap();
        (*key, socket)
    });
    let sockets: Vec<_> = sockets.collect();
    let driver = SimDriver::new(&alone.world, ShardId(0));
    let mut from = ImageReader::new(image, driver.now()).unwrap();
    alone.shard = Shard::thaw(node(), seat(), driver, || {}, &mut from, sockets).unwrap();
    (alone, links)
}

/// Two clients, a half head, half a command, and two publications.
fn written() -> String {
    let mut of = Alone::new();
    let links = [of.connect(), of.connect()];
    for link in links {
        of.says(link, r#"{"id":1,"connect":{}}"#);
        of.says(link, r#"{"id":2,"subscribe":{"channel":"news"}}"#);
        of.hears(link);
    }
    let half = of.world.borrow_mut().connect_to(ShardId(0));
    of.world.borrow_mut().write(half, b"GET /ws HT");
    let frame = masked(r#"{"id":9,"unsubscribe":{"channel":"other"}}"#);
    of.world.borrow_mut().write(links[0], &frame[..7]);
    for n in 1..=2 {
        let publish = r#"{"id":3,"publish":{"channel":"news","data":{"n":N}}}"#;
        of.says(links[1], &publish.replace('N', &n.to_string()));
        of.turns();
    }
    of.shard.settle().unwrap();
    of.turns();
    let Frozen { image, sockets } = of.shard.freeze().map_err(|(_, left)| left).unwrap();
    let keys: Vec<String> = sockets.iter().map(|(key, _)| key.pack().to_string()).collect();
    format!("{}\n{}", keys.join(" "), encoded(&image))
}

#[test]
fn a_shard_of_a_released_version_goes_on() {
    let text = sample("0.2.0.txt", written);
    let (keys, image) = text.split_once('\n').unwrap();
    let keys: Vec<ConnKey> =
        keys.split(' ').map(|key| ConnKey::unpack(key.parse().unwrap()).unwrap()).collect();
    let (mut of, links) = thawed(&keys, &decoded(image));
    assert_eq!(of.shard.cx.counters().connections_open.get(), 3);
    assert_eq!(of.shard.cx.counters().subscriptions.get(), 2);
    // The rest of a command of which the older version had read seven bytes, and what it had queued.
    let frame = masked(r#"{"id":9,"unsubscribe":{"channel":"other"}}"#);
    of.world.borrow_mut().write(links[0], &frame[7..]);
    assert!(of.hears(links[0]).contains(r#""id":9"#));
    of.says(links[1], r#"{"id":4,"publish":{"channel":"news","data":{"n":3}}}"#);
    for link in &links[..2] {
        let heard = of.hears(*link);
        assert!(heard.contains(r#""offset":3"#), "{heard}");
    }
    of.world.borrow_mut().write(links[2], b"TP/1.1\r\nHost: a\r\n\r\n");
    assert!(of.hears(links[2]).contains("HTTP/1.1 "));
}
