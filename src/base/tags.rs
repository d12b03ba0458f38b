//! Names and values that go with a publication, packed into bytes that no encoding owns.

/// The tags of a publication, in the order in which they were given; empty for none.
///
/// Shape: bytes of `(length of name: u32, length of value: u32, name, value)`, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags<'a>(&'a [u8]);

impl<'a> Tags<'a> {
    /// No tags.
    pub const NONE: Self = Self(b"");

    /// Packs tags. Of a name that comes twice the last counts.
    pub fn pack<'t>(tags: impl IntoIterator<Item = (&'t str, &'t str)>) -> Box<[u8]> {
        let mut packed = Vec::new();
        for (name, value) in tags {
            for part in [name, value] {
                // Each came in one message, whose length has a bound far below 4 GiB.
                packed.extend_from_slice(&(part.len() as u32).to_le_bytes());
            }
            packed.extend_from_slice(name.as_bytes());
            packed.extend_from_slice(value.as_bytes());
        }
        packed.into_boxed_slice()
    }

    /// Tags from what [`pack`](Self::pack) made.
    pub fn packed(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The packed bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Names and values. Ends where the bytes are not what `pack` made.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (head, behind) = rest.split_at_checked(8)?;
            let len = |at: usize| {
                let bytes: [u8; 4] = head[at..at + 4].try_into().ok()?;
                Some(u32::from_le_bytes(bytes) as usize)
            };
            let (name, behind) = behind.split_at_checked(len(0)?)?;
            let (value, behind) = behind.split_at_checked(len(4)?)?;
            rest = behind;
            Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
        })
    }

    /// The value of a tag.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.iter().filter(|(known, _)| *known == name).last().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_comes_back(
            tags in proptest::collection::vec((".{0,9}", ".{0,9}"), 0..6),
        ) {
            let given = tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let packed = Tags::pack(given.clone());
            prop_assert!(Tags::packed(&packed).iter().eq(given));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            Tags::packed(&bytes).iter().count();
        }
    }

    #[test]
    fn a_value_is_found_by_its_name() {
        let packed = Tags::pack([("a", "1"), ("b", ""), ("a", "2")]);
        let tags = Tags::packed(&packed);
        assert_eq!((tags.get("a"), tags.get("b"), tags.get("c")), (Some("2"), Some(""), None));
        assert!(Tags::NONE.is_empty() && Tags::NONE.get("a").is_none());
    }
}
