//! Yes-or-no facts in the bits of one number, each with a name.

/// Makes a set of flags.
///
/// ```text
/// flags! {
///     /// Facts of a connection.
///     pub struct Flags(u16) {
///         /// The socket is full.
///         blocked, set_blocked = 0;
///     }
/// }
/// ```
///
/// gives a `Copy` struct with a getter and a setter for each bit, all false by default, all as visible
/// as the struct.
macro_rules! flags {
    (
        $(#[$attr:meta])*
        $vis:vis struct $name:ident($bits:ident) {
            $($(#[$doc:meta])* $get:ident, $set:ident = $bit:literal;)*
        }
    ) => {
        $(#[$attr])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        $vis struct $name($bits);

        impl $name {
            $(
                $(#[$doc])*
                $vis fn $get(self) -> bool { self.0 & (1 << $bit) != 0 }
                $(#[$doc])*
                $vis fn $set(&mut self, on: bool) {
                    if on { self.0 |= 1 << $bit } else { self.0 &= !(1 << $bit) }
                }
            )*
        }

        impl $crate::base::image::Durable for $name {
            fn write(&self, out: &mut $crate::base::image::ImageWriter) {
                out.field(&self.0);
            }

            fn read(
                from: &mut $crate::base::image::ImageReader<'_>,
            ) -> Result<Self, $crate::base::image::Broken> {
                let bits = $bits::read(from)?;
                if bits & !(0 $(| 1 << $bit)*) != 0 {
                    return Err($crate::base::image::Broken::Value(stringify!($name)));
                }
                let mut flags = Self(bits);
                $(if from.forgets(concat!(stringify!($name), ".", stringify!($get))) {
                    flags.$set(false);
                })*
                Ok(flags)
            }
        }
    };
}

pub(crate) use flags;

#[cfg(test)]
mod tests {
    flags! {
        /// An example.
        struct Example(u8) {
            /// The first.
            first, set_first = 0;
            /// The last.
            last, set_last = 7;
        }
    }

    #[test]
    fn each_is_on_its_own() {
        let mut flags = Example::default();
        flags.set_last(true);
        assert_eq!((flags.first(), flags.last(), size_of::<Example>()), (false, true, 1));
        flags.set_first(true);
        flags.set_last(false);
        assert_eq!((flags.first(), flags.last()), (true, false));
    }
}
