//! The last 15 minutes of the node's main figures, one value a second, so that the charts of the page begin full:
//! rings of fixed size.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

/// Seconds that are kept.
const SECONDS: usize = 15 * 60;

/// Names of the figures, as the page has them.
const NAMES: [&str; FIGURES] = [
    "connections",
    "clients",
    "messages_in",
    "messages_out",
    "deliveries",
    "publications",
    "bytes_in",
    "bytes_out",
    "accepted",
    "closed",
    "fan_out_p50",
    "fan_out_p99",
    "loop_lag_p50",
    "loop_lag_p99",
    "resident",
    "queued_bytes",
];

/// How many figures there are.
pub(super) const FIGURES: usize = 16;

/// See the module.
///
/// Shape: 57,600 bytes when full.
#[derive(Debug, Default)]
pub(in crate::node) struct Series {
    rows: VecDeque<[f32; FIGURES]>,
}

impl Series {
    /// Adds the values of a second, in the order of the names.
    pub(super) fn push(&mut self, values: [f64; FIGURES]) {
        if self.rows.len() == SECONDS {
            self.rows.pop_front();
        }
        self.rows.push_back(values.map(|value| value as f32));
    }

    /// All of them by name, oldest first. The last one is of this second.
    pub(super) fn to_json(&self) -> Value {
        let mut series = Map::new();
        for (at, name) in NAMES.into_iter().enumerate() {
            let values = self.rows.iter().map(|row| Value::from(f64::from(row[at]).round()));
            series.insert(name.to_owned(), values.collect());
        }
        json!({ "step_s": 1, "seconds": self.rows.len(), "series": series })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_has_the_last_quarter_of_an_hour() {
        let mut series = Series::default();
        for second in 0..SECONDS + 5 {
            series.push([second as f64; FIGURES]);
        }
        let json = series.to_json();
        let clients = json["series"]["clients"].as_array().unwrap();
        assert_eq!((clients.len(), &clients[0]), (SECONDS, &Value::from(5.0)));
        assert_eq!(json["series"].as_object().unwrap().len(), FIGURES);
    }
}
