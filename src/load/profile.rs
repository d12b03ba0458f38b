//! Protocols that are texts over a WebSocket: what a server says while a connection opens, and what to say to it.
//!
//! ```text
//!  server: 0{"sid":..}   -> 40                          (the first step)
//!  server: 40{"sid":..}  -> 420["subscribe","load"]     (the second)
//!  server: 430[]         -> open
//!  server: 42["message",{"roost_load":..}]: a message of ours, wherever in the text its stamp stands
//! ```

use super::flags::Protocol;
use super::payload;
use super::speech::Said;

/// Texts that are kept for a step, at most.
const STEP_BYTES_MAX: usize = 4096;

/// See the module. `{channel}`, `{payload}` and `{bytes}` stand for themselves in the texts that are sent.
#[derive(Debug)]
pub(crate) struct Profile {
    /// A part of what the server says, and the answer; the connection is open behind the last one.
    steps: &'static [Step],
    /// The same of a connection that doesn't subscribe.
    steps_without: &'static [Step],
    /// A part of a ping (a text as short as one character: all of it), and the answer.
    ping: (&'static str, &'static str),
    /// What begins a text that ends the connection.
    errors: &'static [&'static str],
    publish: &'static str,
    /// A server takes messages of a channel only from its members.
    is_for_members: bool,
    /// Frames are binary.
    pub(crate) is_binary: bool,
}

type Step = (&'static str, &'static str);

const CONNECT_NATS: &str =
    "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"roost-load\",\"version\":\"1\"}\r\n";

static SOCKET_IO: Profile = Profile {
    steps: &[("0{", "40"), ("40", "420[\"subscribe\",\"{channel}\"]"), ("430", "")],
    steps_without: &[("0{", "40"), ("40", "")],
    ping: ("2", "3"),
    errors: &["1", "41", "44"],
    publish: "42[\"publish\",\"{channel}\",{payload}]",
    is_for_members: false,
    is_binary: false,
};

static PUSHER: Profile = Profile {
    steps: &[
        (
            "pusher:connection_established",
            "{\"event\":\"pusher:subscribe\",\"data\":{\"channel\":\"{channel}\"}}",
        ),
        ("pusher_internal:subscription_succeeded", ""),
    ],
    steps_without: &[("pusher:connection_established", "")],
    ping: ("\"pusher:ping\"", "{\"event\":\"pusher:pong\",\"data\":{}}"),
    errors: &["{\"event\":\"pusher:error\""],
    publish: "{\"event\":\"client-load\",\"channel\":\"{channel}\",\"data\":{payload}}",
    is_for_members: true,
    is_binary: false,
};

static NATS: Profile = Profile {
    steps: &[("INFO ", "{connect}SUB {channel} 1\r\nPING\r\n"), ("PONG\r\n", "")],
    steps_without: &[("INFO ", "{connect}PING\r\n"), ("PONG\r\n", "")],
    ping: ("PING\r\n", "PONG\r\n"),
    errors: &["-ERR"],
    publish: "PUB {channel} {bytes}\r\n{payload}\r\n",
    is_for_members: false,
    is_binary: true,
};

impl Profile {
    /// The profile of a protocol, if it is one of texts.
    pub(crate) fn of(protocol: Protocol) -> Option<&'static Self> {
        match protocol {
            Protocol::SocketIo => Some(&SOCKET_IO),
            Protocol::Pusher => Some(&PUSHER),
            Protocol::Nats => Some(&NATS),
            Protocol::Auto
            | Protocol::Centrifugo
            | Protocol::Raw
            | Protocol::Mercure
            | Protocol::Nchan => None,
        }
    }

    /// The answer to a text that came as step `at` of opening, and whether the connection is open then; nothing if
    /// it is not what the step waits for.
    pub(crate) fn step(&self, at: u8, text: &str, channel: Option<&str>) -> Option<(String, bool)> {
        let steps = if channel.is_some() { self.steps } else { self.steps_without };
        let (expected, answer) = steps.get(usize::from(at))?;
        let is_last = usize::from(at) + 1 == steps.len();
        let answer = answer.replace("{connect}", CONNECT_NATS);
        let answer = answer.replace("{channel}", channel.unwrap_or_default());
        text.contains(expected).then_some((answer, is_last))
    }

    /// The text by which a publisher becomes a member of its channel, if it has to be one.
    pub(crate) fn join(&self, channel: &str) -> Option<String> {
        let (_, subscribe) = self.steps[0];
        self.is_for_members.then(|| subscribe.replace("{channel}", channel))
    }

    /// Whether a text says that a publisher has become a member.
    pub(crate) fn has_joined(&self, text: &str) -> bool {
        self.is_for_members
            && self.steps.last().is_some_and(|(expected, _)| text.contains(expected))
    }

    /// The answer to a ping.
    pub(crate) fn pong(&self) -> &'static str {
        self.ping.1
    }

    /// Writes the text that publishes a payload.
    pub(crate) fn put_publish(&self, channel: &str, payload: &[u8], out: &mut Vec<u8>) {
        out.clear();
        let mut rest = self.publish;
        while let Some((before, after)) = rest.split_once('{') {
            out.extend_from_slice(before.as_bytes());
            let placed = [("channel}", channel.as_bytes()), ("payload}", payload)];
            if let Some((name, value)) = placed.iter().find(|(name, _)| after.starts_with(name)) {
                out.extend_from_slice(value);
                rest = &after[name.len()..];
            } else if let Some(after) = after.strip_prefix("bytes}") {
                out.extend_from_slice(payload.len().to_string().as_bytes());
                rest = after;
            } else {
                out.push(b'{');
                rest = after;
            }
        }
        out.extend_from_slice(rest.as_bytes());
    }

    /// Appends what a text meant.
    pub(crate) fn read(&self, text: &str, run: u32, said: &mut Vec<Said>) {
        let before = said.len();
        payload::read_all(text, run, |stamp| said.push(Said::Message(stamp, 0)));
        let ping = self.ping.0;
        if text.trim_end() == ping || ping.len() > 2 && text.contains(ping) {
            said.push(Said::Ping);
        }
        if said.len() > before {
            return;
        }
        said.push(match self.errors.iter().any(|error| text.starts_with(error)) {
            true => Said::Ended(text.trim_end().chars().take(200).collect::<String>().into()),
            false if text.len() <= STEP_BYTES_MAX => Said::Text(text.into()),
            false => Said::Other,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::payload::Stamp;
    use super::*;

    const STAMP: &str = r#"{"roost_load":7,"c":1,"s":2,"i":3,"a":4,"p":"xx"}"#;

    fn read(profile: &Profile, text: &str) -> Vec<Said> {
        let mut said = Vec::new();
        profile.read(text, 7, &mut said);
        said
    }

    fn message() -> Said {
        let stamp = Stamp { run: 7, channel: 1, sequence: 2, intended_ns: 3, actual_ns: 4 };
        Said::Message(stamp, 0)
    }

    /// Goes through the steps with what a server says; the answers.
    fn open(profile: &Profile, channel: Option<&str>, says: &[&str]) -> Vec<String> {
        let mut answers = Vec::new();
        for (at, text) in says.iter().enumerate() {
            assert_eq!(read(profile, text), [Said::Text((*text).into())]);
            assert_eq!(profile.step(at as u8, "something else", channel), None);
            let (answer, is_open) = profile.step(at as u8, text, channel).unwrap();
            assert_eq!(is_open, at + 1 == says.len());
            answers.push(answer);
        }
        answers
    }

    #[test]
    fn socket_io() {
        let says =
            [r#"0{"sid":"a","upgrades":[],"pingInterval":25000}"#, r#"40{"sid":"b"}"#, "430[]"];
        let answers = open(&SOCKET_IO, Some("c"), &says);
        assert_eq!(answers, ["40", r#"420["subscribe","c"]"#, ""]);
        assert_eq!(open(&SOCKET_IO, None, &says[..2]), ["40", ""]);
        assert_eq!(read(&SOCKET_IO, "2"), [Said::Ping]);
        assert_eq!(read(&SOCKET_IO, &format!("42[\"message\",{STAMP}]")), [message()]);
        assert!(matches!(read(&SOCKET_IO, "44{\"message\":\"no\"}")[..], [Said::Ended(_)]));
        let mut out = Vec::new();
        SOCKET_IO.put_publish("c", STAMP.as_bytes(), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("42[\"publish\",\"c\",{STAMP}]"));
    }

    #[test]
    fn pusher_has_data_as_text() {
        let says = [
            r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.2\"}"}"#,
            r#"{"event":"pusher_internal:subscription_succeeded","channel":"c","data":"{}"}"#,
        ];
        let answers = open(&PUSHER, Some("c"), &says);
        assert_eq!(answers[0], r#"{"event":"pusher:subscribe","data":{"channel":"c"}}"#);
        assert_eq!(PUSHER.join("c").as_ref(), Some(&answers[0]));
        assert_eq!((PUSHER.has_joined(says[0]), PUSHER.has_joined(says[1])), (false, true));
        let data = serde_json::to_string(STAMP).unwrap();
        let text = format!("{{\"event\":\"client-load\",\"channel\":\"c\",\"data\":{data}}}");
        assert_eq!(read(&PUSHER, &text), [message()]);
        let ping = r#"{"event":"pusher:ping","data":"{}"}"#;
        assert_eq!(read(&PUSHER, ping), [Said::Ping]);
    }

    #[test]
    fn nats_has_several_messages_in_a_frame() {
        let says = ["INFO {\"server_id\":\"x\"}\r\n", "PONG\r\n"];
        let answers = open(&NATS, Some("c"), &says);
        assert!(answers[0].starts_with("CONNECT {\"verbose\":false"), "{answers:?}");
        assert!(answers[0].ends_with("}\r\nSUB c 1\r\nPING\r\n"), "{answers:?}");
        let bytes = STAMP.len();
        let one = format!("MSG c 1 {bytes}\r\n{STAMP}\r\n");
        assert_eq!(read(&NATS, &format!("{one}{one}PING\r\n")), [message(), message(), Said::Ping]);
        let mut out = Vec::new();
        NATS.put_publish("c", STAMP.as_bytes(), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("PUB c {bytes}\r\n{STAMP}\r\n"));
        assert!(matches!(read(&NATS, "-ERR 'Unknown'\r\n")[..], [Said::Ended(_)]));
    }
}
