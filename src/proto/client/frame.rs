//! Frames of commands: which bytes are one command, and what is wrong with those that are none.

use super::command::Command;
use super::malformed::Malformed;
use super::{json, protobuf};

/// The commands of one text frame, in order: JSON joined by `\n`, one more `\n` at the end allowed
/// (protocol, section 2.1).
///
/// Commands are parsed one by one, so those before a malformed one come first.
pub fn commands(text: &str) -> Commands<'_> {
    Commands { frame: Frame::Text(text), consumed: 0, ended: false }
}

/// The commands of one binary frame, in order: Protobuf, each with its length in front (protocol,
/// section 2.2). Else as [`commands`].
pub fn binary_commands(frame: &[u8]) -> Commands<'_> {
    Commands { frame: Frame::Binary(frame), consumed: 0, ended: false }
}

/// Iterator over the commands of a frame; see [`commands`] and [`binary_commands`]. Ends after the
/// first error.
#[derive(Clone, Debug)]
pub struct Commands<'a> {
    frame: Frame<'a>,
    /// `consumed <= frame.len()`, and always at the start, at the end, or between two commands:
    /// behind a line feed, before a length.
    consumed: usize,
    ended: bool,
}

#[derive(Clone, Copy, Debug)]
enum Frame<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

impl<'a> Commands<'a> {
    /// Bytes of the frame that the commands so far took, with the line feed behind or the length in
    /// front of each.
    ///
    /// To pause, keep `&frame[consumed..]` unless [`is_done`](Self::is_done), and give it to the
    /// function that made this iterator: the rest yields what would have followed here.
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// The bytes of the last command, which began where `from` were consumed: what the function that made
    /// this iterator takes for that command alone.
    pub fn bytes_from(&self, from: usize) -> &'a [u8] {
        match self.frame {
            Frame::Text(text) => {
                let line = &text.as_bytes()[from..self.consumed];
                line.strip_suffix(b"\n").unwrap_or(line)
            }
            Frame::Binary(frame) => &frame[from..self.consumed],
        }
    }

    /// True when nothing more will come.
    pub fn is_done(&self) -> bool {
        self.ended
    }

    fn next_line(&mut self, text: &'a str) -> Result<Command<'a>, Malformed> {
        let rest = &text[self.consumed..];
        let line = match rest.as_bytes().iter().position(|&byte| byte == b'\n') {
            Some(at) => {
                self.consumed += at + 1;
                &rest[..at]
            }
            None => {
                self.consumed = text.len();
                rest
            }
        };
        json::parse(line)
    }

    fn next_message(&mut self, frame: &'a [u8]) -> Result<Command<'a>, Malformed> {
        let (message, rest) = protobuf::split(&frame[self.consumed..])?;
        self.consumed = frame.len() - rest.len();
        protobuf::parse(message)
    }
}

impl<'a> Iterator for Commands<'a> {
    type Item = Result<Command<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let (command, bytes) = match self.frame {
            Frame::Text(text) => (self.next_line(text), text.len()),
            Frame::Binary(frame) => (self.next_message(frame), frame.len()),
        };
        self.ended = self.consumed == bytes || command.is_err();
        Some(command)
    }
}
