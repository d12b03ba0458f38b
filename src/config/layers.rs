//! Puts file, environment and flags over each other, and says what is unknown, wrong or not built.
//!
//! ```text
//!  defaults (the table) < development preset < file < CENTRIFUGO_... < ROOST_... < flags
//! ```

use std::collections::HashMap;

use super::explain;
use super::file_value::{Entry, FileValue, Form};
use super::names;
use super::renamed::{self, Fate};
use super::table::{Class, OPTIONS, Opt, Place, places};
use super::tree;
use super::value::{Kind, Value};

/// A configuration that can't be used: everything that is wrong with it. The process exits with 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    /// At least one, a line each.
    pub problems: Vec<String>,
    /// Further remarks, a line each.
    pub warnings: Vec<String>,
    /// `roost.log_format` is `json`, as far as that is known.
    pub json_log: bool,
}

/// A set value, its origin, and its spelling there.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub value: Value,
    /// `config.toml:12`, `ROOST_SHARDS` or `--shards`.
    pub origin: String,
    /// For messages; secrets are hidden.
    shown: String,
}

/// The options of one table that are set: those from the root, or those of one place.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    rows: &'static [Opt],
    /// The text before a path in messages.
    prefix: String,
    /// Its name, in a list.
    name: String,
    /// Paths below that have tables of their own.
    elsewhere: &'static [Place],
    settings: HashMap<&'static str, Setting>,
}

/// Everything that is set.
#[derive(Debug)]
pub(super) struct Settings {
    pub root: Scope,
    /// The settings of each of [`places`], in their order.
    sections: Vec<Section>,
    /// Variables that texts may name: `CENTRIFUGO_VAR_X`, `ROOST_VAR_X`.
    pub variables: HashMap<String, String>,
}

/// The settings of a place.
#[derive(Debug)]
enum Section {
    One(Scope),
    /// With the place where each was named.
    List(Vec<(String, Scope)>),
}

/// The problems to report.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub errors: Vec<String>,
    /// Options that nobody knows.
    pub unknown: Vec<String>,
    pub warnings: Vec<String>,
    /// Settings that can be used and are hardly intended.
    pub advice: Vec<String>,
}

impl Setting {
    /// The development node's own.
    pub(super) fn is_preset(&self) -> bool {
        self.origin == PRESET
    }
}

/// Where the options of the development preset come from.
const PRESET: &str = "development preset";

impl Report {
    /// The warnings, unknown options first.
    ///
    /// # Errors
    /// When anything is wrong; `strict` makes unknown options wrong.
    pub(super) fn close(self, strict: bool) -> Result<Vec<String>, ConfigError> {
        let Self { errors: mut problems, unknown, warnings: others, advice } = self;
        let mut warnings = Vec::new();
        if strict { &mut problems } else { &mut warnings }.extend(unknown);
        warnings.extend(others);
        if !problems.is_empty() {
            // Advice would be about the defaults in the place of options that are wrong or unread.
            return Err(ConfigError { problems, warnings, json_log: false });
        }
        warnings.extend(advice);
        Ok(warnings)
    }
}

impl Scope {
    fn new(rows: &'static [Opt], path: &str) -> Self {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
        Self { rows, prefix, name: String::new(), elsewhere: &[], settings: HashMap::new() }
    }

    /// The row of a path.
    pub(super) fn row(&self, path: &str) -> Option<&'static Opt> {
        self.rows.iter().find(|row| row.path == path)
    }

    /// The path as it is written from the root.
    pub(super) fn full(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }

    /// Its name in a list; empty for what is in none.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The set value, `None` where the default holds.
    pub(super) fn setting(&self, path: &str) -> Option<&Setting> {
        self.settings.get(path)
    }

    /// `origin: option = value: expected ...`
    pub(super) fn complaint(&self, path: &str, expected: &str) -> String {
        self.remark(path, &format!("expected {expected}"))
    }

    /// `origin: option = value: why`
    pub(super) fn remark(&self, path: &str, why: &str) -> String {
        let full = self.full(path);
        match self.settings.get(path) {
            Some(Setting { origin, shown, .. }) => format!("{origin}: {full} = {shown}: {why}"),
            None => format!("{full}: {why}"),
        }
    }

    fn set(&mut self, row: &'static Opt, setting: Setting) {
        self.settings.insert(row.path, setting);
    }

    fn set_node(&mut self, row: &'static Opt, entry: &Entry, file: &str, report: &mut Report) {
        let origin = format!("{file}:{}", entry.line);
        let shown = names::show(row.path, &entry.value);
        let value = match row.kind.of_node(&entry.value) {
            Ok(value) => value,
            // An option that is not built is judged by whether it requests something, not by its form.
            Err(_) if !row.is_built() => match Kind::Any.of_node(&entry.value) {
                Ok(value) => value,
                Err(_) => return,
            },
            Err(expected) => {
                let full = self.full(row.path);
                report.errors.push(format!("{origin}: {full} = {shown}: expected {expected}"));
                return;
            }
        };
        self.set(row, Setting { value, origin, shown });
    }

    fn set_text(&mut self, row: &'static Opt, text: &str, origin: &str, report: &mut Report) {
        let shown = names::show_text(row.path, text);
        let value = match row.kind.of_text(text) {
            Ok(value) => value,
            Err(_) if !row.is_built() => Value::Any(true),
            Err(expected) => {
                let full = self.full(row.path);
                report.errors.push(format!("{origin}: {full} = {shown}: expected {expected}"));
                return;
            }
        };
        self.set(row, Setting { value, origin: origin.into(), shown });
    }

    /// Takes a map of a file whose keys continue `path`. `elsewhere` takes what isn't this table's.
    fn walk(
        &mut self,
        path: &str,
        entries: &[Entry],
        file: &str,
        report: &mut Report,
        elsewhere: &mut dyn FnMut(&str, &Entry, &mut Report) -> bool,
    ) {
        for entry in entries {
            let at =
                if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
            let row = self.row(&at);
            let below = format!("{at}.");
            let section = self.rows.iter().any(|row| row.path.starts_with(&below))
                || self.elsewhere.iter().any(|place| place.path.starts_with(&below));
            if elsewhere(&at, entry, report) {
                continue;
            }
            if row.is_none() && !section {
                if !self.is_covered(&at) {
                    let hint = self.hint(&at);
                    let full = self.full(&at);
                    report
                        .unknown
                        .push(format!("{file}:{}: unknown option {full}{hint}", entry.line));
                }
                continue;
            }
            match (&entry.value.form, row) {
                (Form::Null, _) => {}
                (Form::Map(inner), row) if section => {
                    if let Some(row) = row {
                        self.set_node(row, entry, file, report);
                    }
                    self.walk(&at, inner, file, report, elsewhere);
                }
                (_, Some(row)) => self.set_node(row, entry, file, report),
                (_, None) => {
                    let shown = names::show(&at, &entry.value);
                    let full = self.full(&at);
                    report.errors.push(format!(
                        "{file}:{}: {full} = {shown}: expected a section with options in it",
                        entry.line
                    ));
                }
            }
        }
    }

    /// The option that was meant by an unknown one, as a part of a message.
    fn hint(&self, path: &str) -> String {
        if self.prefix.is_empty() {
            return explain::suggestion(path);
        }
        match renamed::in_namespace(path) {
            Some(Fate::Moved(today)) if self.row(&today).is_some() => {
                format!("; did you mean {today}?")
            }
            _ => names::nearest(path, self.rows.iter().map(|row| row.path), "."),
        }
    }

    /// True below something of which nothing is built.
    fn is_covered(&self, path: &str) -> bool {
        self.rows.iter().any(|row| {
            matches!(row.kind, Kind::Any)
                && path.strip_prefix(row.path).is_some_and(|rest| rest.starts_with('.'))
        })
    }

    /// Sets the option that a variable names, `name` being what follows this scope's prefix.
    fn set_variable(
        &mut self,
        name: &str,
        text: &str,
        variable: &str,
        report: &mut Report,
    ) -> bool {
        let rows = self.rows.iter();
        let covered = |row: &&Opt| {
            matches!(row.kind, Kind::Any)
                && name
                    .strip_prefix(&names::variable(row.path))
                    .is_some_and(|rest| rest.starts_with('_'))
        };
        match rows.clone().find(|row| names::variable(row.path) == name) {
            Some(row) => self.set_text(row, text, variable, report),
            None => return rows.clone().any(|row| covered(&row)),
        }
        true
    }

    /// Options that are set and not built, or only in part.
    fn judge(&self, root: &Scope, report: &mut Report) {
        for row in self.rows {
            let Some(setting) = self.settings.get(row.path) else { continue };
            let Setting { origin, shown, value } = setting;
            if value.is_nothing() || default(row).is_some_and(|default| default == *value) {
                continue;
            }
            let full = self.full(row.path);
            let other_is_on = |other: &str| {
                matches!(root.settings.get(other), Some(Setting { value: Value::Bool(true), .. }))
            };
            match row.class {
                Class::Built | Class::Silent(_) => {}
                Class::Harmless(why) => {
                    report.warnings.push(format!("{origin}: {full} = {shown}: {why}"));
                }
                Class::RefusedWith(other, _) if !other_is_on(other) => {}
                Class::Refused(why) | Class::RefusedWith(_, why) => {
                    let expected = if row.default.is_empty() { "nothing" } else { row.default };
                    report.errors.push(format!(
                        "{origin}: {full} = {shown}: {why}; expected {expected} or no such option"
                    ));
                }
            }
        }
    }
}

impl Settings {
    /// Nothing set.
    pub(super) fn new() -> Self {
        let section = |place: &Place| match place.is_list {
            true => Section::List(Vec::new()),
            false => Section::One(Scope::new(place.rows, place.path)),
        };
        Self {
            root: Scope { elsewhere: places(), ..Scope::new(OPTIONS, "") },
            sections: places().iter().map(section).collect(),
            variables: HashMap::new(),
        }
    }

    /// The section at a place. One that isn't in the table is a fault of the caller, and the first test
    /// that builds a configuration meets it.
    pub(super) fn section(&self, path: &str) -> &Scope {
        match self.at(path) {
            Some(Section::One(scope)) => scope,
            _ => unreachable!("{path} is no section of its own"),
        }
    }

    /// The named sections at a place, each with where it was named.
    pub(super) fn list(&self, path: &str) -> &[(String, Scope)] {
        match self.at(path) {
            Some(Section::List(scopes)) => scopes,
            _ => unreachable!("{path} is no list"),
        }
    }

    fn at(&self, path: &str) -> Option<&Section> {
        let (_, section) = self.by_place().find(|(place, _)| place.path == path)?;
        Some(section)
    }

    fn by_place(&self) -> impl Iterator<Item = (&'static Place, &Section)> {
        places().iter().zip(&self.sections)
    }

    /// The options that are set to something else than their defaults and that a reload doesn't change, with
    /// their values as texts. The takeover socket is not among them: a process that takes over has found it.
    pub(super) fn fixed(&self) -> Vec<(String, String)> {
        let mut fixed = Vec::new();
        for scope in self.scopes() {
            for row in scope.rows.iter().filter(|row| row.is_built()) {
                let (name, setting) = (scope.full(row.path), scope.settings.get(row.path));
                let Some(Setting { value, .. }) = setting else { continue };
                let counts = !explain::is_reloaded(&name) && name != "roost.takeover";
                if counts && default(row).as_ref() != Some(value) {
                    fixed.push((name, format!("{value:?}")));
                }
            }
        }
        fixed.sort();
        fixed
    }

    fn scopes(&self) -> impl Iterator<Item = &Scope> {
        let of_places = self.sections.iter().flat_map(|section| {
            let (one, list): (_, &[_]) = match section {
                Section::One(scope) => (Some(scope), &[]),
                Section::List(scopes) => (None, scopes),
            };
            one.into_iter().chain(list.iter().map(|(_, scope)| scope))
        });
        [&self.root].into_iter().chain(of_places)
    }

    /// Sets what the development node has unless somebody says otherwise.
    pub(super) fn preset(&mut self, preset: &[(&'static str, &str)], report: &mut Report) {
        for (path, text) in preset {
            let mut of_place = None;
            for (place, section) in places().iter().zip(&mut self.sections) {
                let inner = path.strip_prefix(place.path).and_then(|rest| rest.strip_prefix('.'));
                if let (Some(inner), Section::One(scope)) = (inner, section) {
                    of_place = Some((scope, inner));
                }
            }
            let (scope, path) = of_place.unwrap_or((&mut self.root, path));
            if let Some(row) = scope.row(path) {
                scope.set_text(row, text, PRESET, report);
            }
        }
    }

    /// Takes a file.
    pub(super) fn file(&mut self, name: &str, text: &str, report: &mut Report) {
        match tree::parse(name, text) {
            Ok(FileValue { form: Form::Map(entries), .. }) => self.walk("", &entries, name, report),
            Ok(_) => report.errors.push(format!("{name}: expected options, not a single value")),
            Err(fault) => report.errors.push(format!("{name}:{fault}")),
        }
    }

    fn walk(&mut self, path: &str, entries: &[Entry], file: &str, report: &mut Report) {
        let Self { root, sections, .. } = self;
        root.walk(path, entries, file, report, &mut |at, entry, report| {
            let mut of_places = places().iter().zip(&mut *sections);
            match of_places.find(|(place, _)| place.path == at) {
                Some((_, Section::One(scope))) => {
                    if let Some(entries) = section(at, entry, file, report) {
                        scope.walk("", entries, file, report, &mut |_, _, _| false);
                    }
                }
                Some((place, Section::List(scopes))) => {
                    *scopes = read_list(place, entry, file, report);
                }
                None => return false,
            }
            true
        });
    }

    /// Takes the environment: `ROOST_...` wins over `CENTRIFUGO_...`, an empty variable is unset.
    pub(super) fn environment(&mut self, variables: &[(String, String)], report: &mut Report) {
        let mut set: Vec<_> =
            variables.iter().filter(|(_, text)| !text.is_empty()).cloned().collect();
        set.sort();
        let is_for_texts = |name: &str| {
            ["CENTRIFUGO_VAR_", "ROOST_VAR_"].iter().any(|prefix| name.starts_with(prefix))
        };
        self.variables = set.iter().filter(|(name, _)| is_for_texts(name)).cloned().collect();
        for (place, section) in places().iter().zip(&mut self.sections) {
            let Section::List(scopes) = section else { continue };
            let named = ["ROOST_", "CENTRIFUGO_"].iter().find_map(|prefix| {
                let name = names::prefixed(prefix, place.path)?;
                set.iter().find(|(variable, _)| *variable == name)
            });
            if let Some((name, text)) = named {
                name_list(place, scopes, name, text, report);
            }
        }
        for prefix in ["CENTRIFUGO_", "ROOST_"] {
            let mine: Vec<(&str, &str, &str)> = set
                .iter()
                .filter_map(|(variable, text)| {
                    Some((variable.strip_prefix(prefix)?, text.as_str(), variable.as_str()))
                })
                .filter(|(name, text, _)| !names::is_not_ours(name, text))
                .collect();
            // Sections first, so that a variable for one option wins over one for its section.
            let (sections, options): (Vec<_>, Vec<_>) =
                mine.into_iter().partition(|(name, text, _)| {
                    text.trim_start().starts_with('{') && self.section_of(name).is_some()
                });
            for (name, text, variable) in sections {
                self.section_variable(name, text, variable, report);
            }
            for (name, text, variable) in options {
                if !self.variable(prefix, name, text, variable, report) {
                    let hint = hint_of_variable(prefix, name, variable);
                    report.unknown.push(format!("{variable}: unknown option{hint}"));
                }
            }
        }
    }

    /// Takes flags, as pairs of path and text.
    pub(super) fn flags(&mut self, flags: &[(&str, String)], report: &mut Report) {
        for (path, text) in flags {
            if let Some(row) = self.root.row(path) {
                let flag = format!("--{}", row.flag().unwrap_or_default());
                self.root.set_text(row, text, &flag, report);
            }
        }
    }

    /// Says of everything that is set and not built what it is.
    pub(super) fn judge(&self, report: &mut Report) {
        self.scopes().for_each(|scope| scope.judge(&self.root, report));
    }

    fn variable(
        &mut self,
        prefix: &str,
        name: &str,
        text: &str,
        variable: &str,
        report: &mut Report,
    ) -> bool {
        for (place, section) in places().iter().zip(&mut self.sections) {
            let whole = names::prefixed(prefix, place.path);
            let own = whole.as_deref().and_then(|whole| whole.strip_prefix(prefix));
            let Some(rest) = own.and_then(|own| name.strip_prefix(own)) else { continue };
            match (section, rest.strip_prefix('_')) {
                // It has been read before all others.
                (Section::List(_), None) if rest.is_empty() => return true,
                (Section::One(scope), Some(option)) => {
                    return scope.set_variable(option, text, variable, report);
                }
                (Section::List(scopes), Some(rest)) => {
                    // Two names may look alike here, and one may begin the other: all that fit are meant.
                    let mut known = false;
                    for (_, scope) in scopes {
                        let own = names::variable(scope.name());
                        let option =
                            rest.strip_prefix(&own).and_then(|rest| rest.strip_prefix('_'));
                        if let Some(option) = option {
                            known |= scope.set_variable(option, text, variable, report);
                        }
                    }
                    if known {
                        return true;
                    }
                }
                _ => {}
            }
        }
        let own = format!("ROOST_{name}");
        // roost's own section is not named twice, and Centrifugo has none.
        match self.root.rows.iter().find(|row| names::variable(row.path) == own) {
            Some(row) if prefix == "ROOST_" => {
                self.root.set_text(row, text, variable, report);
                true
            }
            _ => {
                !name.starts_with("ROOST_") && self.root.set_variable(name, text, variable, report)
            }
        }
    }

    /// The path of the section that a variable names: where it stands, and below that.
    fn section_of(&self, name: &str) -> Option<(Option<usize>, &'static str)> {
        let in_table = |rows: &'static [Opt], own: &str| {
            let paths = rows.iter().map(|row| row.path);
            paths
                .flat_map(|path| path.match_indices('.').map(|(end, _)| &path[..end]))
                .find(|section| names::variable(section) == own)
        };
        for (at, place) in places().iter().enumerate().filter(|(_, place)| !place.is_list) {
            let own = names::variable(place.path);
            match name.strip_prefix(&own) {
                Some("") => return Some((Some(at), "")),
                Some(rest) => {
                    let inner = rest.strip_prefix('_').and_then(|own| in_table(place.rows, own));
                    if let Some(inner) = inner {
                        return Some((Some(at), inner));
                    }
                }
                None => {}
            }
        }
        let above = places().iter().map(|place| place.path);
        in_table(self.root.rows, name)
            .or_else(|| {
                above
                    .flat_map(|path| path.match_indices('.').map(|(end, _)| &path[..end]))
                    .find(|section| names::variable(section) == name)
            })
            .map(|path| (None, path))
    }

    fn section_variable(&mut self, name: &str, text: &str, variable: &str, report: &mut Report) {
        let Some((place, path)) = self.section_of(name) else { return };
        match tree::parse_json(text) {
            Ok(FileValue { form: Form::Map(entries), .. }) => {
                match place.map(|at| &mut self.sections[at]) {
                    Some(Section::One(scope)) => {
                        scope.walk(path, &entries, variable, report, &mut |_, _, _| false);
                    }
                    _ => self.walk(path, &entries, variable, report),
                }
            }
            Ok(_) => {}
            Err(fault) => report.errors.push(format!("{variable}:{fault}")),
        }
    }
}

/// The variable that was meant by an unknown one, as a part of a message.
fn hint_of_variable(prefix: &str, name: &str, variable: &str) -> String {
    match renamed::at_top(&name.to_lowercase(), &explain::is_known) {
        Some(Fate::Moved(path)) => {
            let today = names::prefixed(prefix, &path).unwrap_or(path);
            return format!("; did you mean {today}?");
        }
        Some(Fate::Gone(why)) => return format!("; it has no place today: {why}"),
        None => {}
    }
    let known: Vec<String> =
        OPTIONS.iter().filter_map(|row| names::prefixed(prefix, row.path)).collect();
    names::nearest(variable, known.iter().map(String::as_str), "_")
}

/// The default of an option, `None` for those that are whole sections.
pub(super) fn default(row: &Opt) -> Option<Value> {
    if row.default.is_empty() {
        return None;
    }
    let node = tree::parse("default.toml", &format!("value = {}", row.default)).ok()?;
    match node.form {
        Form::Map(entries) => row.kind.of_node(&entries.first()?.value).ok(),
        _ => None,
    }
}

fn section<'a>(at: &str, entry: &'a Entry, file: &str, report: &mut Report) -> Option<&'a [Entry]> {
    match &entry.value.form {
        Form::Map(entries) => Some(entries),
        Form::Null => None,
        _ => {
            let shown = names::show(at, &entry.value);
            report.errors.push(format!(
                "{file}:{}: {at} = {shown}: expected a section with options in it",
                entry.line
            ));
            None
        }
    }
}

fn named(place: &Place, name: &str, origin: &str) -> (String, Scope) {
    let scope = Scope::new(place.rows, &format!("{}[{name}]", place.path));
    (origin.to_owned(), Scope { name: name.to_owned(), ..scope })
}

/// A list from a variable: JSON, or only names.
fn name_list(
    place: &Place,
    scopes: &mut Vec<(String, Scope)>,
    variable: &str,
    text: &str,
    report: &mut Report,
) {
    if !text.trim_start().starts_with('[') {
        *scopes = text.split_whitespace().map(|name| named(place, name, variable)).collect();
        return;
    }
    match tree::parse_json(text) {
        Ok(value) => {
            let entry = Entry { key: String::new(), line: 1, value };
            *scopes = read_list(place, &entry, variable, report);
        }
        Err(fault) => report.errors.push(format!("{variable}:{fault}")),
    }
}

fn read_list(
    place: &Place,
    entry: &Entry,
    file: &str,
    report: &mut Report,
) -> Vec<(String, Scope)> {
    let path = place.path;
    let items = match &entry.value.form {
        Form::List(items) => items.as_slice(),
        Form::Null => &[],
        _ => {
            let shown = names::show(path, &entry.value);
            report.errors.push(format!(
                "{file}:{}: {path} = {shown}: expected a list of sections",
                entry.line
            ));
            &[]
        }
    };
    let mut scopes = Vec::new();
    for item in items {
        let line = item.line;
        let Form::Map(entries) = &item.form else {
            report.errors.push(format!("{file}:{line}: {path}: expected a section"));
            continue;
        };
        let name = entries.iter().find(|entry| entry.key == "name");
        match name.map(|entry| &entry.value.form) {
            Some(Form::Text(name)) => {
                let (origin, mut scope) = named(place, name, &format!("{file}:{line}"));
                scope.walk("", entries, file, report, &mut |_, _, _| false);
                scopes.push((origin, scope));
            }
            _ => report
                .errors
                .push(format!("{file}:{line}: {path}: expected a name (a text) in each section")),
        }
    }
    scopes
}
