//! Reads a TOML document by a schema and collects everything that is wrong with it, with positions.
//!
//! Owns the walk: unknown keys, tables of the wrong shape, missing keys. What a value means is the business of the
//! caller, who passes a parser for each; a problem never ends the reading, so that a person sees all of them at once.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::problem::{Position, Problem, Severity, example, listed, quoted, suggestion};
use super::values;

/// The most problems that one file reports. A file that is no service file at all has one on every line.
const PROBLEMS_MAX: usize = 50;

/// Every table of a kind of file, as its header is written, and the keys it may have; `""` is the top of the file.
/// A table whose keys are free (a map) is listed as a key of its parent only.
pub(crate) type Schema = &'static [(&'static str, &'static [&'static str])];

/// A value and the place it stands at.
#[derive(Debug, Clone)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

/// Where a value stands: its key, the header of its table, and the byte offset in the file.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    header: &'static str,
    key: String,
    offset: usize,
}

impl Place {
    /// The key with its table, for machine output.
    fn dotted(&self) -> String {
        match table_path(self.header) {
            "" => self.key.clone(),
            table => format!("{table}.{}", self.key),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.header {
            "" => write!(f, "`{}`", self.key),
            header => write!(f, "`{}` in {header}", self.key),
        }
    }
}

/// `service.environment` of `[service.environment]`.
fn table_path(header: &str) -> &str {
    header.trim_matches(['[', ']'])
}

/// A document that is being read.
pub(crate) struct Document<'d> {
    file: &'d Path,
    text: &'d str,
    root: &'d DeTable<'d>,
    problems: RefCell<Vec<Found>>,
}

/// A problem whose position is still an offset. Few of them may be shown, and finding a line takes a walk of the text.
struct Found {
    offset: Option<usize>,
    problem: Problem,
}

/// Reads a document: checks its keys against the schema, then lets `build` take the values.
///
/// Returns the problems in the order of the file. What was built is dropped if one of them is an error. If the text is
/// no TOML only that is reported, for the rest would be guesses.
pub(crate) fn read<T>(
    file: &Path,
    text: &str,
    schema: Schema,
    build: impl FnOnce(&Document<'_>) -> Option<T>,
) -> (Option<T>, Vec<Problem>) {
    let (root, errors) = DeTable::parse_recoverable(text);
    let document = Document { file, text, root: root.get_ref(), problems: RefCell::default() };
    let mut built = None;
    if errors.is_empty() {
        document.check_keys(schema);
        built = build(&document);
    }
    for error in errors {
        let offset = error.span().map_or(text.len(), |span| span.start);
        document.report(Severity::Error, Some(offset), None, format!("not valid TOML: {}", error.message()));
    }
    let mut found = document.problems.into_inner();
    if found.iter().any(|found| found.problem.severity == Severity::Error) {
        built = None;
    }
    found.sort_by_key(|found| found.offset);
    found.dedup_by(|a, b| a.offset == b.offset && a.problem == b.problem);
    let rest = found.len().saturating_sub(PROBLEMS_MAX);
    let place =
        |Found { offset, problem }| Problem { position: offset.map(|offset| Position::of(text, offset)), ..problem };
    let mut problems: Vec<Problem> = found.into_iter().take(PROBLEMS_MAX).map(place).collect();
    if rest > 0 {
        let severity = if built.is_none() { Severity::Error } else { Severity::Warning };
        problems.push(Problem { severity, ..Problem::error(file, format!("and {rest} more problems in this file")) });
    }
    (built, problems)
}

impl<'d> Document<'d> {
    /// The one table of a header, `[service]`. If it is not in the file it is read as empty.
    pub(crate) fn table(&'d self, header: &'static str) -> Table<'d> {
        let found = self.tables(header).into_iter().next();
        found.unwrap_or(Table { document: self, header, entries: None, offset: None })
    }

    /// All tables of a header, in the order of the file; more than one only for `[[version]]`.
    pub(crate) fn tables(&'d self, header: &'static str) -> Vec<Table<'d>> {
        self.find(header).unwrap_or_default()
    }

    /// Finds the tables of a header. If something that is no such table has the name, the error is where that stands.
    fn find(&'d self, header: &'static str) -> Result<Vec<Table<'d>>, usize> {
        let table = |entries, offset| Table { document: self, header, entries: Some(entries), offset };
        let path = table_path(header);
        if path.is_empty() {
            return Ok(vec![table(self.root, None)]);
        }
        let (parents, name) = path.rsplit_once('.').unwrap_or(("", path));
        let mut parent = self.root;
        for step in parents.split('.').filter(|step| !step.is_empty()) {
            match parent.get(step).map(toml::Spanned::get_ref) {
                Some(DeValue::Table(entries)) => parent = entries,
                // A parent of another shape is reported at its own header.
                _ => return Ok(Vec::new()),
            }
        }
        let Some((key, value)) = parent.get_key_value(name) else { return Ok(Vec::new()) };
        let wrong = key.span().start;
        match value.get_ref() {
            DeValue::Table(entries) if !header.starts_with("[[") => Ok(vec![table(entries, Some(value.span().start))]),
            DeValue::Array(items) if header.starts_with("[[") => items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::Table(entries) => Ok(table(entries, Some(item.span().start))),
                    _ => Err(wrong),
                })
                .collect(),
            _ => Err(wrong),
        }
    }

    fn check_keys(&'d self, schema: Schema) {
        for &(header, keys) in schema {
            match self.find(header) {
                Ok(tables) => tables.iter().for_each(|table| table.check_keys(keys, schema)),
                Err(offset) => {
                    let name = table_path(header);
                    let message = format!("`{name}` is a table: write it as {header}");
                    self.report(Severity::Error, Some(offset), Some(name.to_owned()), message);
                }
            }
        }
    }

    /// Reports an error at a value; the message goes on after the name of its key.
    pub(crate) fn error(&self, place: &Place, message: impl fmt::Display) {
        self.report(Severity::Error, Some(place.offset), Some(place.dotted()), format!("{place}: {message}"));
    }

    /// Reports a warning at a value.
    pub(crate) fn warning(&self, place: &Place, message: impl fmt::Display) {
        self.report(Severity::Warning, Some(place.offset), Some(place.dotted()), format!("{place}: {message}"));
    }

    /// Reports an error about the file as a whole.
    pub(crate) fn error_in_file(&self, message: impl Into<String>) {
        self.report(Severity::Error, None, None, message.into());
    }

    /// The line a value stands on.
    pub(crate) fn line(&self, place: &Place) -> usize {
        Position::of(self.text, place.offset).line
    }

    fn report(&self, severity: Severity, offset: Option<usize>, key: Option<String>, message: String) {
        let problem = Problem { severity, key, ..Problem::error(self.file, message) };
        self.problems.borrow_mut().push(Found { offset, problem });
    }
}

/// A table of the document; one that is not in the file reads as empty.
#[derive(Clone, Copy)]
pub(crate) struct Table<'d> {
    document: &'d Document<'d>,
    header: &'static str,
    entries: Option<&'d DeTable<'d>>,
    offset: Option<usize>,
}

impl<'d> Table<'d> {
    /// Whether the table has the key, with a good value or a bad one.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Takes a value, if the key is there and the parser accepts it; reports what the parser says otherwise.
    pub(crate) fn get<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let (place, value) = self.value(key)?;
        self.parse(place, value, parse)
    }

    /// Takes a value, or what stands for it when the key is absent.
    pub(crate) fn get_or<T>(&self, key: &str, parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>, default: T) -> T {
        self.get(key, parse).map_or(default, |located| located.value)
    }

    /// Takes a value that must be there, if the table is: of a table that the file lacks only that is worth saying.
    pub(crate) fn require<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Located<T>> {
        if self.entries.is_some() && !self.has(key) {
            self.error(Some(key), format!("missing key `{key}` in {}", self.header));
        }
        self.get(key, parse)
    }

    /// Takes the elements of an array, each with a place of its own, if the parser accepts all of them.
    pub(crate) fn list<T>(
        &self,
        key: &str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Located<Vec<Located<T>>>> {
        let (place, value) = self.value(key)?;
        let DeValue::Array(items) = value else {
            let example = value.as_str().map_or(String::new(), |text| example(&[text]));
            self.document.error(&place, format!("{}{example}", values::expected("an array", value)));
            return None;
        };
        let element = |item: &toml::Spanned<DeValue<'_>>| {
            let place = Place { offset: item.span().start, ..place.clone() };
            self.parse(place, item.get_ref(), &parse)
        };
        // All elements are looked at before the list is given up for one of them.
        let elements: Vec<Option<Located<T>>> = items.iter().map(element).collect();
        Some(Located { value: elements.into_iter().collect::<Option<_>>()?, place })
    }

    /// Takes the values of a table whose keys are free.
    pub(crate) fn map<T>(
        &self,
        key: &str,
        parse: impl Fn(&str, &DeValue<'_>) -> Result<T, String>,
    ) -> Vec<(String, Located<T>)> {
        let Some((place, value)) = self.value(key) else { return Vec::new() };
        let DeValue::Table(entries) = value else {
            self.document.error(&place, values::expected("a table", value));
            return Vec::new();
        };
        let one = |(name, value): (&toml::Spanned<toml::de::DeString<'_>>, &toml::Spanned<DeValue<'_>>)| {
            let name = name.get_ref().to_string();
            let place = Place { header: self.header, key: format!("{key}.{name}"), offset: value.span().start };
            let located = self.parse(place, value.get_ref(), |value| parse(&name, value))?;
            Some((name, located))
        };
        entries.iter().filter_map(one).collect()
    }

    /// Whether the file has the table, be it empty.
    pub(crate) fn is_there(&self) -> bool {
        self.entries.is_some()
    }

    /// Reports an error about the table, or about a key that it lacks.
    pub(crate) fn error(&self, key: Option<&str>, message: String) {
        let table = table_path(self.header);
        let key = key.map_or(table.to_owned(), |key| format!("{table}.{key}"));
        self.document.report(Severity::Error, self.offset, Some(key), message);
    }

    fn value(&self, key: &str) -> Option<(Place, &'d DeValue<'d>)> {
        let value = self.entries?.get(key)?;
        Some((Place { header: self.header, key: key.to_owned(), offset: value.span().start }, value.get_ref()))
    }

    fn parse<T>(
        &self,
        place: Place,
        value: &DeValue<'_>,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Located<T>> {
        match parse(value) {
            Ok(value) => Some(Located { value, place }),
            Err(message) => {
                self.document.error(&place, message);
                None
            }
        }
    }

    fn check_keys(&self, keys: &[&'static str], schema: Schema) {
        for (key, value) in self.entries.into_iter().flatten() {
            let name = key.get_ref().as_ref();
            if keys.contains(&name) {
                continue;
            }
            let is_table = self.header.is_empty() && is_table(value.get_ref());
            let mut message = match (self.header, is_table) {
                ("", true) => format!("unknown table {}", quoted(&format!("[{name}]"))),
                ("", false) => format!("unknown key {} at the top of the file", quoted(name)),
                (header, _) => format!("unknown key {} in {header}", quoted(name)),
            };
            let elsewhere = schema.iter().filter(|(header, keys)| !header.is_empty() && keys.contains(&name));
            let elsewhere: Vec<&str> = elsewhere.map(|&(header, _)| header).collect();
            let known: Vec<&str> = match is_table {
                true => schema.iter().map(|&(header, _)| header).filter(|header| !header.is_empty()).collect(),
                false => keys.to_vec(),
            };
            if !elsewhere.is_empty() {
                message += &format!(", it belongs in {}", listed(elsewhere, "or"));
            } else if let Some(meant) = suggestion(name, known.iter().copied()) {
                message += &meant;
            } else {
                message += &format!(", known are {}", listed(known.iter().map(|known| format!("`{known}`")), "and"));
            }
            let place = Place { header: self.header, key: name.to_owned(), offset: key.span().start };
            self.document.report(Severity::Error, Some(place.offset), Some(place.dotted()), message);
        }
    }
}

/// Whether a value is what a header makes: a table, or an array of them.
fn is_table(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Table(_) => true,
        DeValue::Array(items) => items.first().is_some_and(|item| item.get_ref().is_table()),
        _ => false,
    }
}
