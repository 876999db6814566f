//! File and environment laid over the defaults, and the errors that name where a value came from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use config::{Config as Merged, Environment, File, FileFormat, Map, Source as _, Value, ValueKind};
use thiserror::Error;

use super::keys::{self, Keys};

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The owner's file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not valid TOML", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// There is no such key.
    #[error("{origin}: unknown key `{key}`{hint}")]
    Unknown {
        /// The file, or the environment.
        origin: String,
        /// The key, with its section.
        key: String,
        /// What was probably meant; begins with punctuation, or is empty.
        hint: String,
    },
    /// A value is of the wrong kind, out of range, or at odds with another.
    #[error("{origin}: `{key}` is {given}; expected {expected}")]
    Wrong {
        /// The file, the environment, or the defaults.
        origin: String,
        /// The key, with its section.
        key: String,
        /// What was given.
        given: String,
        /// What was expected.
        expected: String,
    },
    /// The layers do not fit together.
    #[error("the configuration cannot be understood")]
    Merge(#[source] config::ConfigError),
}

/// The defaults with the file and the environment laid over them; every key known and of the
/// right kind.
pub(super) struct Layers {
    merged: Merged,
    origins: HashMap<String, String>,
}

const ENVIRONMENT: &str = "the environment";

impl Layers {
    /// Reads the file, if there is one, the owner's file in the journal's directory, if there is
    /// one, and the environment (or `variables` in its place).
    pub(super) fn read_all(
        path: Option<&Path>,
        variables: Option<HashMap<String, String>>,
    ) -> Result<Self, ConfigError> {
        let without = Self::read(path, None, variables.clone())?;
        let owner_path = Path::new(&without.keys()?.journal.dir).join(super::OWNER_FILE);
        match std::fs::read_to_string(&owner_path) {
            Ok(text) => Self::read(path, Some((&owner_path, &text)), variables),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(without),
            Err(source) => Err(ConfigError::Read { path: owner_path, source }),
        }
    }

    /// Reads the file, if there is one, then `owner`, the owner's file and its text, and the
    /// environment (or `variables` in its place).
    pub(super) fn read(
        path: Option<&Path>,
        owner: Option<(&Path, &str)>,
        variables: Option<HashMap<String, String>>,
    ) -> Result<Self, ConfigError> {
        Self::read_some(path, owner, variables, |_| true)
    }

    /// As [`Layers::read`], but these sections only; what else is written there is passed over.
    pub(super) fn read_only(path: Option<&Path>, sections: &[&str]) -> Result<Self, ConfigError> {
        Self::read_some(path, None, None, |section| sections.contains(&section))
    }

    fn read_some(
        path: Option<&Path>,
        owner: Option<(&Path, &str)>,
        variables: Option<HashMap<String, String>>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Self, ConfigError> {
        let known = keys::defaults();
        let mut origins = HashMap::new();
        let mut merged = Merged::builder()
            .add_source(Merged::try_from(&Keys::default()).map_err(ConfigError::Merge)?);
        let mut files = Vec::new();
        if let Some(path) = path {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
            files.push((path, text));
        }
        files.extend(owner.map(|(path, text)| (path, text.to_owned())));
        for (path, text) in files {
            // Parsed here for an error with its place in the text; the merging crate parses again.
            let mut table = text
                .parse::<toml::Table>()
                .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
            table.retain(|section, _| wanted(section));
            let file = File::from_str(&table.to_string(), FileFormat::Toml);
            let layer = file.collect().map_err(ConfigError::Merge)?;
            Check { origin: &path.display().to_string(), root: &known, origins: &mut origins }
                .table(&layer, &known, "")?;
            merged = merged.add_source(file);
        }
        let environment = Environment::with_prefix("PAWLATCH")
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .source(variables);
        let mut layer = nested(environment.collect().map_err(ConfigError::Merge)?);
        layer.retain(|section, _| wanted(section));
        Check { origin: ENVIRONMENT, root: &known, origins: &mut origins }
            .table(&layer, &known, "")?;
        let merged = merged.add_source(Nested(layer)).build().map_err(ConfigError::Merge)?;
        Ok(Self { merged, origins })
    }

    /// The merged keys.
    pub(super) fn keys(&self) -> Result<Keys, ConfigError> {
        self.merged.clone().try_deserialize().map_err(|error| match &error {
            config::ConfigError::At { key: Some(key), error: inner, .. } => {
                self.wrong(key, "not what it should be", &inner.to_string())
            }
            config::ConfigError::Type { key: Some(key), unexpected, expected, .. } => {
                self.wrong(key, &unexpected.to_string(), expected)
            }
            _ => ConfigError::Merge(error),
        })
    }

    /// The error for a value that cannot be used.
    pub(super) fn wrong(&self, key: &str, given: &str, expected: &str) -> ConfigError {
        // A list's elements came from where the list came from.
        let whole = key.split('[').next().unwrap_or(key);
        ConfigError::Wrong {
            origin: self.origins.get(whole).map_or("the defaults", String::as_str).to_owned(),
            key: key.to_owned(),
            given: given.to_owned(),
            expected: expected.to_owned(),
        }
    }

    /// All durations, by key, in milliseconds.
    pub(super) fn durations(&self) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        for (section, keys) in keys::defaults() {
            let toml::Value::Table(keys) = keys else { continue };
            for key in keys.keys().filter(|key| key.ends_with("_ms")) {
                let path = format!("{section}.{key}");
                found.extend(self.merged.get::<u64>(&path).ok().map(|value| (path, value)));
            }
        }
        found
    }
}

/// The environment's layer as sections: `door.open_for_ms` becomes `open_for_ms` in `door`.
fn nested(layer: Map<String, Value>) -> Map<String, Value> {
    let mut sections: Map<String, Value> = Map::new();
    for (path, value) in layer {
        let Some((section, key)) = path.split_once('.') else {
            sections.insert(path, value);
            continue;
        };
        let entry = sections
            .entry(section.to_owned())
            .or_insert_with(|| Value::new(None, ValueKind::Table(Map::new())));
        if let ValueKind::Table(table) = &mut entry.kind {
            table.insert(key.to_owned(), value);
        }
    }
    sections
}

/// A layer that is already laid out in sections.
#[derive(Debug, Clone)]
struct Nested(Map<String, Value>);

impl config::Source for Nested {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// Holds one layer against the known keys.
struct Check<'a> {
    origin: &'a str,
    root: &'a toml::Table,
    origins: &'a mut HashMap<String, String>,
}

impl Check<'_> {
    fn table(
        &mut self,
        layer: &Map<String, Value>,
        known: &toml::Table,
        section: &str,
    ) -> Result<(), ConfigError> {
        let mut names: Vec<&String> = layer.keys().collect();
        names.sort();
        for name in names {
            let key = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
            match known.get(name) {
                None => {
                    let hint = hint(name, section, known, self.root);
                    return Err(ConfigError::Unknown { origin: self.origin.to_owned(), key, hint });
                }
                Some(toml::Value::Table(inner)) => match &layer[name].kind {
                    ValueKind::Table(table) => self.table(table, inner, &key)?,
                    other => return Err(self.wrong(&key, other, "a section of keys")),
                },
                Some(default) => {
                    self.value(&key, &layer[name].kind, default)?;
                    self.origins.insert(key, self.origin.to_owned());
                }
            }
        }
        Ok(())
    }

    fn value(
        &self,
        key: &str,
        given: &ValueKind,
        default: &toml::Value,
    ) -> Result<(), ConfigError> {
        use toml::Value as T;
        let ok = match (default, given) {
            (T::Boolean(_), ValueKind::Boolean(_))
            | (T::String(_), ValueKind::String(_))
            | (T::Array(_), ValueKind::Array(_))
            | (T::Integer(_) | T::Float(_), ValueKind::U64(_)) => true,
            (T::Integer(_), ValueKind::I64(n)) => *n >= 0,
            (T::Float(_), ValueKind::I64(_)) => true,
            (T::Float(_), ValueKind::Float(f)) => f.is_finite(),
            // A name that looks like a number, from the environment.
            (T::String(_), ValueKind::I64(_) | ValueKind::Float(_) | ValueKind::Boolean(_)) => {
                self.origin == ENVIRONMENT
            }
            _ => false,
        };
        let expected = match default {
            T::Boolean(_) => "true or false",
            T::String(_) => "a text in quotes",
            T::Array(_) => "a list in brackets",
            T::Integer(_) if key.ends_with("_ms") => "a whole number of milliseconds",
            T::Integer(_) => "a whole number, not negative",
            _ => "a number",
        };
        if ok { Ok(()) } else { Err(self.wrong(key, given, expected)) }
    }

    fn wrong(&self, key: &str, given: &ValueKind, expected: &str) -> ConfigError {
        let given = match given {
            ValueKind::Nil => "nothing".to_owned(),
            ValueKind::Boolean(b) => b.to_string(),
            ValueKind::String(text) => format!("\"{text}\""),
            ValueKind::Table(_) => "a section".to_owned(),
            ValueKind::Array(_) => "a list".to_owned(),
            number => number.to_string(),
        };
        ConfigError::Wrong {
            origin: self.origin.to_owned(),
            key: key.to_owned(),
            given,
            expected: expected.to_owned(),
        }
    }
}

/// What somebody who wrote `name` probably meant.
fn hint(name: &str, section: &str, known: &toml::Table, root: &toml::Table) -> String {
    let stem = |key: &str| key.rsplit_once('_').map_or(key, |(stem, _)| stem).to_owned();
    let unit = known.keys().find(|key| {
        let unit = key.ends_with("_ms") || key.ends_with("_mb");
        unit && (stem(key) == stem(name) || stem(key) == name)
    });
    if let Some(key) = unit {
        let unit = if key.ends_with("_ms") { "milliseconds" } else { "megabytes" };
        return format!("; write `{key}`, in {unit}");
    }
    let elsewhere = root.iter().find(|(other, keys)| {
        *other != section && keys.as_table().is_some_and(|keys| keys.contains_key(name))
    });
    if let Some((other, _)) = elsewhere {
        return format!("; it belongs in [{other}]");
    }
    let nearest = known
        .keys()
        .map(|key| (strsim::jaro_winkler(key, name), key))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, key)) if likeness > 0.8 => format!("; did you mean `{key}`?"),
        _ => {
            let all = known.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            format!("; there are: {all}")
        }
    }
}
