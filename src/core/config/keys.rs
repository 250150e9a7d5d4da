//! A setting of `luthier.toml` as data, and the macro that makes structs and table from the declarations.

use std::fmt;

use toml::Value;

use super::fields::Fault;
use super::kinds::Kind;
use super::problems::Source;
use super::raw::Located;
use super::sections::{Config, KEYS};
use super::toml_text::literal;

/// One setting of `luthier.toml`.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its dotted name, such as `train.learning_rate`.
    pub path: &'static str,
    /// What it accepts.
    pub kind: Kind,
    /// What it means, in one line.
    pub doc: &'static str,
    /// When a change of it reaches a run that is live.
    pub change: Change,
    /// Whether it must be given.
    pub required: bool,
    pub(super) read: fn(&mut Config, &Located, &Kind, &Source) -> Result<(), Fault>,
    pub(super) write: fn(&Config) -> Value,
    pub(super) copy: fn(&mut Config, &Config),
}

impl Key {
    /// The section, such as `train` or `train.early_stop`.
    pub fn section(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// The name within the section, such as `learning_rate`.
    pub fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }

    /// The default as TOML; that of a required key is empty.
    pub fn default(&self) -> String {
        literal(&(self.write)(&Config::default()))
    }

    /// Whether it lies below a top-level section.
    pub(super) fn is_in(&self, section: &str) -> bool {
        self.path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
    }
}

/// The key of that dotted name.
pub fn key(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// When a changed key reaches a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// From the next step, frame or reply.
    Now,
    /// From the next evaluation.
    NextEvaluation,
    /// When it is resumed: where something is that stays the same.
    NextResume,
    /// Only in a new run.
    NewRun,
    /// Not in this run, for this reason.
    Refused(&'static str),
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => formatter.pad("now"),
            Self::NextEvaluation => formatter.pad("next evaluation"),
            Self::NextResume => formatter.pad("next resume"),
            Self::NewRun => formatter.pad("new run"),
            Self::Refused(reason) => write!(formatter, "refused: {reason}"),
        }
    }
}

/// A key that earlier versions wrote.
#[derive(Debug)]
pub(super) struct RemovedKey {
    pub path: &'static str,
    /// The one value with which runs of those versions still open.
    pub value: &'static str,
    pub why: &'static str,
}

pub(super) const REMOVED_KEYS: [RemovedKey; 1] =
    [RemovedKey { path: "train.optimizer", value: "adamw", why: "AdamW is the only optimizer" }];

/// Makes [`Config`], a struct for each section with its default, [`KEYS`] and the list of sections.
macro_rules! settings {
    ($(
        #[doc = $about:literal]
        $section:ident: $Section:ident {
            $(
                #[doc = $doc:literal]
                $field:ident $(as $name:literal)?: $type:ty $([$kind:expr])? $(= $default:expr)?, $change:expr;
            )+
        }
    )+) => {
        /// Everything a run uses, every value checked. Paths are as written: relative ones start at the project folder.
        ///
        /// [`Config::default`] has every default; its `model.path` and `data.train` are empty, since those two have
        /// none.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Config {
            $( #[doc = $about] pub $section: $Section, )+
        }

        $(
            #[doc = $about]
            #[derive(Clone, Debug, PartialEq)]
            pub struct $Section {
                $( #[doc = $doc] pub $field: $type, )+
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $( $field: settings!(@default $($default)?), )+ }
                }
            }
        )+

        /// Every key, in the order in which files are written.
        pub static KEYS: &[Key] = &[ $($(
            Key {
                path: concat!(stringify!($section), ".", settings!(@name $field $($name)?)),
                kind: settings!(@kind $type $(, $kind)?),
                doc: $doc.trim_ascii(),
                change: $change,
                required: settings!(@required $($default)?),
                read: |config, value, kind, source| {
                    config.$section.$field = Field::read(value, kind, source)?;
                    Ok(())
                },
                write: |config| Field::write(&config.$section.$field),
                copy: |config, from| config.$section.$field.clone_from(&from.$section.$field),
            },
        )+)+ ];

        /// The sections with their meaning, in the order in which files are written.
        pub(super) static SECTIONS: &[(&str, &str)] = &[
            $( (stringify!($section), $about.trim_ascii()), )+
        ];
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $name:literal) => { $name };
    (@kind $type:ty) => { <$type as Field>::KIND };
    (@kind $type:ty, $kind:expr) => { $kind };
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
    (@required) => { true };
    (@required $default:expr) => { false };
}

pub(super) use settings;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::super::sections::SECTIONS;
    use super::*;

    #[test]
    fn every_key_is_declared_once_under_its_section() {
        let paths: HashSet<_> = KEYS.iter().map(|key| key.path).collect();
        assert_eq!(paths.len(), KEYS.len());
        let mut sections: Vec<_> = KEYS.iter().filter_map(|key| key.path.split('.').next()).collect();
        sections.dedup();
        assert_eq!(sections, SECTIONS.iter().map(|(section, _)| *section).collect::<Vec<_>>());
        assert_eq!(key("train.early_stop.patience").map(Key::section), Some("train.early_stop"));
        assert_eq!(key("train.early_stop.patience").map(Key::name), Some("patience"));
        assert!(key("train").is_none());
    }

    #[test]
    fn docs_fit_beside_their_key() {
        for key in KEYS {
            assert!(!key.doc.is_empty() && key.doc.len() <= 72, "{}: {}", key.path, key.doc.len());
            assert!(!key.doc.contains('\n'), "{}", key.path);
        }
    }

    #[test]
    fn every_default_is_accepted() {
        let required = ["model.path=m".to_owned(), "data.train=t".to_owned()];
        for key in KEYS.iter().filter(|key| !key.required) {
            let given = format!("{}={}", key.path, key.default());
            let set = [&required[..], std::slice::from_ref(&given)].concat();
            let config = Config::parse("", Path::new("luthier.toml"), &set)
                .unwrap_or_else(|problems| panic!("{problems}"));
            assert_eq!(config.get_text(key.path), Some(key.default()), "{given}");
        }
        let missing: Vec<_> = KEYS.iter().filter(|key| key.required).map(|key| key.path).collect();
        assert_eq!(missing, ["model.path", "data.train"]);
    }
}
