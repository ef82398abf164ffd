//! Reading the configuration's file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{AnnotationError, Config};

/// Where the configuration is, unless `--config` names another file.
const DEFAULT_PATH: &str = "/etc/hull/hull.toml";

/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It isn't TOML.
    #[error("configuration {}, line {line}: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        why: String,
    },
    /// An annotation that would change it.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// A key that isn't one, or a value that its key doesn't take.
    #[error("configuration {}, line {line}: {key}: {why}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Config {
    /// Reads the file that the user has named, or the default one, which need not be there.
    ///
    /// # Errors
    /// When a named file isn't there, or the file isn't a configuration.
    pub fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_string(&mut text));
        match read {
            Ok(_) => parse(&text, path),
            Err(e) if e.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }
}

fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let line = |error: &toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.as_bytes().iter().take(start);
        1 + before.filter(|byte| **byte == b'\n').count()
    };
    let syntax = |error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line(&error),
        why: one_line(error.message()),
    };
    let reader = toml::Deserializer::parse(text).map_err(syntax)?;
    serde_path_to_error::deserialize(reader).map_err(|error| ConfigError::Key {
        path: path.to_owned(),
        line: line(error.inner()),
        key: error.path().to_string(),
        why: one_line(error.inner().message()),
    })
}

fn one_line(text: &str) -> String {
    text.trim_end().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let error = parse(text, Path::new("/c.toml")).expect_err("refused");
        crate::chain::chain(&error)
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let config = parse("max_vcpus = 2\n", Path::new("/c.toml")).expect("taken");
        let max_vcpus = std::num::NonZeroU8::new(2).expect("not zero");
        let expected = Config {
            max_vcpus,
            ..Config::default()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn a_refusal_names_file_line_and_key() {
        let cases = [
            (
                "# x\nbot_timeout = 3\n",
                "/c.toml, line 2: bot_timeout: unknown field",
            ),
            ("\n\nkernel = 3\n", "/c.toml, line 3: kernel: invalid type"),
            (
                "max_vcpus = 65",
                "line 1: max_vcpus: 65 is not between 1 and 64",
            ),
            ("max_vcpus = -1", "line 1: max_vcpus: "),
            (
                "default_memory = 1",
                "line 1: default_memory: 1 is not between 128 and",
            ),
            ("[boot]\ntimeout = 3", "line 1: boot: unknown field"),
            (
                "kernel = \"a\"\nkernel = \"b\"",
                "/c.toml, line 2: duplicate key",
            ),
            ("kernel = ", "/c.toml, line 1: "),
            (
                "annotations = [\"kernel\", \"annotations\"]",
                "line 1: annotations: \"annotations\" is not a key that",
            ),
        ];
        for (text, expected) in cases {
            let said = refusal(text);
            assert!(said.contains(expected), "{text:?}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("none.toml");
        assert!(matches!(
            Config::load(Some(&path)),
            Err(ConfigError::Read { .. })
        ));
    }
}
