//! Takes single values out of the file and the environment, and keeps every fault that it meets.
//!
//! The environment goes over the file. A value is read in the form that its type wants: a variable's text is taken as it
//! stands where a text is wanted, and as a TOML value otherwise. What nobody asked for is a fault. Must not know: which
//! keys exist (`sections`), relations between keys (`check`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::value::UnitDeserializer;
use serde::de::{DeserializeOwned, IntoDeserializer};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, ValueDeserializer};

use super::errors::{ConfigError, ConfigErrors, Place};
use super::secret::{SECRET_MAX_BYTES, Secret};
use super::sections::{Key, KeyDefault};

/// What makes a secret of a text, or says which rule the text breaks.
type Form = fn(&str) -> Result<Secret, &'static str>;

/// The config file's name and text.
pub(super) struct File<'a> {
    pub name: &'a str,
    pub text: &'a str,
}

/// Reads keys one by one; see the module.
pub(super) struct Reader<'a> {
    file: Option<&'a File<'a>>,
    tables: BTreeMap<String, Spanned<DeTable<'a>>>,
    env: &'a BTreeMap<String, String>,
    errors: Vec<ConfigError>,
}

/// `MIROIR_<SECTION>__<KEY>`.
pub(super) fn variable(section: &str, key: &str) -> String {
    format!("MIROIR_{}__{}", section.to_uppercase(), key.to_uppercase())
}

impl<'a> Reader<'a> {
    /// Parses the file and refuses whatever is not in `keys`.
    ///
    /// # Errors
    /// Faults of TOML's own syntax: with those nothing else is worth saying.
    pub fn new(
        file: Option<&'a File<'a>>,
        env: &'a BTreeMap<String, String>,
        keys: &[Key],
    ) -> Result<Self, ConfigErrors> {
        let mut reader = Self { file, tables: BTreeMap::new(), env, errors: Vec::new() };
        if let Some(file) = file {
            let (root, faults) = DeTable::parse_recoverable(file.text);
            for fault in faults {
                let place = reader.at(fault.span().map_or(0, |s| s.start));
                reader.fault(place, format!("not TOML: {}", one_line(fault.message())));
            }
            if !reader.errors.is_empty() {
                return Err(reader.into_errors());
            }
            reader.take_sections(root.into_inner(), keys);
        }
        reader.refuse_unknown_variables(keys);
        Ok(reader)
    }

    /// The value of one key: environment, file, default, in this order. `None` after a fault.
    pub fn key<T: DeserializeOwned>(&mut self, key: &Key, check: impl Fn(&T) -> bool) -> Option<T> {
        let name = variable(key.section, key.key);
        if let Some(text) = self.env.get(&name) {
            let found = format!("`{}`", cut(text));
            let value = from_variable(text);
            return self.accept(Place::Variable(name), key, value, found, check);
        }
        if let Some((_, value)) = self.in_file(key.section, key.key) {
            let value = value.clone();
            let (at, found) = (value.span().start, describe(value.get_ref()));
            let value = T::deserialize(ValueDeserializer::from(value));
            // The fault of a list lies deeper than where the list begins.
            let at = value.as_ref().err().and_then(toml::de::Error::span).map_or(at, |s| s.start);
            return self.accept(self.at(at), key, value, found, check);
        }
        match key.default {
            KeyDefault::Value(text) => {
                let value = ValueDeserializer::parse(text).and_then(T::deserialize);
                self.accept(Place::Nowhere, key, value, cut(text), check)
            }
            KeyDefault::Unset => {
                let nothing: UnitDeserializer<toml::de::Error> = ().into_deserializer();
                self.accept(Place::Nowhere, key, T::deserialize(nothing), "nothing".to_owned(), check)
            }
            KeyDefault::Required => {
                let place = self.file.map_or(Place::Nowhere, |f| Place::File(f.name.to_owned()));
                let fault = format!("{key} is missing: expected {} (or {name} in the environment)", key.expected);
                self.fault(place, fault);
                None
            }
        }
    }

    /// A secret: from the variable, or from the file that `<name>_file` names. `None`: none is set, or a fault.
    pub fn secret(
        &mut self,
        section: &'static str,
        name: &'static str,
        form: Form,
        min_bytes: usize,
    ) -> Option<Secret> {
        let (direct, by_file) = (variable(section, name), variable(section, &format!("{name}_file")));
        if let Some(text) = self.env.get(&direct) {
            if self.env.contains_key(&by_file) {
                let fault = format!("[{section}] {name}: set either this variable or {by_file}, not both");
                self.fault(Place::Variable(direct), fault);
                return None;
            }
            return self.accept_secret(Place::Variable(direct), section, name, (form, min_bytes), text);
        }
        let key = format!("{name}_file");
        let place = self.place_of(section, &key);
        let path: Option<PathBuf> = match self.env.get(&by_file) {
            Some(path) => Some(path.into()),
            // A path that is no string was refused when the key itself was read.
            None => self.in_file(section, &key).and_then(|(_, v)| v.get_ref().as_str().map(PathBuf::from)),
        };
        let path = path?;
        match super::load::read_bounded(&path, SECRET_MAX_BYTES as u64 + 2) {
            Ok(text) => {
                let text = text.strip_suffix('\n').unwrap_or(&text);
                let text = text.strip_suffix('\r').unwrap_or(text);
                self.accept_secret(place, section, name, (form, min_bytes), text)
            }
            Err(e) => {
                self.fault(place, format!("[{section}] {key}: can't read {}: {e}", path.display()));
                None
            }
        }
    }

    /// Where a key stands that was read.
    pub fn place_of(&self, section: &str, key: &str) -> Place {
        let name = variable(section, key);
        if self.env.contains_key(&name) {
            return Place::Variable(name);
        }
        match (self.in_file(section, key), self.file) {
            (Some((at, _)), _) => self.at(at),
            (None, Some(file)) => Place::File(file.name.to_owned()),
            (None, None) => Place::Nowhere,
        }
    }

    /// Keeps a fault.
    pub fn fault(&mut self, place: Place, fault: String) {
        self.errors.push(ConfigError { place, fault });
    }

    /// Whether everything was right so far.
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    /// The faults, in the order of their places.
    pub fn into_errors(mut self) -> ConfigErrors {
        self.errors.sort();
        self.errors.dedup();
        ConfigErrors(self.errors)
    }

    fn accept<T>(
        &mut self,
        place: Place,
        key: &Key,
        value: Result<T, toml::de::Error>,
        found: String,
        check: impl Fn(&T) -> bool,
    ) -> Option<T> {
        match value {
            Ok(value) if check(&value) => Some(value),
            Ok(_) => {
                self.fault(place, format!("{key}: expected {}, found {found}", key.expected));
                None
            }
            Err(e) => {
                let detail = one_line(e.message());
                self.fault(place, format!("{key}: expected {}, found {found} ({detail})", key.expected));
                None
            }
        }
    }

    fn accept_secret(
        &mut self,
        place: Place,
        section: &str,
        name: &str,
        (form, min_bytes): (Form, usize),
        text: &str,
    ) -> Option<Secret> {
        let fault = match form(text) {
            Ok(secret) if secret.expose().len() >= min_bytes => return Some(secret),
            Ok(_) => format!("it is shorter than {min_bytes} bytes"),
            Err(rule) => rule.to_owned(),
        };
        self.fault(place, format!("[{section}] {name}: the secret can't be used: {fault}"));
        None
    }

    fn in_file(&self, section: &str, key: &str) -> Option<(usize, &Spanned<DeValue<'a>>)> {
        let (name, value) = self.tables.get(section)?.get_ref().get_key_value(key)?;
        Some((name.span().start, value))
    }

    fn take_sections(&mut self, root: DeTable<'a>, keys: &[Key]) {
        let mut sections: Vec<&str> = keys.iter().map(|k| k.section).collect();
        sections.dedup();
        let all = sections.iter().map(|s| format!("[{s}]")).collect::<Vec<_>>().join(", ");
        for (name, value) in root {
            let place = self.at(name.span().start);
            let (span, name) = (value.span(), name.into_inner());
            match value.into_inner() {
                DeValue::Table(table) if sections.contains(&name.as_ref()) => {
                    self.refuse_unknown_keys(&name, &table, keys);
                    self.tables.insert(name.into_owned(), Spanned::new(span, table));
                }
                DeValue::Table(_) => self.fault(place, format!("[{name}]: unknown section, expected one of {all}")),
                other if sections.contains(&name.as_ref()) => {
                    let found = kind(&other);
                    self.fault(place, format!("{name}: expected the section [{name}], found {found}"));
                }
                _ => self.fault(place, format!("{name}: a key outside of a section, expected it in one of {all}")),
            }
        }
    }

    fn refuse_unknown_keys(&mut self, section: &str, table: &DeTable<'a>, keys: &[Key]) {
        let known: Vec<&Key> = keys.iter().filter(|k| k.section == section).collect();
        for name in table.keys() {
            let (place, key) = (self.at(name.span().start), name.get_ref().as_ref());
            match known.iter().find(|k| k.key == key) {
                Some(k) if k.secret => {
                    let fault = format!(
                        "{k}: a secret can't stand in the config file: put it into a file of its own and name that \
                         with {key}_file, or set {}",
                        variable(section, key)
                    );
                    self.fault(place, fault);
                }
                Some(_) => {}
                None => {
                    let all = known.iter().filter(|k| !k.secret).map(|k| k.key).collect::<Vec<_>>().join(", ");
                    self.fault(place, format!("[{section}] {key}: unknown key, expected one of {all}"));
                }
            }
        }
    }

    /// A variable without `__` is none of ours, unless it is one of ours but for that.
    fn refuse_unknown_variables(&mut self, keys: &[Key]) {
        let ours: BTreeMap<String, &Key> = keys.iter().map(|k| (variable(k.section, k.key), k)).collect();
        for name in self.env.keys().filter(|n| n.starts_with("MIROIR_") && !ours.contains_key(*n)) {
            let flat = |n: &str| n.replace("__", "_");
            let near = ours.keys().find(|o| flat(o) == flat(name));
            let fault = match near {
                Some(near) => format!("unknown, expected {near} (two underscores between section and key)"),
                None if name.contains("__") => {
                    "unknown, expected MIROIR_<SECTION>__<KEY> with a section and a key of the config file".to_owned()
                }
                None => continue,
            };
            self.errors.push(ConfigError { place: Place::Variable(name.clone()), fault });
        }
    }

    fn at(&self, byte: usize) -> Place {
        match self.file {
            Some(file) => {
                let before = file.text.as_bytes().iter().take(byte);
                Place::Line(file.name.to_owned(), before.filter(|b| **b == b'\n').count() + 1)
            }
            None => Place::Nowhere,
        }
    }
}

/// A variable's text as a string if the type takes one, otherwise as a TOML value.
fn from_variable<T: DeserializeOwned>(text: &str) -> Result<T, toml::de::Error> {
    let string = DeValue::String(DeString::Owned(text.to_owned()));
    T::deserialize(ValueDeserializer::from(Spanned::new(0..text.len(), string))).or_else(|as_text| {
        // A text that is no TOML value at all is rather a wrong text.
        let value = ValueDeserializer::parse(text).map_err(|_| as_text)?;
        T::deserialize(value)
    })
}

fn cut(text: &str) -> String {
    let mut out: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        out.push('…');
    }
    out
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What stands there, for people: the value of a scalar, the kind of anything else.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("`{}`", cut(s)),
        DeValue::Integer(n) => format!("the number {}", cut(&n.to_string())),
        DeValue::Float(n) => format!("the number {}", cut(n.as_str())),
        DeValue::Boolean(b) => b.to_string(),
        other => kind(other).to_owned(),
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
