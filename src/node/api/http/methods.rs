//! Names of the server API's methods, and their numbers in its old form (server API, 1.4).

/// In the order of their numbers.
const NUMBERED: [(u32, &str); METHODS] = [
    (0, "publish"),
    (1, "broadcast"),
    (2, "unsubscribe"),
    (3, "disconnect"),
    (4, "presence"),
    (5, "presence_stats"),
    (6, "history"),
    (7, "history_remove"),
    (8, "channels"),
    (9, "info"),
    (10, "rpc"),
    (11, "subscribe"),
    (12, "refresh"),
    (33, "map_publish"),
    (34, "map_remove"),
    (35, "map_read_state"),
    (36, "map_read_stream"),
    (37, "map_stats"),
    (38, "map_clear"),
    (39, "shared_poll_publish"),
];

/// How many they are.
pub(super) const METHODS: usize = 20;

/// Names of all methods but `batch`, in the order of their numbers.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    NUMBERED.iter().map(|(_, name)| *name)
}

/// The name of the method with a number.
pub(super) fn by_number(wanted: u32) -> Option<&'static str> {
    NUMBERED.iter().find(|(number, _)| *number == wanted).map(|(_, name)| *name)
}

/// The name of a method, however its letters are written.
pub(super) fn by_name(wanted: &str) -> Option<&'static str> {
    names().find(|name| wanted.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_names_and_numbers() {
        for (number, expected) in
            [(11, Some("subscribe")), (13, None), (39, Some("shared_poll_publish"))]
        {
            assert_eq!(by_number(number), expected, "{number}");
        }
        for (name, expected) in [("Publish", Some("publish")), ("batch", None), ("publishe", None)]
        {
            assert_eq!(by_name(name), expected, "{name}");
        }
        assert_eq!(names().count(), METHODS);
    }
}
