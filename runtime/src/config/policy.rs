//! What an operator decides about requests of engines that a VM can't meet to the letter.

use serde::{Deserialize, Serialize};

/// What becomes of a container that is to share namespaces of the host, which a VM can't.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostNamespaces {
    /// It is refused.
    Refuse,
    /// It is refused if one of them is the network; others are the guest's, with a warning.
    #[default]
    RefuseNetwork,
    /// All of them are the guest's, with a warning.
    Isolate,
}

/// What becomes of the devices of a privileged container, for which an engine lists all of the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrivilegedDevices {
    /// They are taken for what they are: the host's, of which most are refused.
    Refuse,
    /// It has those of them that a guest has.
    #[default]
    Guest,
    /// It has the host's block devices as well.
    GuestAndDisks,
}
