//! `roost status`: the figures of a node and of those that share its broker, on one screen.

use std::process::ExitCode;

use serde_json::Value;

use super::admin::{AccessArgs, Admin};
use super::http::Request;
use super::target::{Port, Target, TargetArgs};
use super::{fail, say, unfound};
use crate::host::plan::grouped;

/// Arguments of `roost status`.
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Key of the server API, where the admin API is off; by default http_api.key of the configuration.
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Access.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Which node.
    #[command(flatten)]
    pub target: TargetArgs,
}

pub(super) fn run(arguments: &StatusArgs, environment: Vec<(String, String)>) -> ExitCode {
    let target = match Target::find(&arguments.target, environment) {
        Ok(target) => target,
        Err(fault) => return unfound(fault),
    };
    match status(arguments, &target) {
        Ok((_, info)) if arguments.json => say(&format!("{info:#}\n")),
        Ok((address, info)) => say(&screen(&address, &info)),
        Err(fault) => return fail(&fault),
    }
    ExitCode::SUCCESS
}

/// The node's address, and the result of `info`: by the admin API, or by the server API where a key is known.
fn status(arguments: &StatusArgs, target: &Target) -> Result<(String, Value), String> {
    let api = target.config.web.api.as_ref();
    let key = arguments.api_key.clone().or_else(|| api?.key.clone());
    let is_open = api.is_some_and(|api| api.insecure);
    let wants_admin = arguments.access.password.is_some() || arguments.access.token.is_some();
    if wants_admin || key.is_none() && !is_open {
        let admin = Admin::enter(target, &arguments.access)?;
        return Ok((admin.endpoint.to_string(), admin.call("info")?));
    }
    let path = format!("{}/info", api.map_or("/api", |api| api.prefix.as_str()));
    let key = key.unwrap_or_default();
    let headers = [("X-API-Key", key.as_str()), ("Content-Type", "application/json")];
    target.try_each(Port::Internal, |endpoint| {
        let request = Request { path: &path, headers: &headers, body: Some(b"{}") };
        let answer = endpoint.request(request)?;
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        match answer.status {
            200 if value["error"].is_null() => Ok((endpoint.to_string(), value["result"].clone())),
            200 => Err(format!("{endpoint}: {}", value["error"]["message"])),
            401 | 403 => Err(format!("{endpoint}: the key of the server API is wrong")),
            status => Err(format!("{endpoint}: the server API answers with {status}")),
        }
    })
}

/// Nodes shown at most, so that it is a screen.
const NODES_MAX: usize = 16;

fn screen(address: &str, info: &Value) -> String {
    let nodes = info["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let plural = if nodes.len() == 1 { "" } else { "s" };
    let mut text = format!("{address}: {} node{plural}\n\n", nodes.len());
    text +=
        &row(["node", "version", "uptime", "clients", "users", "subs", "channels"]
            .map(str::to_owned));
    let number = |node: &Value, name: &str| grouped(node[name].as_u64().unwrap_or(0));
    for node in nodes.iter().take(NODES_MAX) {
        let name = node["name"].as_str().unwrap_or_default().to_owned();
        let version = node["version"].as_str().unwrap_or_default().to_owned();
        let uptime = node["uptime"].as_u64().unwrap_or(0);
        let uptime = humantime::format_duration(std::time::Duration::from_secs(uptime)).to_string();
        let uptime = uptime.split(' ').take(2).collect::<Vec<_>>().join(" ");
        text += &row([
            name,
            version,
            uptime,
            number(node, "num_clients"),
            number(node, "num_users"),
            number(node, "num_subs"),
            number(node, "num_channels"),
        ]);
    }
    if nodes.len() > NODES_MAX {
        text += &format!("and {} more (--json has them all)\n", nodes.len() - NODES_MAX);
    }
    text
}

fn row([name, version, uptime, clients, users, subs, channels]: [String; 7]) -> String {
    let name: String = name.chars().take(20).collect();
    let line = format!(
        "{name:<20} {version:<9} {uptime:<9} {clients:>9} {users:>9} {subs:>9} {channels:>9}"
    );
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_screen_has_all_nodes_within_80_columns() {
        let node = json!({
            "name": "a-host-with-a-very-long-name_8000", "version": "0.1.0", "uptime": 93_784,
            "num_clients": 1_000_000, "num_users": 5, "num_subs": 2_000_000, "num_channels": 7,
        });
        let text = screen("http://a:1", &json!({"nodes": [node, node]}));
        assert!(text.starts_with("http://a:1: 2 nodes\n"), "{text}");
        assert!(text.contains("1,000,000") && text.contains("1day 2h"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let many = json!({"nodes": vec![node; 40]});
        assert!(screen("a", &many).lines().count() <= 24);
    }
}
