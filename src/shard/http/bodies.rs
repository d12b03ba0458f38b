//! The room that bodies of requests take while they are on their way in.
//!
//! A body is kept from its first byte to its last, so whoever sends one and stops before its end holds memory.
//! Three kinds of senders have a room each, so that none of them can take that of another: the application, which
//! has shown its key by then; clients, who are strangers; and pages, whose bodies are small.
//!
//! [`Bodies`] owns this accounting: bytes are added and removed nowhere else.

use crate::base::image::{durable, durable_enum};
use crate::base::limits::{
    API_BODIES_BYTES_MAX, BODY_BYTES_PER_SECOND_MIN, BODY_GRACE_MS, CLIENT_BODIES_BYTES_MAX,
    PAGE_BODIES_BYTES_MAX, WEB_BODY_TIMEOUT_MS,
};
use crate::proto::http::BodyReader;

/// Whose a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// The server API's: its key was given.
    Api,
    /// A transport of clients, or their up-link.
    Clients,
    /// What else the control thread serves: forms and calls of the admin page.
    Pages,
}

durable_enum!(Room { Api = 0, Clients = 1, Pages = 2 });

impl Room {
    const COUNT: usize = 3;

    /// Bytes of unfinished bodies on one shard beyond which a body that isn't whole is refused.
    const fn bytes_max(self) -> usize {
        match self {
            Self::Api => API_BODIES_BYTES_MAX,
            Self::Clients => CLIENT_BODIES_BYTES_MAX,
            Self::Pages => PAGE_BODIES_BYTES_MAX,
        }
    }
}

/// Bytes of unfinished bodies on a shard, by room.
#[derive(Debug, Default)]
pub(crate) struct Bodies {
    bytes: [usize; Room::COUNT],
}

impl Bodies {
    /// Counts bytes of a body that isn't whole.
    pub(crate) fn add(&mut self, room: Room, bytes: usize) {
        self.bytes[room as usize] += bytes;
    }

    /// The same bytes are gone: the body is whole, or refused, or its connection has ended.
    pub(crate) fn remove(&mut self, room: Room, bytes: usize) {
        let held = &mut self.bytes[room as usize];
        debug_assert!(*held >= bytes, "more bytes removed from {room:?} than were added");
        *held = held.saturating_sub(bytes);
    }

    /// Whether a room holds more than it may.
    pub(crate) fn is_full(&self, room: Room) -> bool {
        self.bytes[room as usize] > room.bytes_max()
    }

    /// Bytes in all rooms.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.iter().sum()
    }
}

/// A request whose body is on its way in.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) head: Box<[u8]>,
    pub(crate) body: BodyReader,
    /// Which of the endpoints it is for; `None`: the control thread.
    pub(crate) endpoint: Option<usize>,
    /// Where its body is counted.
    pub(crate) room: Room,
}

durable!(Incoming { head, body, endpoint, room });

impl Incoming {
    /// Where its body is counted, and how much of it is.
    pub(crate) fn counted(&self) -> (Room, usize) {
        (self.room, self.body.len())
    }

    /// The request's head.
    pub(crate) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Which of the endpoints it is for.
    pub(crate) fn endpoint(&self) -> Option<usize> {
        self.endpoint
    }

    /// Head and body.
    pub(crate) fn into_parts(self) -> (Box<[u8]>, Vec<u8>) {
        (self.head, self.body.into_bytes())
    }

    /// Bytes of it that are here.
    pub(crate) fn bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// How long its body may take, milliseconds since the head.
    pub(crate) fn allowed_ms(&self) -> u64 {
        allowed_ms(self.body.len())
    }
}

/// How long the body of a request may take of which so many bytes are here, milliseconds since its head: a grace,
/// then as long as it comes at the least rate, and never longer than the most.
pub(crate) fn allowed_ms(bytes: usize) -> u64 {
    let at_least_rate = (bytes as u64).saturating_mul(1000) / BODY_BYTES_PER_SECOND_MIN;
    BODY_GRACE_MS.saturating_add(at_least_rate).min(WEB_BODY_TIMEOUT_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_room_leaves_the_others_alone() {
        let rooms = [Room::Api, Room::Clients, Room::Pages];
        for full in rooms {
            let mut bodies = Bodies::default();
            bodies.add(full, full.bytes_max());
            assert!(!bodies.is_full(full), "up to its bound it has room");
            bodies.add(full, 1);
            for room in rooms {
                assert_eq!(bodies.is_full(room), room == full);
            }
            bodies.remove(full, full.bytes_max() + 1);
            assert!(!bodies.is_full(full));
            assert_eq!(bodies.bytes(), 0);
        }
    }

    #[test]
    fn a_body_has_a_grace_and_a_least_rate() {
        assert_eq!(allowed_ms(0), BODY_GRACE_MS);
        // A byte now and then doesn't prolong it by more than the byte is worth.
        assert!(allowed_ms(10) < BODY_GRACE_MS + 20);
        let per_second = usize::try_from(BODY_BYTES_PER_SECOND_MIN).unwrap();
        assert_eq!(allowed_ms(per_second * 3), BODY_GRACE_MS + 3_000);
        assert_eq!(allowed_ms(usize::MAX), WEB_BODY_TIMEOUT_MS);
    }
}
