//! The `Date` of a response (RFC 9110 6.6.1), made from a time that is an argument.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

/// A date as it stands in a header. Shape: 29 bytes of ASCII.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpDate([u8; BYTES]);

/// `Sun, 06 Nov 1994 08:49:37 GMT`
const BYTES: usize = 29;

/// The largest value that the format can express: 9999-12-31 23:59:59.
const SECONDS_MAX: i64 = 253_402_300_799;

impl HttpDate {
    /// The date of a second since 1970.
    pub fn at(unix: i64) -> Self {
        let seconds = unix.clamp(0, SECONDS_MAX).unsigned_abs();
        let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
        let mut bytes = [b' '; BYTES];
        // IMF-fixdate has one length.
        for (byte, from) in bytes.iter_mut().zip(text.bytes()) {
            *byte = from;
        }
        Self(bytes)
    }
}

impl fmt::Display for HttpDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ASCII by construction.
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

/// The date of the present second, formatted once for all answers of that second.
#[derive(Clone, Copy, Debug)]
pub struct DateCache {
    unix: i64,
    date: HttpDate,
}

impl Default for DateCache {
    fn default() -> Self {
        Self { unix: 0, date: HttpDate::at(0) }
    }
}

impl DateCache {
    /// The date of a second since 1970.
    pub fn at(&mut self, unix: i64) -> HttpDate {
        if self.unix != unix {
            *self = Self { unix, date: HttpDate::at(unix) };
        }
        self.date
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (unix, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (-1, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (i64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(HttpDate::at(unix).to_string(), expected);
        }
        let mut cache = DateCache::default();
        for unix in [5, 5, 6, 5] {
            assert_eq!(cache.at(unix), HttpDate::at(unix));
        }
    }
}
