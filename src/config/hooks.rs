//! Section `client.hooks`: where events go that the application gets notice of.

use super::build::{endpoint_tls, static_headers};
use super::layers::{Report, Scope, Settings};
use crate::edge::channels::ChannelRules;
use crate::edge::proxy::ProxyOptions;

/// The section.
pub(super) const SECTION: &str = "client.hooks";

/// Where events are posted, and how many wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// The endpoint; of its options only the address, the timeout, the headers and TLS count.
    pub to: ProxyOptions,
    /// Events in one post.
    pub batch_max: usize,
    /// Bytes of events that wait.
    pub queue_bytes_max: usize,
}

/// The hooks, where there is an endpoint.
pub(super) fn hooks(
    settings: &Settings,
    channels: &ChannelRules,
    report: &mut Report,
) -> Option<Hooks> {
    let scope: &Scope = settings.section(SECTION);
    let endpoint = scope.text("endpoint");
    if endpoint.is_empty() {
        let used = match (scope.flag("disconnect"), channels.has_state_events()) {
            (true, _) => "disconnect",
            (false, true) => "roost.state_events of a namespace",
            (false, false) => return None,
        };
        let expected = format!("a URL, since {used} uses it");
        report.errors.push(scope.complaint("endpoint", &expected));
        return None;
    }
    let timeout_ms = scope.ms("timeout");
    if timeout_ms == 0 {
        report.errors.push(scope.complaint("timeout", "more than 0"));
    }
    let to = ProxyOptions {
        name: SECTION.to_owned(),
        endpoint,
        timeout_ms,
        static_headers: static_headers(settings, scope, report),
        tls: endpoint_tls(scope, report),
        ..ProxyOptions::default()
    };
    Some(Hooks {
        to,
        batch_max: scope.size("batch_size"),
        queue_bytes_max: scope.size("queue_max_size"),
    })
}
