//! The JSON schemas of scenario files and of reports, as `roost-load schema` prints them.

/// The names of the schemas.
pub(super) const NAMES: [&str; 2] = ["scenario", "report"];

/// The text of a schema.
pub(super) fn of(name: &str) -> Option<&'static str> {
    match name {
        "scenario" => Some(include_str!("schemas/scenario.json")),
        "report" => Some(include_str!("schemas/report.json")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures;
    use super::super::file::{built_in, built_in_names};
    use super::super::report::{self, Report, Summary};
    use super::super::search::{Goal, Search};
    use super::super::series::Second;
    use super::super::threshold::Threshold;
    use super::*;
    use serde_json::Value;

    /// What is wrong with a value by a schema: the keywords that the schemas here have, and no others.
    fn faults(schema: &Value, root: &Value, value: &Value, path: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (keyword, of) in schema.as_object().unwrap() {
            let fits = match keyword.as_str() {
                "$schema" | "title" | "description" | "$defs" => true,
                "type" => {
                    let names: Vec<&str> = match of {
                        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
                        one => one.as_str().into_iter().collect(),
                    };
                    names.iter().any(|name| match *name {
                        "object" => value.is_object(),
                        "array" => value.is_array(),
                        "string" => value.is_string(),
                        "boolean" => value.is_boolean(),
                        "number" => value.is_number(),
                        "integer" => value.is_u64(),
                        "null" => value.is_null(),
                        other => panic!("type {other}"),
                    })
                }
                "$ref" => {
                    let of = root.pointer(of.as_str().unwrap().trim_start_matches('#')).unwrap();
                    found.extend(faults(of, root, value, path));
                    true
                }
                "anyOf" => {
                    let mut each = of.as_array().unwrap().iter();
                    each.any(|of| faults(of, root, value, path).is_empty())
                }
                "enum" => of.as_array().unwrap().contains(value),
                "const" => of == value,
                "minimum" => value.as_f64().is_none_or(|n| n >= of.as_f64().unwrap()),
                "exclusiveMinimum" => value.as_f64().is_none_or(|n| n > of.as_f64().unwrap()),
                "maximum" => value.as_f64().is_none_or(|n| n <= of.as_f64().unwrap()),
                "minItems" => {
                    value.as_array().is_none_or(|a| a.len() as u64 >= of.as_u64().unwrap())
                }
                "maxItems" => {
                    value.as_array().is_none_or(|a| a.len() as u64 <= of.as_u64().unwrap())
                }
                "pattern" => regex_lite::Regex::new(of.as_str().unwrap())
                    .unwrap()
                    .is_match(value.as_str().unwrap_or_default()),
                "required" => {
                    let mut names = of.as_array().unwrap().iter().filter_map(Value::as_str);
                    names.all(|name| value.get(name).is_some())
                }
                "items" => {
                    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                        found.extend(faults(of, root, item, &format!("{path}[{at}]")));
                    }
                    true
                }
                "properties" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        if let Some(of) = of.get(name) {
                            found.extend(faults(of, root, value, &format!("{path}.{name}")));
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    let known = &schema["properties"];
                    for (name, value) in value.as_object().into_iter().flatten() {
                        match of {
                            _ if known.get(name).is_some() => {}
                            Value::Bool(_) => found.push(format!("{path}.{name}: unknown")),
                            of => found.extend(faults(of, root, value, &format!("{path}.{name}"))),
                        }
                    }
                    true
                }
                other => panic!("keyword {other}"),
            };
            if !fits {
                found.push(format!("{path}: {keyword}"));
            }
        }
        found
    }

    fn scenario_faults(text: &str) -> Vec<String> {
        let schema: Value = serde_json::from_str(of("scenario").unwrap()).unwrap();
        let value: Value = toml::from_str(text).unwrap();
        faults(&schema, &schema, &value, "")
    }

    #[test]
    fn files_that_are_built_in_satisfy_the_schema() {
        for name in built_in_names() {
            assert_eq!(scenario_faults(built_in(name).unwrap()), [""; 0], "{name}");
        }
        let wrong = "size = -1\n[[populations]]\nrole = \"all\"\nx = 1\n[[phases]]\nrate = [1]";
        let mut found = scenario_faults(wrong);
        found.sort();
        let expected = [
            ".phases[0].rate: anyOf",
            ".populations[0].role: enum",
            ".populations[0].x: unknown",
            ".size: minimum",
            ".size: type",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_report_satisfies_its_schema() {
        let mut latency = figures::latency();
        latency.saturating_record(1234);
        let mut search = Search::new(Goal::Rate, 10);
        search.note(&Report::default());
        let mut report = Report {
            latency_us: Summary::of(&latency),
            server: Some(report::Server { slope: Some(Default::default()), ..Default::default() }),
            storm: Some(Default::default()),
            upgrade: Some(Default::default()),
            returns: Some(Default::default()),
            transports: [("sse", Summary::default())].into(),
            channels: vec![Default::default()],
            populations: vec![Default::default()],
            phases: vec![Default::default()],
            reasons: [("refused".to_owned(), 1)].into(),
            agents: vec![Default::default()],
            latency_uncertainty_us: Some(12.5),
            search: Some(search.found()),
            ..Report::default()
        };
        report.thresholds = vec![Threshold::parse("lost>0").unwrap().judge(&report)];
        let second = Second { agents: vec![Default::default()], ..Second::default() };
        let schema: Value = serde_json::from_str(of("report").unwrap()).unwrap();
        for text in [report.json_with(&[second], &latency), report.json(), Report::default().json()]
        {
            let value: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(faults(&schema, &schema, &value, ""), [""; 0]);
        }
    }

    /// The keys that a table of a scenario file may have, as the reader names them.
    fn known_keys(before: &str) -> Vec<String> {
        let text = format!("{before}\nunknown_key_ = 1");
        let error = toml::from_str::<super::super::file::File>(&text).unwrap_err();
        let message = error.message().to_owned();
        let mut keys: Vec<String> =
            message.split('`').skip(3).step_by(2).map(str::to_owned).collect();
        keys.sort();
        assert!(!keys.is_empty(), "{message}");
        keys
    }

    #[test]
    fn the_schema_has_each_key_and_no_other() {
        let schema: Value = serde_json::from_str(of("scenario").unwrap()).unwrap();
        for (table, pointer) in [
            ("", "/properties"),
            ("[request]", "/properties/request/properties"),
            ("[tls]", "/properties/tls/properties"),
            ("[api]\nurl = ''\nkey = ''", "/properties/api/properties"),
            ("[channels]", "/properties/channels/properties"),
            ("[[populations]]", "/$defs/population/properties"),
            ("[[phases]]", "/$defs/phase/properties"),
        ] {
            let mut keys: Vec<String> =
                schema.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect();
            keys.sort();
            assert_eq!(known_keys(table), keys, "{table}");
        }
    }
}
