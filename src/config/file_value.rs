//! Values of a configuration file with their lines, of no format.

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FileValue {
    /// From 1.
    pub line: usize,
    pub form: Form,
}

/// The kind of a value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<FileValue>),
    Map(Vec<Entry>),
}

/// A key of a map with its value; `line` is the key's.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub key: String,
    pub line: usize,
    pub value: FileValue,
}

impl FileValue {
    /// As JSON has it.
    pub(super) fn json(&self) -> serde_json::Value {
        match &self.form {
            Form::Null => serde_json::Value::Null,
            Form::Bool(value) => (*value).into(),
            Form::Integer(value) => (*value).into(),
            Form::Float(value) => (*value).into(),
            Form::Text(text) => text.as_str().into(),
            Form::List(items) => items.iter().map(Self::json).collect(),
            Form::Map(entries) => {
                entries.iter().map(|entry| (entry.key.clone(), entry.value.json())).collect()
            }
        }
    }
}
