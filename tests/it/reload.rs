//! SIGHUP: options of channels and keys of tokens are read again.

use serde_json::json;

use crate::harness::{CLIENTS, Client, Node, now, token_by, upgrade};

/// A node's file: this secret, and these namespaces with what is said of them.
fn file(secret: &str, namespaces: &[(&str, &str)]) -> String {
    let mut file = format!("[client.token]\nhmac_secret_key = \"{secret}\"\n");
    for (name, options) in namespaces {
        file += &format!("[[channel.namespaces]]\nname = \"{name}\"\n{options}\n");
    }
    file
}

const OPEN: &str = "allow_subscribe_for_client = true\nallow_publish_for_client = true";
const KEPT: &str = "allow_subscribe_for_client = true\nallow_publish_for_client = true\n\
    history_size = 2\nhistory_ttl = \"10m\"\nallow_history_for_client = true";
const DONE: &str = "options reloaded";

fn connect(node: &Node, secret: &str) -> Client {
    let mut client = node.client();
    let token = token_by(secret, json!({ "sub": "42", "exp": now() + 600 }));
    client.send(&json!({"id": 1, "connect": {"token": token}}).to_string());
    client
}

#[test]
fn channels_and_keys_change_under_a_running_node() {
    let node = Node::start(&file("old", &[("aa", OPEN), ("bb", OPEN)]), &[]);
    let mut client = connect(&node, "old");
    client.expect("{\"id\":1,\"connect\":{*}}");
    client.talk(
        r#"
        > {"id":2,"subscribe":{"channel":"aa:x"}}
        < {"id":2,"subscribe":{}}
        > {"id":3,"subscribe":{"channel":"cc:x"}}
        < {"id":3,"error":{"code":102,"message":"unknown channel"}}
        "#,
    );
    node.reload(&file("new", &[("cc", KEPT), ("aa", KEPT)]), DONE);
    // A connected client stays, with the permissions of the new file.
    client.talk(
        r#"
        > {"id":4,"subscribe":{"channel":"cc:x"}}
        < {"id":4,"subscribe":{}}
        > {"id":5,"subscribe":{"channel":"bb:x"}}
        < {"id":5,"error":{"code":102,"message":"unknown channel"}}
        > {"id":6,"history":{"channel":"aa:x"}}
        < {"id":6,"history":{"publications":[],"epoch":"*","offset":0}}
        "#,
    );
    client.pub_sub("aa:x", 7);
    connect(&node, "new").expect("{\"id\":1,\"connect\":{*}}");
    connect(&node, "old").is_closed(3500, "invalid token");
}

#[test]
fn a_file_with_a_fault_changes_nothing() {
    let node = Node::start(&file("secret", &[("aa", OPEN)]), &[]);
    let bad = file("other", &[("aa", "history_size = 3")]);
    node.reload(&bad, "nothing is changed");
    assert!(node.errors().contains("history_ttl"), "{}", node.errors());
    let mut client = connect(&node, "secret");
    client.expect("{\"id\":1,\"connect\":{*}}");
    client.talk(
        r#"
        > {"id":2,"subscribe":{"channel":"aa:x"}}
        < {"id":2,"subscribe":{}}
        "#,
    );
}

#[test]
fn limits_origins_and_the_key_of_the_api_change() {
    let options = |key: &str, origin: &str, limit: u32, port: u32, level: &str| {
        format!(
            "[client]\nallowed_origins = [\"{origin}\"]\nchannel_limit = {limit}\n\
             token.hmac_secret_key = \"s\"\n[http_api]\nkey = \"{key}\"\n[log]\nlevel = \"{level}\"\n\
             [roost]\ndrain_rate = {port}\n[channel.without_namespace]\n\
             allow_subscribe_for_client = true\n",
        )
    };
    let node = Node::start(&options("old", "https://a.example", 1, 1, "info"), &[]);
    let mut client = connect(&node, "s");
    client.expect("{\"id\":1,\"connect\":{*}}");
    client.subscribe("a");
    client.talk(
        "> {\"id\":9,\"subscribe\":{\"channel\":\"b\"}}\n< {\"id\":9,\"error\":{\"code\":106,*}}",
    );
    let status = |key: &str| {
        let key = format!("X-API-Key: {key}");
        node.raw().post("/api/info", &[&key], "{}").status
    };
    let upgraded = |origin: &str| {
        let mut raw = node.raw();
        raw.send(upgrade(CLIENTS, &[&format!("Origin: {origin}")]).as_bytes());
        raw.response().status
    };
    assert_eq!((status("old"), status("new")), (200, 401));
    assert_eq!((upgraded("https://a.example"), upgraded("https://b.example")), (101, 403));
    node.reload(&options("new", "https://b.example", 2, 2, "info"), DONE);
    assert_eq!((status("old"), status("new")), (401, 200));
    assert_eq!((upgraded("https://a.example"), upgraded("https://b.example")), (403, 101));
    client.subscribe("b");
    // Changed options are named, and those that need a restart.
    let named = ["client.allowed_origins", "client (limits and delays)", "http_api.key"];
    for name in named {
        node.until_logged(&["is in effect", name]);
    }
    node.until_logged(&["needs a restart"]);
    let errors = node.errors();
    let held: Vec<&str> = errors.lines().filter(|line| line.contains("is in effect")).collect();
    assert_eq!(held.len(), named.len(), "{held:?}");
    assert!(named.iter().all(|name| held.iter().any(|line| line.contains(name))), "{held:?}");
    let line = errors.lines().find(|line| line.contains("needs a restart")).unwrap();
    assert!(line.contains("roost") && !line.contains("client"), "{line}");
    // The level is another one from here on: nothing more is said below it.
    node.reload(&options("new", "https://b.example", 2, 2, "warn"), "needs a restart");
    assert_eq!(node.errors().matches(DONE).count(), 1);
}

#[test]
fn a_file_that_is_gone_or_empty_changes_nothing() {
    let options = format!("{}\n[http_api]\nkey = \"k\"\n", file("secret", &[("aa", OPEN)]));
    let node = Node::start(&options, &[]);
    let serves = || {
        let mut client = connect(&node, "secret");
        client.expect("{\"id\":1,\"connect\":{*}}");
        client.subscribe("aa:x");
        assert!(node.call("info", serde_json::json!({}))["error"].is_null());
    };
    serves();
    for (text, why) in [("", "the file is empty"), (" \n", "the file is empty"), ("{", "1:")] {
        node.reload(text, "nothing is changed");
        assert!(node.errors().contains(why), "{}", node.errors());
        assert!(node.errors().contains("ERROR"), "{}", node.errors());
        serves();
    }
    node.reload_without_file("no such file");
    serves();
    // It is read again when it is back.
    node.reload(&options, DONE);
    serves();
}
