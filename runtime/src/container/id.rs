//! Container ids: what the user may call a container.

use std::fmt;
use std::str::FromStr;

use hull_protocol::paths::LONGEST_ID;
use serde::{Deserialize, Serialize};

use super::ContainerError;

/// A container's id: one path component, made of the characters that runc allows.
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
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        // A leading dot is also kept for the store's own folders.
        let named = !text.is_empty() && text.len() <= LONGEST_ID && !text.starts_with('.');
        if named && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ContainerError::InvalidId(text.to_owned()))
        }
    }
}

impl TryFrom<String> for ContainerId {
    type Error = ContainerError;

    fn try_from(text: String) -> Result<Self, ContainerError> {
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
    fn ordinary_ids_pass() {
        for id in ["a", "web-1", "3f2a", "pod_1.container+2"] {
            assert!(id.parse::<ContainerId>().is_ok(), "{id}");
        }
    }

    #[test]
    fn ids_that_leave_the_store_or_no_file_can_have_are_refused() {
        let long = "a".repeat(LONGEST_ID + 1);
        for id in [
            "", ".", "..", "a/b", "/", ".hidden", "a b", "ä", "a\0", &long,
        ] {
            assert!(id.parse::<ContainerId>().is_err(), "{id:?}");
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
