//! The client behind a publication, a join or a presence entry, packed into bytes of no encoding.

use super::uuid;

/// The part of a client that others in a channel see (client protocol, 9.2: ClientInfo).
///
/// The payloads are opaque; a JSON connection can only be shown ones that are JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientInfo<'a> {
    /// User id, empty for an anonymous one.
    pub user: &'a str,
    /// Client id.
    pub client: &'a str,
    /// From the connection's token; empty is none.
    pub conn_info: &'a [u8],
    /// From the subscription; empty is none.
    pub chan_info: &'a [u8],
    /// When the client subscribed, in seconds since 1970; 0 where the namespace keeps no times.
    pub subscribed_at: u32,
}

/// Bytes of the three lengths that stand first; what is left is `chan_info`.
const HEAD_BYTES: usize = 12;

/// In the first length: a time of 4 bytes follows the lengths. Clients without one don't pay for it.
const HAS_TIME: u32 = 1 << 31;

impl<'a> ClientInfo<'a> {
    /// The packed form: three lengths of 4 bytes, the time if there is one, then user, client, `conn_info`,
    /// `chan_info`.
    pub fn pack(&self) -> Box<[u8]> {
        let parts = [self.user.as_bytes(), self.client.as_bytes(), self.conn_info, self.chan_info];
        let time = self.subscribed_at.to_le_bytes();
        let time = if self.subscribed_at == 0 { &time[..0] } else { &time[..] };
        let bytes = HEAD_BYTES + time.len() + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut packed = Vec::with_capacity(bytes);
        let mut mark = if time.is_empty() { 0 } else { HAS_TIME };
        for part in &parts[..3] {
            // Each came in one message, whose length has a bound far below 2 GiB.
            packed.extend_from_slice(&(part.len() as u32 | mark).to_le_bytes());
            mark = 0;
        }
        packed.extend_from_slice(time);
        parts.iter().for_each(|part| packed.extend_from_slice(part));
        packed.into_boxed_slice()
    }

    /// The packed value; `None` for any other bytes, and for none.
    pub fn unpack(packed: &'a [u8]) -> Option<Self> {
        let (head, mut rest) = packed.split_at_checked(HEAD_BYTES)?;
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_le_bytes);
        let has_time = number(&head[..4])? & HAS_TIME != 0;
        let mut subscribed_at = 0;
        if has_time {
            let (time, behind) = rest.split_at_checked(4)?;
            (subscribed_at, rest) = (number(time)?, behind);
            if subscribed_at == 0 {
                return None;
            }
        }
        let mut part = |at: usize| {
            let len = number(&head[at * 4..][..4])?;
            let len = if at == 0 { len & !HAS_TIME } else { len };
            let (part, behind) = rest.split_at_checked(len as usize)?;
            rest = behind;
            Some(part)
        };
        let (user, client, conn_info) = (part(0)?, part(1)?, part(2)?);
        Some(Self {
            user: std::str::from_utf8(user).ok()?,
            client: std::str::from_utf8(client).ok()?,
            conn_info,
            chan_info: rest,
            subscribed_at,
        })
    }
}

/// Of a short form: a time of 4 bytes follows the two lengths.
const SHORT_HAS_TIME: u8 = 1 << 7;

/// Bytes of the client id in a short form, which follows lengths and time.
const SHORT_CLIENT_BYTES: usize = 16;

/// The short form of a packed client, for a home that keeps many: the lengths of user and `conn_info` in a
/// byte each, the time if there is one, the client id as bytes, then user, `conn_info`, `chan_info`. `None`
/// where that doesn't say everything: the client id is no UUID, or a part is too long.
pub fn shorten(packed: &[u8]) -> Option<Vec<u8>> {
    let info = ClientInfo::unpack(packed)?;
    let client = uuid::from_text(info.client.as_bytes())?;
    let user_bytes = u8::try_from(info.user.len()).ok().filter(|len| len & SHORT_HAS_TIME == 0)?;
    let info_bytes = u8::try_from(info.conn_info.len()).ok()?;
    let time = info.subscribed_at.to_le_bytes();
    let (mark, time) =
        if info.subscribed_at == 0 { (0, &time[..0]) } else { (SHORT_HAS_TIME, &time[..]) };
    let head = [user_bytes | mark, info_bytes];
    Some([&head, time, &client, info.user.as_bytes(), info.conn_info, info.chan_info].concat())
}

/// The parts of a short form: the client id, and everything else.
fn short_parts(short: &[u8]) -> Option<([u8; SHORT_CLIENT_BYTES], ClientInfo<'_>)> {
    let ([user_bytes, info_bytes], rest) = short.split_first_chunk()?;
    let (subscribed_at, rest) = match user_bytes & SHORT_HAS_TIME {
        0 => (0, rest),
        _ => rest.split_first_chunk().map(|(time, rest)| (u32::from_le_bytes(*time), rest))?,
    };
    let (client, rest) = rest.split_first_chunk()?;
    let (user, rest) = rest.split_at_checked(usize::from(user_bytes & !SHORT_HAS_TIME))?;
    let (conn_info, chan_info) = rest.split_at_checked(usize::from(*info_bytes))?;
    let user = std::str::from_utf8(user).ok()?;
    Some((*client, ClientInfo { user, client: "", conn_info, chan_info, subscribed_at }))
}

/// The user of a short form.
pub fn short_user(short: &[u8]) -> &str {
    short_parts(short).map_or("", |(_, info)| info.user)
}

/// The packed form of a short one.
pub fn lengthen(short: &[u8]) -> Box<[u8]> {
    let Some((client, info)) = short_parts(short) else { return Box::default() };
    let client = uuid::to_text(client);
    let client = std::str::from_utf8(&client).unwrap_or_default();
    ClientInfo { client, ..info }.pack()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_comes_back(
            user in ".{0,20}",
            client in "[0-9a-f-]{0,36}",
            conn_info in proptest::collection::vec(any::<u8>(), 0..40),
            chan_info in proptest::collection::vec(any::<u8>(), 0..40),
            subscribed_at in prop_oneof![Just(0), any::<u32>()],
        ) {
            let info = ClientInfo {
                user: &user, client: &client, conn_info: &conn_info, chan_info: &chan_info,
                subscribed_at,
            };
            let packed = info.pack();
            let time_bytes = if subscribed_at == 0 { 0 } else { 4 };
            let parts = user.len() + client.len() + conn_info.len() + chan_info.len();
            prop_assert_eq!(packed.len(), HEAD_BYTES + time_bytes + parts);
            prop_assert_eq!(ClientInfo::unpack(&packed), Some(info));
        }

        #[test]
        fn a_short_form_says_the_same(
            user in ".{0,50}",
            client: [u8; 16],
            conn_info in proptest::collection::vec(any::<u8>(), 0..300),
            chan_info in proptest::collection::vec(any::<u8>(), 0..300),
            subscribed_at in prop_oneof![Just(0), any::<u32>()],
        ) {
            let client = uuid::to_text(client);
            let client = std::str::from_utf8(&client).unwrap();
            let info = ClientInfo {
                user: &user, client, conn_info: &conn_info, chan_info: &chan_info, subscribed_at,
            };
            let packed = info.pack();
            let fits = user.len() < 128 && conn_info.len() < 256;
            let short = shorten(&packed);
            prop_assert_eq!(short.is_some(), fits);
            if let Some(short) = short {
                prop_assert_eq!(short.len() + 30, packed.len());
                prop_assert_eq!(short_user(&short), user);
                prop_assert_eq!(lengthen(&short), packed);
            }
        }

        #[test]
        fn no_bytes_make_a_short_form_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let packed = lengthen(&bytes);
            prop_assert_eq!(short_user(&bytes), ClientInfo::unpack(&packed).map_or("", |i| i.user));
            if let Some(short) = shorten(&packed) {
                prop_assert_eq!(lengthen(&short), packed);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Some(info) = ClientInfo::unpack(&bytes) {
                prop_assert_eq!(&*info.pack(), &*bytes);
            }
        }
    }

    #[test]
    fn a_mark_without_a_time_or_at_another_part_is_none() {
        let mut packed = vec![0; HEAD_BYTES + 4];
        packed[3] = 0x80;
        assert_eq!(ClientInfo::unpack(&packed), None);
        packed[HEAD_BYTES] = 1;
        assert!(ClientInfo::unpack(&packed).is_some_and(|info| info.subscribed_at == 1));
        packed[7] = 0x80;
        assert_eq!(ClientInfo::unpack(&packed), None);
    }

    #[test]
    fn nothing_is_nobody() {
        assert_eq!(ClientInfo::unpack(b""), None);
    }
}
