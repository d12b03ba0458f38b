//! Packed forms: what can be unpacked packs to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::base::info::ClientInfo;
use roost::base::tags::Tags;

fuzz_target!(|bytes: &[u8]| {
    if let Some(info) = ClientInfo::unpack(bytes) {
        assert_eq!(*info.pack(), *bytes);
    }
    let tags = Tags::packed(bytes);
    let packed = Tags::pack(tags.iter());
    // Bytes behind the last whole tag are left out.
    assert!(bytes.starts_with(&packed));
    // Each look goes through all of them.
    for (name, _) in tags.iter().take(8) {
        assert!(tags.get(name).is_some());
        assert_eq!(tags.get(name), Tags::packed(&packed).get(name));
    }
});
