//! The framing of the messages of a connection: WebSocket frames, chunks of a response, events.
//!
//! ```text
//!   WebSocket   header | message \n message ...
//!   Stream      length \r\n | message \n message \n ... | \r\n
//!   Events      length \r\n | data: message \n\n data: message \n\n ... | \r\n
//!   Poll        publication , publication ...      (parts of an answer)
//! ```
//! In Protobuf messages carry their lengths, and nothing stands between them. One batch is one chunk, and
//! holds whole messages (client protocol, 5). Messages in JSON have no line ends in them.

use super::ws;
use crate::base::form::{Form, Framing};
use crate::base::frame::SharedFrame;
use crate::base::limits::FRAME_MESSAGES_MAX;

/// Appends one message in a frame of its own. Where messages are deflated that is a plain one.
pub fn put(out: &mut Vec<u8>, form: Form, message: &[u8]) {
    open(out, form, message.len());
    out.extend_from_slice(message);
    close(out, form);
}

/// Appends what stands before a message of `len` bytes that is alone in its frame.
pub fn open(out: &mut Vec<u8>, form: Form, len: usize) {
    let framing = form.framing();
    match framing {
        Framing::Stream | Framing::Events => {
            put_length(out, before(form).len() + len + behind(form).len());
            out.extend_from_slice(before(form));
        }
        Framing::BareStream | Framing::BareEvents | Framing::Poll => {
            out.extend_from_slice(before(form));
        }
        _ => ws::put_header(out, opcode(form), len),
    }
}

/// Appends what stands behind it.
pub fn close(out: &mut Vec<u8>, form: Form) {
    out.extend_from_slice(behind(form));
    if is_chunked(form) {
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether messages may share a frame.
pub fn shares(form: Form) -> bool {
    use Framing::{BareEvents, BareStream, Events, Poll, Stream, WebSocket};
    matches!(form.framing(), WebSocket | Stream | Events | BareStream | BareEvents | Poll)
}

/// Appends a frame with the messages of another one, where they [share](shares), and one more.
pub fn extend(out: &mut Vec<u8>, form: Form, frame: &[u8], message: &[u8]) {
    let known = content(form, frame);
    let bytes = known.len() + between(form).len() + before(form).len() + message.len();
    put_start(out, form, bytes + behind(form).len());
    for part in [known, between(form), before(form), message] {
        out.extend_from_slice(part);
    }
    close(out, form);
}

/// Appends the messages of frames in as few as may be: up to [`FRAME_MESSAGES_MAX`] of these in one.
pub fn join(form: Form, frames: &[&SharedFrame], out: &mut Vec<u8>) {
    if !shares(form) {
        return frames.iter().for_each(|frame| out.extend_from_slice(frame.bytes()));
    }
    let between = between(form);
    // One list, however many they are.
    let most = if form.is_poll() { usize::MAX } else { usize::from(FRAME_MESSAGES_MAX) };
    for frames in frames.chunks(most) {
        let contents = frames.iter().map(|frame| content(form, frame.bytes()));
        let bytes = contents.clone().map(<[u8]>::len).sum::<usize>();
        put_start(out, form, bytes + between.len() * (frames.len() - 1));
        for (at, content) in contents.enumerate() {
            if at > 0 {
                out.extend_from_slice(between);
            }
            out.extend_from_slice(content);
        }
        if is_chunked(form) {
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Appends bytes that are no message, to a response.
pub fn put_raw(out: &mut Vec<u8>, form: Form, bytes: &[u8]) {
    put_start(out, form, bytes.len());
    out.extend_from_slice(bytes);
    if is_chunked(form) {
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends the end of a response; there is none where the end of the connection is it.
pub fn end(out: &mut Vec<u8>, form: Form) {
    if is_chunked(form) {
        out.extend_from_slice(b"0\r\n\r\n");
    }
}

/// The opcode of frames that hold an encoding.
pub fn opcode(form: Form) -> ws::OpCode {
    if form.is_protobuf() { ws::BINARY } else { ws::TEXT }
}

fn is_chunked(form: Form) -> bool {
    matches!(form.framing(), Framing::Stream | Framing::Events)
}

/// The beginning of a frame whose content, with the framing of each message, has so many bytes.
fn put_start(out: &mut Vec<u8>, form: Form, bytes: usize) {
    match form.framing() {
        Framing::Stream | Framing::Events => put_length(out, bytes),
        Framing::BareStream | Framing::BareEvents | Framing::Poll => {}
        _ => ws::put_header(out, opcode(form), bytes),
    }
}

/// The content of a frame, with the framing of each message.
fn content(form: Form, frame: &[u8]) -> &[u8] {
    match form.framing() {
        Framing::Stream | Framing::Events => {
            let start = frame.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            &frame[start..frame.len() - b"\r\n".len()]
        }
        Framing::BareStream | Framing::BareEvents | Framing::Poll => frame,
        _ => ws::payload(frame),
    }
}

/// The beginning of each message.
fn before(form: Form) -> &'static [u8] {
    if form.framing().is_events() { b"data: " } else { b"" }
}

/// The end of each message.
fn behind(form: Form) -> &'static [u8] {
    match form.framing() {
        Framing::Events | Framing::BareEvents => b"\n\n",
        Framing::Stream | Framing::BareStream if !form.is_protobuf() => b"\n",
        _ => b"",
    }
}

/// The separator between two of them.
fn between(form: Form) -> &'static [u8] {
    match form.framing() {
        Framing::Poll => b",",
        framing if framing.is_websocket() && !form.is_protobuf() => b"\n",
        _ => b"",
    }
}

/// The line that begins a chunk (RFC 9112 7.1).
fn put_length(out: &mut Vec<u8>, bytes: usize) {
    use std::io::Write as _;
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{bytes:x}\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_one(form: Form, message: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, form, message.as_bytes());
        out
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    #[test]
    fn frames() {
        let table = [
            (Form::JSON, "\u{81}\u{2}{}"),
            (Form::new(Framing::Stream, false), "3\r\n{}\n\r\n"),
            (Form::new(Framing::Stream, true), "2\r\n{}\r\n"),
            (Form::new(Framing::Events, false), "a\r\ndata: {}\n\n\r\n"),
            (Form::new(Framing::BareStream, false), "{}\n"),
            (Form::new(Framing::BareEvents, false), "data: {}\n\n"),
            (Form::one_way(Framing::Events), "a\r\ndata: {}\n\n\r\n"),
        ];
        for (form, expected) in table {
            let bytes: Vec<u8> = expected.chars().map(|c| c as u8).collect();
            assert_eq!(put_one(form, "{}"), bytes, "{form:?}");
        }
        let long = "x".repeat(300);
        let form = Form::new(Framing::Events, false);
        assert_eq!(text(&put_one(form, &long)), format!("134\r\ndata: {long}\n\n\r\n"));
    }

    #[test]
    fn joined_frames_equal_one_frame_of_all_messages() {
        for framing in Framing::ALL {
            for form in
                [Form::new(framing, false), Form::new(framing, true), Form::one_way(framing)]
            {
                let messages: Vec<_> = (0..20).map(|n| format!("m{n}")).collect();
                let frames: Vec<_> =
                    messages.iter().map(|m| SharedFrame::new(&put_one(form, m))).collect();
                let mut joined = Vec::new();
                join(form, &frames.iter().collect::<Vec<_>>(), &mut joined);
                let mut expected = Vec::new();
                let most = match form {
                    _ if form.is_poll() => messages.len(),
                    _ if shares(form) => 16,
                    _ => 1,
                };
                for messages in messages.chunks(most) {
                    let mut frame = put_one(form, &messages[0]);
                    for message in &messages[1..] {
                        let mut longer = Vec::new();
                        extend(&mut longer, form, &frame, message.as_bytes());
                        frame = longer;
                    }
                    expected.extend(frame);
                }
                assert_eq!(text(&joined), text(&expected), "{form:?}");
            }
        }
    }

    #[test]
    fn a_list_has_a_comma_between_all() {
        let frames: Vec<_> = (0..20).map(|n| SharedFrame::new(n.to_string().as_bytes())).collect();
        let mut joined = Vec::new();
        let form = Form::one_way(Framing::Poll);
        join(form, &frames.iter().collect::<Vec<_>>(), &mut joined);
        let list: Vec<u32> = serde_json::from_str(&format!("[{}]", text(&joined))).unwrap();
        assert!(list.into_iter().eq(0..20));
    }

    #[test]
    fn batches_are_as_the_protocol_has_them() {
        let two = |form| {
            let mut out = Vec::new();
            extend(&mut out, form, &put_one(form, "a"), b"bc");
            text(&out)
        };
        assert_eq!(two(Form::new(Framing::Stream, false)), "5\r\na\nbc\n\r\n");
        assert_eq!(two(Form::new(Framing::Stream, true)), "3\r\nabc\r\n");
        assert_eq!(two(Form::new(Framing::Events, false)), "13\r\ndata: a\n\ndata: bc\n\n\r\n");
        assert_eq!(two(Form::new(Framing::BareStream, false)), "a\nbc\n");
        let mut ws = Vec::new();
        ws::put_frame(&mut ws, ws::TEXT, b"a\nbc");
        assert_eq!(two(Form::JSON), text(&ws));
    }

    #[test]
    fn only_chunked_responses_have_an_end() {
        for (framing, expected) in
            [(Framing::Stream, "0\r\n\r\n"), (Framing::BareEvents, ""), (Framing::WebSocket, "")]
        {
            let mut out = Vec::new();
            end(&mut out, Form::new(framing, false));
            assert_eq!(text(&out), expected);
        }
    }
}
