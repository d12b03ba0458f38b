//! Media types that a request states.

use super::head::Head;

/// Whether the client is an event source: it names `text/event-stream` in `Accept`, whatever else it takes.
pub fn takes_events(head: &Head<'_>) -> bool {
    head.list("accept").any(|range| {
        let kind = range.split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn event_sources() {
        for (accept, expected) in [
            ("text/event-stream", true),
            ("Text/Event-Stream; q=0.9", true),
            ("text/html, text/event-stream;q=0.1, */*", true),
            ("*/*", false),
            ("text/*", false),
            ("text/event-streams", false),
            ("", false),
        ] {
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n");
            let head = parse(request.as_bytes()).unwrap().unwrap();
            assert_eq!(takes_events(&head), expected, "{accept}");
        }
    }
}
