//! The five capability sets of a process.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use rustix::io;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_thread_res_gid, set_thread_res_uid,
};

use crate::error::Failure;

/// The capability sets of config.json.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sets {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

/// Changes the caller's user and group, and keeps all of its capabilities.
pub fn change_ids_keeping_capabilities(uid: Uid, gid: Gid) -> Result<(), Failure> {
    set_keep_capabilities(true).map_err(Failure::io("keep the capabilities"))?;
    set_thread_res_gid(gid, gid, gid).map_err(Failure::field("process.user.gid"))?;
    set_thread_res_uid(uid, uid, uid).map_err(Failure::field("process.user.uid"))?;
    set_keep_capabilities(false).map_err(Failure::io("keep the capabilities"))?;
    make_permitted_effective()
}

/// Makes all permitted capabilities effective.
pub fn make_permitted_effective() -> Result<(), Failure> {
    let all = capabilities(None).map_err(Failure::io("read the capabilities"))?;
    let raised = CapabilitySets {
        effective: all.permitted,
        ..all
    };
    set_capabilities(None, raised).map_err(Failure::io("raise the capabilities"))
}

impl Sets {
    /// The sets of config.json; what isn't given is empty, as with runc.
    pub fn of(given: Option<&LinuxCapabilities>) -> Self {
        let set = |pick: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
            given
                .and_then(|caps| pick(caps).as_ref())
                .into_iter()
                .flatten()
                .filter_map(capability)
                .fold(CapabilitySet::empty(), |set, one| set | one)
        };
        Self {
            bounding: set(LinuxCapabilities::bounding),
            effective: set(LinuxCapabilities::effective),
            permitted: set(LinuxCapabilities::permitted),
            inheritable: set(LinuxCapabilities::inheritable),
            ambient: set(LinuxCapabilities::ambient),
        }
    }

    /// Calls `work` with no more effective capabilities than the process will have.
    pub fn with_effective<T>(&self, work: impl FnOnce() -> T) -> Result<T, Failure> {
        let all = capabilities(None).map_err(Failure::io("read the capabilities"))?;
        let held = CapabilitySets {
            effective: self.effective & all.permitted,
            ..all
        };
        set_capabilities(None, held).map_err(Failure::io("set the effective capabilities"))?;
        let result = work();
        set_capabilities(None, all).map_err(Failure::io("set the effective capabilities"))?;
        Ok(result)
    }

    /// Drops every capability from the bounding set that config.json's bounding set lacks.
    pub fn drop_bounding(&self) -> Result<(), Failure> {
        for capability in all_capabilities().filter(|c| !self.bounding.contains(*c)) {
            match remove_capability_from_bounding_set(capability) {
                // The kernel knows no capability of this number, nor any higher one.
                Err(io::Errno::INVAL) => break,
                result => result.map_err(Failure::field("process.capabilities.bounding"))?,
            }
        }
        Ok(())
    }

    /// Sets the four other sets.
    ///
    /// # Errors
    /// When the kernel refuses one of them. The host has checked that config.json asks for no such sets
    /// (capset(2), prctl(2) `PR_CAP_AMBIENT`).
    pub fn apply(&self) -> Result<(), Failure> {
        let sets = CapabilitySets {
            effective: self.effective,
            permitted: self.permitted,
            inheritable: self.inheritable,
        };
        set_capabilities(None, sets).map_err(Failure::field("process.capabilities"))?;
        clear_ambient_capability_set().map_err(Failure::io("clear the ambient capabilities"))?;
        for capability in all_capabilities().filter(|c| self.ambient.contains(*c)) {
            configure_capability_in_ambient_set(capability, true)
                .map_err(Failure::field("process.capabilities.ambient"))?;
        }
        Ok(())
    }
}

/// A capability by its name, which oci-spec and rustix have in common apart from the prefix `CAP_`.
fn capability(named: &Capability) -> Option<CapabilitySet> {
    CapabilitySet::from_name(&named.to_string())
}

fn all_capabilities() -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_capabilities_in_config_json_there_are_none() {
        let sets = Sets::of(None);
        assert!(sets.bounding.is_empty() && sets.permitted.is_empty());
    }

    #[test]
    fn every_capability_is_known_by_its_name() {
        let numbers: Vec<_> = all_capabilities().take(41).collect();
        for one in numbers {
            let (name, _) = one.iter_names().next().expect("a name");
            let parsed: Capability =
                serde_json::from_value(format!("CAP_{name}").into()).expect(name);
            assert_eq!(capability(&parsed), Some(one));
        }
    }

    #[test]
    fn each_set_has_its_own_capabilities() {
        let json = r#"{"bounding":["CAP_CHOWN","CAP_KILL"],"effective":["CAP_KILL"]}"#;
        let given: LinuxCapabilities = serde_json::from_str(json).expect("valid JSON");
        let sets = Sets::of(Some(&given));
        assert_eq!(sets.bounding, CapabilitySet::CHOWN | CapabilitySet::KILL);
        assert_eq!(sets.effective, CapabilitySet::KILL);
        assert!(sets.ambient.is_empty());
    }
}
