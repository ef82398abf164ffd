//! Container ids: what the user may call a container.

use std::fmt;
use std::str::FromStr;

use hull_protocol::paths::{MAX_ID_LENGTH, is_valid_id};
use serde::{Deserialize, Serialize};

/// How the names of the folders begin that hull has for itself beside the containers': no id does.
pub const RESERVED: Reserved = Reserved {
    creating: ".creating-",
    deleting: ".deleting-",
    filters: ".seccomp",
};

/// The beginnings of the names of hull's own folders below `--root`.
#[derive(Clone, Copy, Debug)]
pub struct Reserved {
    /// Of a container's folder until it is whole.
    pub creating: &'static str,
    /// Of a container's folder while it is being removed.
    pub deleting: &'static str,
    /// Of the folder of compiled seccomp filters.
    pub filters: &'static str,
}

/// What can't be a container's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It can't name a folder.
    #[error(
        "invalid container ID format: {0:?} (letters, digits and \"_+,-.\" only, at most {MAX_ID_LENGTH})"
    )]
    Invalid(String),
    /// It would be the name of a folder of hull's own.
    #[error(
        "invalid container ID format: {id:?} (names that begin with {name:?} are hull's own; take another)"
    )]
    Reserved {
        /// What was asked for.
        id: String,
        /// How hull's names begin.
        name: &'static str,
    },
}

/// A container's id: runc's rule, but for the names that hull has for folders of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let reserved = [RESERVED.creating, RESERVED.deleting, RESERVED.filters];
        match reserved.into_iter().find(|name| text.starts_with(name)) {
            Some(name) => Err(IdError::Reserved {
                id: text.to_owned(),
                name,
            }),
            None if is_valid_id(text) => Ok(Self(text.to_owned())),
            None => Err(IdError::Invalid(text.to_owned())),
        }
    }
}

impl TryFrom<String> for ContainerId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> String {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runcs_ids_pass() {
        let longest = "a".repeat(255);
        for id in [
            "a",
            "web-1",
            "pod_1.container+2",
            "-a",
            "..a",
            ".hidden",
            "a,b",
            &longest,
        ] {
            assert!(id.parse::<ContainerId>().is_ok(), "{id}");
        }
    }

    #[test]
    fn ids_that_leave_the_store_or_no_file_can_have_are_refused() {
        let long = "a".repeat(256);
        for id in ["", ".", "..", "a/b", "/", "a b", "ä", "a\0", &long] {
            assert!(id.parse::<ContainerId>().is_err(), "{id:?}");
        }
    }

    #[test]
    fn no_container_is_taken_for_a_folder_of_hulls_own() {
        for id in [".creating-a-1", ".deleting-", ".seccomp"] {
            let refused = id.parse::<ContainerId>();
            assert!(matches!(refused, Err(IdError::Reserved { .. })));
        }
    }

    proptest! {
        #[test]
        fn an_accepted_id_is_one_path_component(text in ".{0,40}") {
            if let Ok(id) = text.parse::<ContainerId>() {
                let mut parts = std::path::Path::new(id.as_str()).components();
                prop_assert!(matches!(parts.next(), Some(std::path::Component::Normal(_))));
                prop_assert!(parts.next().is_none());
            }
        }
    }
}
