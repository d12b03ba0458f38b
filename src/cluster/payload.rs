//! The payload of a PUB/SUB message of a channel, and of a history entry.
//!
//! | form | meaning |
//! | --- | --- |
//! | bare `Publication` | no position |
//! | `__p1:OFFSET:EPOCH__` `Publication` | with a position |
//! | `__d1:OFFSET:EPOCH:LENGTH:PREVIOUS:LENGTH:PUBLICATION` | and with the one before it, for deltas |
//! | `__j__` `ClientInfo`, `__l__` `ClientInfo` | a client joined, left |
//!
//! A `Publication` never begins with `_`, so the first two bytes decide. Anybody who may publish on that
//! Redis writes these bytes, so each length is checked.

/// A payload, its Protobuf not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// A publication.
    Publication(Envelope<'a>),
    /// A client joined: its `ClientInfo`.
    Join(&'a [u8]),
    /// A client left: its `ClientInfo`.
    Leave(&'a [u8]),
}

/// A publication with its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Offset and epoch; `None` for a channel without history.
    pub position: Option<(u64, &'a str)>,
    /// The `Publication` before it, empty for none; `None` where no delta is wanted.
    pub previous: Option<&'a [u8]>,
    /// The `Publication`.
    pub publication: &'a [u8],
}

/// Bytes that are no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// `__`, and a letter of no form.
    #[error("an unknown form")]
    Form,
    /// No end of the header, or no epoch in it.
    #[error("a header without end")]
    Header,
    /// An offset or a length that is no number.
    #[error("a number that is none")]
    Number,
    /// A length that runs past the end, or stops before it.
    #[error("a length that does not fit")]
    Length,
    /// An epoch that isn't UTF-8.
    #[error("an epoch that is no text")]
    Epoch,
}

const MARK: &[u8] = b"__";
const JOIN: &[u8] = b"__j__";
const LEAVE: &[u8] = b"__l__";

impl<'a> Payload<'a> {
    /// Reads a payload.
    ///
    /// # Errors
    /// It has none of the forms.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Some(rest) = bytes.strip_prefix(MARK) else {
            return Ok(Self::Publication(Envelope {
                position: None,
                previous: None,
                publication: bytes,
            }));
        };
        match rest.first() {
            Some(b'p') => Envelope::positioned(rest).map(Self::Publication),
            Some(b'd') => Envelope::with_previous(rest).map(Self::Publication),
            Some(b'j') => bytes.strip_prefix(JOIN).map(Self::Join).ok_or(Malformed::Header),
            Some(b'l') => bytes.strip_prefix(LEAVE).map(Self::Leave).ok_or(Malformed::Header),
            _ => Err(Malformed::Form),
        }
    }

    /// Appends the payload. The epoch of a position must contain no `__`, and of one with a previous
    /// publication no `:`; such an epoch can't be told from the rest.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Join(info) => out.extend([JOIN, info].concat()),
            Self::Leave(info) => out.extend([LEAVE, info].concat()),
            Self::Publication(envelope) => envelope.put(out),
        }
    }
}

impl<'a> Envelope<'a> {
    /// `p1:OFFSET:EPOCH__...`. The digit is a version; each is read alike.
    fn positioned(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let rest = versioned(bytes)?;
        let end = rest.windows(2).position(|two| two == MARK).ok_or(Malformed::Header)?;
        let (header, publication) = (&rest[..end], &rest[end + MARK.len()..]);
        let (offset, epoch) = split(header)?;
        let position = Some((number(offset)?, text(epoch)?));
        Ok(Self { position, previous: None, publication })
    }

    /// `d1:OFFSET:EPOCH:LENGTH:PREVIOUS:LENGTH:PUBLICATION`.
    fn with_previous(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (offset, rest) = split(versioned(bytes)?)?;
        let (epoch, rest) = split(rest)?;
        let position = Some((number(offset)?, text(epoch)?));
        let (previous, rest) = measured(rest)?;
        let rest = rest.strip_prefix(b":").ok_or(Malformed::Length)?;
        let (publication, rest) = measured(rest)?;
        if !rest.is_empty() {
            return Err(Malformed::Length);
        }
        let previous = Some(without_header(previous)?);
        Ok(Self { position, previous, publication })
    }

    fn put(&self, out: &mut Vec<u8>) {
        let Self { position, previous, publication } = *self;
        match (position, previous) {
            (None, _) => out.extend_from_slice(publication),
            (Some((offset, epoch)), None) => {
                out.extend_from_slice(format!("__p1:{offset}:{epoch}__").as_bytes());
                out.extend_from_slice(publication);
            }
            (Some((offset, epoch)), Some(previous)) => {
                let length = previous.len();
                out.extend_from_slice(format!("__d1:{offset}:{epoch}:{length}:").as_bytes());
                out.extend_from_slice(previous);
                out.extend_from_slice(format!(":{}:", publication.len()).as_bytes());
                out.extend_from_slice(publication);
            }
        }
    }
}

/// A previous publication that comes from a list has its header still: without it the delta would be one
/// to bytes that no client has.
fn without_header(previous: &[u8]) -> Result<&[u8], Malformed> {
    if !previous.starts_with(MARK) {
        return Ok(previous);
    }
    match Payload::parse(previous)? {
        Payload::Publication(Envelope { previous: None, publication, .. })
            if !publication.starts_with(MARK) =>
        {
            Ok(publication)
        }
        _ => Err(Malformed::Form),
    }
}

/// The bytes behind a letter, a version and a colon.
fn versioned(bytes: &[u8]) -> Result<&[u8], Malformed> {
    match bytes {
        [_, version, b':', rest @ ..] if version.is_ascii_digit() => Ok(rest),
        _ => Err(Malformed::Header),
    }
}

/// The bytes before and behind the first colon.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let at = bytes.iter().position(|byte| *byte == b':').ok_or(Malformed::Header)?;
    Ok((&bytes[..at], &bytes[at + 1..]))
}

/// `LENGTH:BYTES`, and what stands behind.
fn measured(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (length, rest) = split(bytes)?;
    let length = usize::try_from(number(length)?).map_err(|_| Malformed::Length)?;
    rest.split_at_checked(length).ok_or(Malformed::Length)
}

/// A decimal number: digits alone, no sign.
fn number(digits: &[u8]) -> Result<u64, Malformed> {
    if digits.is_empty() {
        return Err(Malformed::Number);
    }
    digits.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9).ok_or(Malformed::Number)?;
        let value = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit)));
        value.ok_or(Malformed::Number)
    })
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed::Epoch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(pair).collect()
    }

    #[test]
    fn payloads_are_read_as_in_the_vectors() {
        let lines = include_str!("../../tests/vectors/redis/payload-vectors.jsonl").lines();
        let (mut read, mut refused) = (0, 0);
        for line in lines {
            let vector: Value = serde_json::from_str(line).unwrap();
            let hex = |name: &str| unhex(vector[name].as_str().unwrap_or_default());
            let input = hex("input_hex");
            let parsed = Payload::parse(&input);
            if vector["ok"] != true {
                // Malformed, or one that made the original crash.
                assert!(parsed.is_err(), "{line}");
                refused += 1;
                continue;
            }
            let parsed = parsed.unwrap_or_else(|error| panic!("{error}: {line}"));
            let content = hex("payload_hex");
            match (vector["type"].as_str().unwrap(), parsed) {
                ("join", Payload::Join(info)) | ("leave", Payload::Leave(info)) => {
                    assert_eq!(info, content, "{line}");
                }
                ("publication", Payload::Publication(envelope)) => {
                    let (offset, epoch) = envelope.position.unwrap_or_default();
                    assert_eq!(offset.to_string(), vector["offset"], "{line}");
                    assert_eq!(epoch, vector["epoch"], "{line}");
                    assert_eq!(envelope.publication, content, "{line}");
                    assert_eq!(envelope.previous.is_some(), vector["delta"] == true, "{line}");
                    assert_eq!(envelope.previous.unwrap_or_default(), hex("prev_hex"), "{line}");
                }
                (kind, other) => panic!("{kind} is read as {other:?}"),
            }
            let mut again = Vec::new();
            parsed.put(&mut again);
            // Another version is read, and never written.
            if !input.starts_with(b"__p2") {
                assert_eq!(again, input, "{line}");
            }
            read += 1;
        }
        assert_eq!((read, refused), (12, 8));
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        for bytes in [
            "__d1:7:ep:3:abc",
            "__d1:7:ep:0:",
            "__d1:7:ep:-1:abc:1:x",
            "__d1:7:ep:0::-1:x",
            "__d1:7:ep:0::2:x",
            "__d1:7:ep:0::1:xy",
            "__d1:7:ep:18446744073709551615:a:1:b",
            "__d1:7:ep:18446744073709551616:a:1:b",
            "__d1:7",
            "__p1:18446744073709551616:e__",
            "__p1:+5:e__",
            "__p1:5:e_",
            "__j_",
            "__l",
        ] {
            assert!(Payload::parse(bytes.as_bytes()).is_err(), "{bytes}");
        }
    }

    #[test]
    fn the_header_of_a_previous_publication_is_dropped() {
        let payload = b"__d1:7:ep:12:__p1:6:ep__x:1:y";
        let parsed = Payload::parse(payload).unwrap();
        let Payload::Publication(envelope) = parsed else { panic!("{parsed:?}") };
        assert_eq!(envelope.previous, Some(&b"x"[..]));
        assert_eq!(envelope.publication, b"y");
    }

    fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..max)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            offset in any::<u64>(),
            epoch in "[a-zA-Z0-9]{0,12}",
            previous in proptest::option::of(bytes(60)),
            publication in bytes(60),
            kind in 0_u8..4,
        ) {
            prop_assume!(!publication.starts_with(MARK));
            prop_assume!(!previous.as_ref().is_some_and(|previous| previous.starts_with(MARK)));
            let position = (kind == 0).then_some((offset, epoch.as_str()));
            let payload = match kind {
                0 | 1 => Payload::Publication(Envelope {
                    position,
                    previous: previous.as_deref().filter(|_| kind == 0),
                    publication: &publication,
                }),
                2 => Payload::Join(&publication),
                _ => Payload::Leave(&publication),
            };
            let mut out = Vec::new();
            payload.put(&mut out);
            prop_assert_eq!(Payload::parse(&out), Ok(payload));
        }

        #[test]
        fn no_bytes_make_it_panic(
            head in "__[pdjlx]?[0-9]?:?[0-9]{0,20}:?[a-z]{0,3}:?[0-9]{0,2}:?",
            tail in bytes(40),
        ) {
            let _ = Payload::parse(&[head.as_bytes(), &tail].concat());
            let _ = Payload::parse(&tail);
        }
    }
}
