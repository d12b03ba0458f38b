//! `roost config migrate`: a file of Centrifugo 3 to 5 as one of today, with a report.
//!
//! ```text
//!  FILE --tree--> names at the top, namespaces, proxies --renamed--> tree of today --> TOML, YAML, JSON
//!                                                          '--> report: what moved, what has no place
//! ```
//! Values stay as they are; what a version did without an option is set, with a line in the report.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::explain::{self, is_known};
use super::file_value::{Entry, FileValue, Form};
use super::renamed::{self, Fate};
use super::tree;
use super::{PrintFormat, files};

/// A file of today, and what became of each option.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Migrated {
    /// The options of today.
    pub options: Value,
    /// `FILE:LINE: old -> new`.
    pub moved: Vec<String>,
    /// `FILE:LINE: what was added, and why`.
    pub added: Vec<String>,
    /// `FILE:LINE: an option that has no place: why`.
    pub left: Vec<String>,
}

/// The versions that a file can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Subscriptions are open unless a namespace is protected.
    Three,
    /// Flat names with permissions.
    FourOrFive,
}

/// Reads a file and translates it. `version` is found out where it is `None`.
///
/// # Errors
/// Text for the user: it can't be read.
pub fn migrate(file: &Path, version: Option<Version>) -> Result<Migrated, String> {
    let name = file.display().to_string();
    let text = files::read(file).map_err(|fault| format!("{name}: {fault}"))?;
    migrate_text(&name, &text, version)
}

/// The same of a text.
fn migrate_text(name: &str, text: &str, version: Option<Version>) -> Result<Migrated, String> {
    let parsed = tree::parse(name, text).map_err(|fault| format!("{name}:{fault}"))?;
    let Form::Map(entries) = parsed.form else {
        return Err(format!("{name}: expected options, not a single value"));
    };
    let version = version.unwrap_or_else(|| version_of(&entries));
    let mut work = Work { name, version, ..Work::new(name) };
    work.file(&entries);
    let Work { root, moved, added, left, .. } = work;
    Ok(Migrated { options: Value::Object(root), moved, added, left })
}

/// Old variables as those of today, in their order; `lines` are `NAME=value`, as in a file for `docker run`.
pub fn migrate_variables(name: &str, text: &str) -> (String, Migrated) {
    let (mut out, mut report) = (String::new(), Migrated::default());
    for (number, line) in text.lines().enumerate() {
        let at = format!("{name}:{}", number + 1);
        let trimmed = line.trim_start().trim_start_matches("export ");
        let variable = trimmed.split_once('=').filter(|_| !trimmed.starts_with('#'));
        let own = variable.and_then(|(key, value)| Some((key.strip_prefix("CENTRIFUGO_")?, value)));
        let Some((own, value)) = own else {
            out += &format!("{line}\n");
            continue;
        };
        out += &variable_today(&at, own, value, &mut report);
    }
    (out, report)
}

/// The lines of today for one variable.
fn variable_today(at: &str, own: &str, value: &str, report: &mut Migrated) -> String {
    let old = format!("CENTRIFUGO_{own}");
    let name = own.to_lowercase();
    let is_today = explain::explain(&old).is_ok() && renamed::at_top(&name, &is_known).is_none();
    if is_today {
        return format!("{old}={value}\n");
    }
    let quote = ['\'', '"'].into_iter().find(|quote| value.starts_with(*quote));
    let bare = quote.map_or(value, |quote| value.trim_matches(quote));
    // Lists of namespaces and proxies are JSON, whose names are old, too; a text stays as it is.
    let json: Option<Value> = serde_json::from_str(bare).ok();
    let given = json.unwrap_or_else(|| Value::String(bare.to_owned()));
    let file = json!({ name: given }).to_string();
    let Ok(mut migrated) = migrate_text("variable.json", &file, None) else {
        return format!("{old}={value}\n");
    };
    let mut leaves = Vec::new();
    lines(&migrated.options, String::new(), &mut leaves);
    let renamed = |line: String| line.replacen("variable.json:1", at, 1);
    report.left.extend(migrated.left.drain(..).map(renamed));
    report.added.extend(migrated.added.drain(..).map(renamed));
    let mut out = String::new();
    for (path, value) in leaves {
        let Some(today) = super::names::prefixed("CENTRIFUGO_", &path) else { continue };
        report.moved.push(format!("{at}: {old} -> {today}"));
        let quote = quote.map_or_else(String::new, String::from);
        out += &format!("{today}={quote}{value}{quote}\n");
    }
    out
}

/// The leaves of options as variables have them: lists of sections are one.
fn lines(value: &Value, path: String, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) if !is_value_of_map(&path) => {
            for (name, value) in fields {
                let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                lines(value, inner, out);
            }
        }
        Value::String(text) => out.push((path, text.clone())),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            out.push((path, items.join(" ")));
        }
        value => out.push((path, value.to_string())),
    }
}

/// A map that is the value of an option, and no section.
fn is_value_of_map(path: &str) -> bool {
    path.ends_with(".static_headers")
}

/// Which version had these options: only version 3 had some of them.
fn version_of(entries: &[Entry]) -> Version {
    let is_old =
        |entries: &[Entry]| entries.iter().any(|entry| renamed::is_of_version_3(&entry.key));
    let in_namespaces = entries.iter().filter(|entry| entry.key == "namespaces").any(|entry| {
        matches!(&entry.value.form, Form::List(items) if items.iter().any(|item| {
            matches!(&item.form, Form::Map(entries) if is_old(entries))
        }))
    });
    if is_old(entries) || in_namespaces { Version::Three } else { Version::FourOrFive }
}

/// A migration under way.
struct Work<'a> {
    name: &'a str,
    version: Version,
    root: Map<String, Value>,
    moved: Vec<String>,
    added: Vec<String>,
    left: Vec<String>,
    /// Proxies by name, of the granular mode.
    proxies: Vec<Map<String, Value>>,
    is_granular: bool,
}

/// Options of a proxy that stood at the top for all of them, and those of today.
const SHARED_BY_PROXIES: &[(&str, &str)] = &[
    ("proxy_http_headers", "http_headers"),
    ("proxy_extra_http_headers", "http_headers"),
    ("proxy_static_http_headers", "http.static_headers"),
    ("proxy_binary_encoding", "binary_encoding"),
    ("proxy_include_connection_meta", "include_connection_meta"),
    ("proxy_grpc_metadata", "grpc_metadata"),
];

/// Proxies of events: the option that has its endpoint, and its section.
const EVENTS: &[(&str, &str)] = &[
    ("proxy_connect_endpoint", "client.proxy.connect"),
    ("proxy_refresh_endpoint", "client.proxy.refresh"),
    ("proxy_subscribe_endpoint", "channel.proxy.subscribe"),
    ("proxy_publish_endpoint", "channel.proxy.publish"),
    ("proxy_sub_refresh_endpoint", "channel.proxy.sub_refresh"),
    ("proxy_rpc_endpoint", "rpc.proxy"),
];

/// Options of a proxy of the granular mode.
const OF_PROXIES: &[(&str, &str)] = &[
    ("extra_http_headers", "http_headers"),
    ("static_http_headers", "http.static_headers"),
    ("grpc_cert_file", "grpc.tls.server_ca_pem"),
    ("grpc_credentials_key", "grpc.credentials_key"),
    ("grpc_credentials_value", "grpc.credentials_value"),
    ("grpc_compression", "grpc.compression"),
];

/// Lists of servers that were one text with commas.
const ADDRESSES: &[&str] = &["engine.redis.address"];
/// The same, where the text with commas is one element.
const ADDRESS_GROUPS: &[&str] = &["engine.redis.cluster_address", "engine.redis.sentinel_address"];

impl<'a> Work<'a> {
    fn new(name: &'a str) -> Self {
        Self {
            name,
            version: Version::FourOrFive,
            root: Map::new(),
            moved: Vec::new(),
            added: Vec::new(),
            left: Vec::new(),
            proxies: Vec::new(),
            is_granular: false,
        }
    }

    fn file(&mut self, entries: &[Entry]) {
        let has = |name: &str| entries.iter().any(|entry| entry.key == name);
        self.is_granular = entries.iter().any(|entry| {
            entry.key == "granular_proxy_mode" && entry.value.form == Form::Bool(true)
        });
        for entry in entries.iter().filter(|entry| entry.key == "proxies") {
            self.named_proxies(entry);
        }
        for entry in entries.iter().filter(|entry| entry.key != "proxies") {
            self.option(entry, entries);
        }
        if self.is_granular {
            for proxy in std::mem::take(&mut self.proxies) {
                self.proxy_in_list(proxy);
            }
        }
        let plain: Vec<&Entry> =
            entries.iter().filter(|entry| is_of_channels(&entry.key)).collect();
        if self.version == Version::Three {
            let line = plain.first().map_or(1, |entry| entry.line);
            let mut options = self.section("channel.without_namespace");
            self.open_as_version_3(line, "channel.without_namespace", &plain, &mut options);
            self.put("channel.without_namespace", Value::Object(options));
        }
        if has("proxy_rpc_endpoint") && !self.is_granular {
            self.put("rpc.without_namespace.proxy_enabled", true.into());
        }
    }

    /// One option at the top.
    fn option(&mut self, entry: &Entry, all: &[Entry]) {
        let (key, line) = (entry.key.as_str(), entry.line);
        if key == "namespaces" {
            return self.namespaces(entry, "channel.namespaces");
        }
        if key == "rpc_namespaces" {
            return self.rpc_namespaces(entry);
        }
        if is_of_channels(key) {
            let mut options = self.section("channel.without_namespace");
            self.channel_option(entry, "channel.without_namespace", &mut options);
            return self.put("channel.without_namespace", Value::Object(options));
        }
        if let Some((_, option)) = SHARED_BY_PROXIES.iter().find(|(old, _)| *old == key) {
            return self.of_each_proxy(entry, option, all);
        }
        if let (true, "connect_proxy_name" | "refresh_proxy_name" | "rpc_proxy_name") =
            (self.is_granular, key)
        {
            return self.named_event(entry);
        }
        // A section is one of today's.
        if matches!(entry.value.form, Form::Map(_)) && is_section(key) {
            return self.today(key, entry);
        }
        match renamed::at_top(key, &is_known) {
            _ if is_known(key) && !key.contains('.') && !is_section(key) => self.today(key, entry),
            Some(Fate::Moved(path)) => self.moved_to(&path, entry),
            Some(Fate::Gone(why)) => self.leave(line, key, why),
            None if is_known(key) => self.today(key, entry),
            None => {
                let why = format!("no version has this option{}", explain::suggestion(key));
                self.leave(line, key, &why);
            }
        }
    }

    /// An option that has its path of today already, or a whole section of them.
    fn today(&mut self, path: &str, entry: &Entry) {
        if let Some((true, why)) = explain::objection(path)
            && is_on(&entry.value)
        {
            return self.leave(entry.line, path, why);
        }
        match &entry.value.form {
            Form::Map(inner) if !is_value_of_map(path) => {
                for entry in inner {
                    self.today(&format!("{path}.{}", entry.key), entry);
                }
            }
            Form::Null => {}
            _ => self.put(path, entry.value.json()),
        }
    }

    fn moved_to(&mut self, path: &str, entry: &Entry) {
        let (key, line) = (entry.key.as_str(), entry.line);
        let value = value_at(path, &entry.value);
        if let Some((_, why)) = explain::objection(path)
            && is_on(&entry.value)
        {
            return self.leave(line, key, why);
        }
        if path == "broker.type" {
            self.put("broker.enabled", true.into());
            if !matches!(value.as_str(), Some("redis" | "memory")) {
                return self.leave(line, key, "brokers are memory and redis");
            }
        }
        if path == "engine.type" && !matches!(value.as_str(), Some("redis" | "memory")) {
            return self.leave(line, key, "engines are memory and redis");
        }
        if let Some((_, section)) = EVENTS.iter().find(|(old, _)| *old == key) {
            if let Some(url) = value.as_str().filter(|url| !is_http(url)) {
                let why =
                    format!("{url} is no http:// or https:// URL, and no other proxy is built");
                return self.leave(line, key, &why);
            }
            if section.starts_with("client.") {
                self.put(&format!("{section}.enabled"), true.into());
                self.add(line, &format!("{section}.enabled = true: its endpoint switched it on"));
            }
        }
        self.note(line, key, path);
        self.put(path, value);
    }

    /// An option that was for all proxies: today each has its own.
    fn of_each_proxy(&mut self, entry: &Entry, option: &str, all: &[Entry]) {
        let mut has_some = false;
        if self.is_granular {
            return self.leave(
                entry.line,
                &entry.key,
                "in the granular mode each proxy has its own",
            );
        }
        for (endpoint, section) in EVENTS {
            if all.iter().any(|entry| entry.key == *endpoint) {
                let path = format!("{section}.{option}");
                self.note(entry.line, &entry.key, &path);
                self.put(&path, entry.value.json());
                has_some = true;
            }
        }
        if !has_some {
            self.leave(entry.line, &entry.key, "there is no proxy that it is for");
        }
    }

    /// `connect_proxy_name` and the like: the options of that proxy are those of the event today.
    fn named_event(&mut self, entry: &Entry) {
        let Form::Text(name) = &entry.value.form else { return };
        let has_name = |proxy: &&Map<String, Value>| proxy.get("name").is_some_and(|n| n == name);
        let Some(mut proxy) = self.proxies.iter().find(has_name).cloned() else {
            return self.leave(entry.line, &entry.key, "no proxy has this name");
        };
        if entry.key == "rpc_proxy_name" {
            self.put("rpc.without_namespace.proxy_enabled", true.into());
            self.put("rpc.without_namespace.proxy_name", name.as_str().into());
            return self.note(entry.line, &entry.key, "rpc.without_namespace.proxy_name");
        }
        let section = match entry.key.as_str() {
            "connect_proxy_name" => "client.proxy.connect",
            _ => "client.proxy.refresh",
        };
        self.note(entry.line, &entry.key, section);
        proxy.remove("name");
        proxy.insert("enabled".to_owned(), true.into());
        self.put(section, Value::Object(proxy));
    }

    fn named_proxies(&mut self, entry: &Entry) {
        let Form::List(items) = &entry.value.form else {
            return self.leave(entry.line, &entry.key, "expected a list");
        };
        for item in items {
            let Form::Map(entries) = &item.form else { continue };
            let mut proxy = Map::new();
            for option in entries {
                let renamed = OF_PROXIES.iter().find(|(old, _)| *old == option.key);
                let path = renamed.map_or(option.key.as_str(), |(_, new)| new);
                if let Some((_, new)) = renamed {
                    self.note(option.line, &option.key, new);
                }
                insert(&mut proxy, path, option.value.json());
            }
            let url = proxy.get("endpoint").and_then(Value::as_str);
            if let Some(url) = url.filter(|url| !is_http(url)) {
                let why =
                    format!("{url} is no http:// or https:// URL, and no other proxy is built");
                self.leave(item.line, "proxies", &why);
                continue;
            }
            self.proxies.push(proxy);
        }
        // Without the mode they are those of today.
        if !self.is_granular {
            for proxy in std::mem::take(&mut self.proxies) {
                self.proxy_in_list(proxy);
            }
        }
    }

    fn proxy_in_list(&mut self, proxy: Map<String, Value>) {
        match self.root.entry("proxies").or_insert_with(|| json!([])) {
            Value::Array(list) => list.push(Value::Object(proxy)),
            _ => unreachable!("only this puts proxies"),
        }
    }

    fn namespaces(&mut self, entry: &Entry, path: &str) {
        let Form::List(items) = &entry.value.form else {
            return self.leave(entry.line, &entry.key, "expected a list");
        };
        self.note(entry.line, &entry.key, path);
        let mut list = Vec::new();
        for item in items {
            let Form::Map(entries) = &item.form else { continue };
            let name = entries.iter().find(|entry| entry.key == "name");
            let name = name.map_or_else(String::new, |entry| text_of(&entry.value));
            let place = format!("{path}[{name}]");
            let mut options = Map::new();
            options.insert("name".to_owned(), name.into());
            for option in entries.iter().filter(|entry| entry.key != "name") {
                self.channel_option(option, &place, &mut options);
            }
            if self.version == Version::Three {
                let own: Vec<&Entry> = entries.iter().collect();
                self.open_as_version_3(item.line, &place, &own, &mut options);
            }
            list.push(Value::Object(options));
        }
        self.put(path, Value::Array(list));
    }

    fn rpc_namespaces(&mut self, entry: &Entry) {
        let Form::List(items) = &entry.value.form else {
            return self.leave(entry.line, &entry.key, "expected a list");
        };
        self.note(entry.line, &entry.key, "rpc.namespaces");
        let mut list = Vec::new();
        for item in items {
            let Form::Map(entries) = &item.form else { continue };
            let mut options = Map::new();
            for option in entries {
                match option.key.as_str() {
                    "rpc_proxy_name" => {
                        self.note(option.line, &option.key, "proxy_enabled and proxy_name");
                        options.insert("proxy_enabled".to_owned(), true.into());
                        options.insert("proxy_name".to_owned(), option.value.json());
                    }
                    key => _ = options.insert(key.to_owned(), option.value.json()),
                }
            }
            list.push(Value::Object(options));
        }
        self.put("rpc.namespaces", Value::Array(list));
    }

    /// An option of channels, at the top or in a namespace.
    fn channel_option(&mut self, entry: &Entry, place: &str, options: &mut Map<String, Value>) {
        let (key, line) = (entry.key.as_str(), entry.line);
        // Their meaning is that of version 3, and `open_as_version_3` gives it.
        let by_meaning = ["protected", "publish", "subscribe_to_publish", "anonymous"];
        if by_meaning.contains(&key) || key.ends_with("_disable_for_client") {
            return;
        }
        let path = match renamed::in_namespace(key) {
            Some(Fate::Moved(path)) => path,
            Some(Fate::Gone(why)) => return self.leave(line, &format!("{place}.{key}"), why),
            None => key.to_owned(),
        };
        let full = format!("channel.without_namespace.{path}");
        if !is_known(&full) {
            let why = format!("no version has this option{}", explain::suggestion(&full));
            return self.leave(line, &format!("{place}.{key}"), &why);
        }
        if let Some((true, why)) = explain::objection(&full)
            && is_on(&entry.value)
        {
            return self.leave(line, &format!("{place}.{key}"), why);
        }
        if path != key {
            self.note(line, &format!("{place}.{key}"), &path);
        }
        insert(options, &path, entry.value.json());
        if self.is_granular
            && let Some(event) = path.strip_suffix("_proxy_name")
            && is_on(&entry.value)
        {
            options.insert(format!("{event}_proxy_enabled"), true.into());
            self.add(
                line,
                &format!("{place}: {event}_proxy_enabled = true: its name switched it on"),
            );
        }
    }

    /// What version 3 allowed without an option.
    fn open_as_version_3(
        &mut self,
        line: usize,
        place: &str,
        entries: &[&Entry],
        options: &mut Map<String, Value>,
    ) {
        let on = |name: &str| entries.iter().any(|entry| entry.key == name && is_on(&entry.value));
        let has_history = on("history_size");
        let anonymous = on("anonymous");
        let (presence, history) = (
            on("presence") && !on("presence_disable_for_client"),
            has_history && !on("history_disable_for_client"),
        );
        for (option, is_open) in [
            ("allow_subscribe_for_client", !on("protected")),
            ("allow_subscribe_for_anonymous", anonymous && !on("protected")),
            ("allow_publish_for_client", on("publish") && !on("subscribe_to_publish")),
            ("allow_publish_for_subscriber", on("publish") && on("subscribe_to_publish")),
            ("allow_publish_for_anonymous", on("publish") && anonymous),
            ("allow_presence_for_subscriber", presence),
            ("allow_presence_for_anonymous", presence && anonymous),
            ("allow_history_for_subscriber", history),
            ("allow_history_for_anonymous", history && anonymous),
            ("allow_user_limited_channels", true),
            ("force_push_join_leave", on("join_leave")),
        ] {
            if is_open && !options.contains_key(option) {
                options.insert(option.to_owned(), true.into());
                self.add(
                    line,
                    &format!("{place}.{option} = true: version 3 did so without an option"),
                );
            }
        }
    }

    fn section(&self, path: &str) -> Map<String, Value> {
        let mut at = Some(&self.root);
        for part in path.split('.') {
            at = at.and_then(|map| map.get(part)).and_then(Value::as_object);
        }
        at.cloned().unwrap_or_default()
    }

    fn put(&mut self, path: &str, value: Value) {
        insert(&mut self.root, path, value);
    }

    fn note(&mut self, line: usize, old: &str, new: &str) {
        self.moved.push(format!("{}:{line}: {old} -> {new}", self.name));
    }

    fn add(&mut self, line: usize, what: &str) {
        self.added.push(format!("{}:{line}: added {what}", self.name));
    }

    fn leave(&mut self, line: usize, key: &str, why: &str) {
        self.left.push(format!("{}:{line}: {key}: {why}", self.name));
    }
}

/// Whether an option at the top is one of channels without a namespace.
fn is_of_channels(key: &str) -> bool {
    // A name of both was the option of channels only within a namespace.
    let has_other = matches!(key, "name" | "history_meta_ttl" | "map" | "shared_poll");
    let today = format!("channel.without_namespace.{key}");
    !has_other && (renamed::in_namespace(key).is_some() || is_known(&today) && !is_section(key))
}

/// Whether a name at the top is a section of today.
fn is_section(key: &str) -> bool {
    let below = format!("{key}.");
    let mut paths = super::table::OPTIONS.iter().map(|row| row.path);
    let of_places = super::table::places().iter().any(|place| place.path.starts_with(&below));
    of_places || paths.any(|path| path.starts_with(&below) || path == key && key != "pid_file")
}

fn is_http(url: &str) -> bool {
    url.starts_with("http://") || url.starts_with("https://")
}

/// Whether a value asks for something.
fn is_on(value: &FileValue) -> bool {
    match &value.form {
        Form::Null | Form::Bool(false) | Form::Integer(0) => false,
        Form::Text(text) => !matches!(text.as_str(), "" | "false" | "0" | "0s"),
        Form::List(items) => !items.is_empty(),
        _ => true,
    }
}

fn text_of(value: &FileValue) -> String {
    match value.json() {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// The value at its new place: lists of addresses were texts, too.
fn value_at(path: &str, value: &FileValue) -> Value {
    let given = value.json();
    match &given {
        Value::String(text) if ADDRESSES.contains(&path) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(Value::from).collect()
        }
        Value::String(text) if ADDRESS_GROUPS.contains(&path) => json!([text]),
        Value::Array(items) if ADDRESS_GROUPS.contains(&path) => {
            // One Cluster, or one set of Sentinels, was a list of its servers.
            let servers: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            json!([servers.join(",")])
        }
        Value::String(text) if path == "client.allowed_origins" => {
            text.split_whitespace().map(Value::from).collect()
        }
        Value::Number(number) if path == "http_server.internal_port" => number.to_string().into(),
        _ => given,
    }
}

fn insert(map: &mut Map<String, Value>, path: &str, value: Value) {
    let Some((section, rest)) = path.split_once('.') else {
        if !value.is_null() {
            map.insert(path.to_owned(), value);
        }
        return;
    };
    let inner = map.entry(section).or_insert_with(|| Value::Object(Map::new()));
    if !inner.is_object() {
        *inner = Value::Object(Map::new());
    }
    if let Value::Object(inner) = inner {
        insert(inner, rest, value);
    }
}

/// The options as variables, one a line.
pub fn print_variables(options: &Value) -> String {
    let mut leaves = Vec::new();
    lines(options, String::new(), &mut leaves);
    let line = |(path, value): (String, String)| {
        let name = super::names::prefixed("CENTRIFUGO_", &path)
            .or_else(|| super::names::prefixed("ROOST_", &path))?;
        Some(format!("{name}={value:?}\n"))
    };
    leaves.into_iter().filter_map(line).collect()
}

/// The options as a file.
///
/// # Errors
/// A value that the format doesn't have.
pub fn print_options(options: &Value, format: PrintFormat) -> Result<String, String> {
    match format {
        PrintFormat::Toml => toml::to_string_pretty(options).map_err(|fault| fault.to_string()),
        PrintFormat::Yaml => serde_saphyr::to_string(options).map_err(|fault| fault.to_string()),
        PrintFormat::Json => serde_json::to_string_pretty(options)
            .map(|text| text + "\n")
            .map_err(|fault| fault.to_string()),
    }
}

#[cfg(test)]
mod tests;
