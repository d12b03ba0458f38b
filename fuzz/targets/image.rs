//! Images of a node: any records are read or refused, and nothing panics or takes much memory.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use roost::base::image::{Durable, ImageReader, seal};
use roost::base::time::Millis;
use roost::hub::filter::{Filter, FiltersReader};
use roost::hub::history::{Position, Stream};
use roost::hub::members::Members;
use roost::hub::names::NameHasher;
use roost::hub::results::Results;
use roost::hub::subscribers::Subscribers;
use roost::hub::user_conns::UserConns;
use roost::proto::http::BodyReader;
use roost::proto::ws::Reader;
use roost::session::Session;

static NAMES: LazyLock<NameHasher> = LazyLock::new(|| NameHasher::new(1, 2));

fuzz_target!(|bytes: &[u8]| {
    // As the writer begins an image; the checksum is made good, so that the records are reached.
    let mut image = b"roostimg\x01\0".to_vec();
    image.extend_from_slice(bytes);
    seal(&mut image);
    let Ok(mut from) = ImageReader::new(&image, Millis(1_000_000)) else { return };
    let (mut users, mut results) = (UserConns::default(), Results::new(10, 1000));
    let mut filters = FiltersReader::default();
    while let Ok(Some(kind)) = from.next_record() {
        let from = &mut from;
        let _ = match kind % 12 {
            0 => Stream::read_head(from).map(|(stream, _)| drop(stream.is_whole())),
            1 => Session::read(from).map(|_| ()),
            2 => Members::read(from, &NAMES).map(|_| ()),
            3 => Reader::read(from).map(|_| ()),
            4 => BodyReader::read(from).map(|_| ()),
            5 => users.read(from),
            6 => results.read(from),
            7 => Filter::read(from).map(|_| ()),
            8 => filters.filter(from),
            9 => Subscribers::read(from).map(|_| ()),
            10 => Position::read(from).map(|_| ()),
            _ => from.pass_over(),
        };
    }
    let _ = filters.end();
});
