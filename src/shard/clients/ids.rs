//! Ids of clients that publish.
//!
//! An id is computed from the connection's key, so that a connection doesn't store it; sealing one takes four
//! HMACs ([`ClientIdSealer`]), more than the rest of a client's publish. A client that publishes does so again,
//! and most clients never do: the last few ids are remembered here, and no connection pays for them.

use crate::base::id::{ConnKey, ShardId};
use crate::edge::client_id::{ClientId, ClientIdSealer};

/// The ids of the clients that published last: at each place the last one of the slots that share it.
#[derive(Default)]
pub(crate) struct SealedIds {
    /// Empty until the first one.
    places: Vec<Option<(ConnKey, ClientId)>>,
}

impl SealedIds {
    /// The id of a client.
    pub(crate) fn get(&mut self, ids: &ClientIdSealer, shard: ShardId, key: ConnKey) -> ClientId {
        if self.places.is_empty() {
            self.places.resize(PLACES, None);
        }
        match &mut self.places[key.index as usize % PLACES] {
            Some((of, id)) if *of == key => *id,
            place => place.insert((key, ids.seal(shard, key))).1,
        }
    }
}

/// Places: 6 KiB a shard.
const PLACES: usize = 256;

const _: () = assert!(size_of::<Option<(ConnKey, ClientId)>>() == 24);

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn a_remembered_id_is_that_of_the_tenant_of_the_slot() {
        let (sealer, mut ids) = (ClientIdSealer::new(&[7; 32]), SealedIds::default());
        let generation = NonZeroU32::MIN;
        let key = |index| ConnKey { index, generation };
        let next = ConnKey { index: 3, generation: generation.saturating_add(1) };
        // The second time it is remembered; another slot of its place and another tenant push it out.
        for key in [key(3), key(3), key(3 + PLACES as u32), key(3), next, key(3), key(4), key(3)] {
            assert_eq!(ids.get(&sealer, ShardId(1), key), sealer.seal(ShardId(1), key));
        }
        assert_eq!(ids.places.iter().flatten().count(), 2);
    }
}
