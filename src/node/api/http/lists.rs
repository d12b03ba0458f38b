//! Lists and objects of a request that are read no further than their bound, so that a request of 16 MiB
//! never becomes millions of values.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A list of at most `MAX` values.
#[derive(Clone, Debug)]
pub(super) struct List<T, const MAX: usize>(pub(super) Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Values<T, MAX> {
            type Value = List<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} values")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    if values.len() == MAX {
                        return Err(A::Error::invalid_length(MAX + 1, &self));
                    }
                    values.push(value);
                }
                Ok(List(values))
            }
        }
        deserializer.deserialize_seq(Values(PhantomData))
    }
}

/// Names and texts, at most `MAX` of them; of a name that comes twice the last counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts<const MAX: usize>(pub(super) BTreeMap<String, String>);

impl<'de, const MAX: usize> Deserialize<'de> for Texts<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<const MAX: usize>;

        impl<'de, const MAX: usize> Visitor<'de> for Pairs<MAX> {
            type Value = Texts<MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {MAX} texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut texts = BTreeMap::new();
                while let Some((name, value)) = map.next_entry()? {
                    if texts.len() == MAX {
                        return Err(A::Error::invalid_length(MAX + 1, &self));
                    }
                    texts.insert(name, value);
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, SeqDeserializer};

    use super::*;

    #[test]
    fn a_list_is_read_no_further_than_its_bound() {
        let taken = Cell::new(0);
        let endless = (0u32..1_000_000).inspect(|_| taken.set(taken.get() + 1));
        let list: Result<List<u32, 10>, Error> =
            List::deserialize(SeqDeserializer::new(endless).into_deserializer());
        assert!(list.is_err());
        assert_eq!(taken.get(), 11);
        let list: List<u32, 10> = serde_json::from_str("[1,2,3,4,5,6,7,8,9,10]").unwrap();
        assert_eq!(list.0.len(), 10);
        for wrong in ["{}", "7", "[\"a\"]"] {
            assert!(serde_json::from_str::<List<u32, 10>>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn texts_are_bounded() {
        let texts: Texts<2> = serde_json::from_str(r#"{"a":"1","b":"2"}"#).unwrap();
        assert_eq!(texts.0["b"], "2");
        assert!(serde_json::from_str::<Texts<2>>(r#"{"a":"1","b":"2","c":"3"}"#).is_err());
    }
}
