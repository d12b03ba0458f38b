//! The client behind a publication, a join or a presence entry, packed into bytes of no encoding.

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
}

/// Bytes of the three lengths that stand first; what is left is `chan_info`.
const HEAD_BYTES: usize = 12;

impl<'a> ClientInfo<'a> {
    /// The packed form: three lengths of 4 bytes, then user, client, `conn_info`, `chan_info`.
    pub fn pack(&self) -> Box<[u8]> {
        let parts = [self.user.as_bytes(), self.client.as_bytes(), self.conn_info, self.chan_info];
        let bytes = HEAD_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut packed = Vec::with_capacity(bytes);
        for part in &parts[..3] {
            // Each came in one message, whose length has a bound far below 4 GiB.
            packed.extend_from_slice(&(part.len() as u32).to_le_bytes());
        }
        parts.iter().for_each(|part| packed.extend_from_slice(part));
        packed.into_boxed_slice()
    }

    /// The packed value; `None` for any other bytes, and for none.
    pub fn unpack(packed: &'a [u8]) -> Option<Self> {
        let (head, mut rest) = packed.split_at_checked(HEAD_BYTES)?;
        let mut part = |at: usize| {
            let len = u32::from_le_bytes(head[at * 4..][..4].try_into().ok()?);
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
        })
    }
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
        ) {
            let info = ClientInfo {
                user: &user, client: &client, conn_info: &conn_info, chan_info: &chan_info,
            };
            let packed = info.pack();
            prop_assert_eq!(ClientInfo::unpack(&packed), Some(info));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = ClientInfo::unpack(&bytes);
        }
    }

    #[test]
    fn nothing_is_nobody() {
        assert_eq!(ClientInfo::unpack(b""), None);
    }
}
