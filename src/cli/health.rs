//! `roost health`: whether a running node can serve, for a container's `HEALTHCHECK` and for scripts.

use std::process::ExitCode;

use serde_json::Value;

use super::http::{Answer, Request};
use super::target::{Port, Target, TargetArgs};
use super::{EXIT_FAILED, fail, say, unfound};

/// Arguments of `roost health`.
#[derive(Debug, clap::Args)]
pub(super) struct HealthArgs {
    /// Check readiness (roost.ready_prefix): not ready either while the broker is away.
    #[arg(long)]
    pub ready: bool,
    /// Print nothing.
    #[arg(short, long)]
    pub quiet: bool,
    /// Which node.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// The answer of a node in one line, and whether it is a good one.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    is_good: bool,
    text: String,
}

pub(super) fn run(arguments: &HealthArgs, environment: Vec<(String, String)>) -> ExitCode {
    let target = match Target::find(&arguments.target, environment) {
        Ok(target) => target,
        Err(fault) => return unfound(fault),
    };
    let web = &target.config.web;
    let (path, default) = match arguments.ready {
        true => (&web.ready, "/ready"),
        false => (&web.health, "/health"),
    };
    let is_served = path.is_some() || arguments.target.url.is_some();
    let path = path.as_deref().unwrap_or(default);
    let answered = target.try_each(Port::Internal, |endpoint| {
        let answer = endpoint.request(Request { path, ..Request::default() })?;
        Ok((endpoint.to_string(), answer))
    });
    match answered {
        Ok((address, answer)) => {
            let Verdict { is_good, text } = verdict(&answer, is_served);
            if !arguments.quiet {
                say(&format!("{address}: {text}\n"));
            }
            if is_good { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) }
        }
        Err(_) if arguments.quiet => ExitCode::from(EXIT_FAILED),
        Err(fault) => fail(&fault),
    }
}

/// `is_served`: by the configuration, there is such a check.
fn verdict(answer: &Answer, is_served: bool) -> Verdict {
    let (is_good, text) = match answer.status {
        200 => (
            true,
            said(answer).map_or_else(|| "healthy".to_owned(), |more| format!("healthy; {more}")),
        ),
        503 => (
            false,
            said(answer)
                .map_or_else(|| "not healthy".to_owned(), |why| format!("not healthy: {why}")),
        ),
        404 if is_served => {
            (false, "no health check there; is health.enabled true, and the path right?".to_owned())
        }
        // A node that has no check, and answers, is alive, and that is all there is to know.
        404 => (true, "answers; health.enabled is false, so nothing else is known".to_owned()),
        status => (false, format!("answers with status {status}")),
    };
    Verdict { is_good, text }
}

/// The reasons in the body of a check, where it has some.
fn said(answer: &Answer) -> Option<String> {
    let Ok(Value::Object(fields)) = serde_json::from_slice(&answer.body) else {
        let text = answer.text();
        return (!text.is_empty()).then_some(text);
    };
    let line = |(name, value): (&String, &Value)| match (name.as_str(), value) {
        ("reason", Value::String(text)) => text.clone(),
        (name, Value::String(text)) => format!("{name}: {text}"),
        (name, Value::Array(texts)) => {
            let texts: Vec<&str> = texts.iter().filter_map(Value::as_str).collect();
            format!("{name}: {}", texts.join("; "))
        }
        (name, value) => format!("{name}: {value}"),
    };
    (!fields.is_empty()).then(|| fields.iter().map(line).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_by_status() {
        let judged = |status, body: &str, is_served| {
            let Verdict { is_good, text } =
                verdict(&Answer { status, body: body.as_bytes().to_vec() }, is_served);
            (is_good, text)
        };
        assert_eq!(judged(200, "{}", true), (true, "healthy".to_owned()));
        assert_eq!(
            judged(503, "{\"reason\":\"draining\"}", true),
            (false, "not healthy: draining".to_owned())
        );
        let (is_good, text) = judged(404, "", false);
        assert!(is_good && text.contains("health.enabled is false"), "{text}");
        assert!(!judged(404, "", true).0);
        assert!(!judged(502, "", true).0);
        let both = "{\"broker\":\"away\",\"errors\":[\"a\",\"b\"]}";
        assert_eq!(judged(200, both, true).1, "healthy; broker: away; errors: a; b");
    }
}
