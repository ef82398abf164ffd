//! Whose the container's files are on the host, where hull's user isn't root.
//!
//! For root, the guest's kernel maps the ids of a user namespace, and the VMM process writes files as
//! whoever the guest says. An ordinary user's VMM process can't: it is root in a user namespace of the
//! host, with config.json's mappings, and the guest maps the same ids to themselves.

use hull_vmm::jail::userns::IdMap;
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceType, Spec};

use super::SpecError;

/// The mappings of a user namespace on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserNamespace {
    /// Of users.
    pub uids: Vec<IdMap>,
    /// Of groups.
    pub gids: Vec<IdMap>,
}

/// Takes the mappings from the guest's config.json to the host's user namespace.
///
/// # Errors
/// When config.json has none: an ordinary user has to be root somewhere.
pub fn take(spec: &mut Spec) -> Result<UserNamespace, SpecError> {
    let mut linux = spec.linux().clone().unwrap_or_default();
    let is_new =
        linux.namespaces().iter().flatten().any(|namespace| {
            namespace.typ() == LinuxNamespaceType::User && namespace.path().is_none()
        });
    if !is_new {
        return Err(SpecError::invalid(
            "linux.namespaces",
            "without root a container needs a new user namespace, as `hull spec --rootless` writes it",
        ));
    }
    let uids = linux.uid_mappings().clone().unwrap_or_default();
    let gids = linux.gid_mappings().clone().unwrap_or_default();
    linux.set_uid_mappings(Some(to_themselves(&uids)));
    linux.set_gid_mappings(Some(to_themselves(&gids)));
    spec.set_linux(Some(linux));
    Ok(UserNamespace {
        uids: ranges(&uids),
        gids: ranges(&gids),
    })
}

fn to_themselves(maps: &[LinuxIdMapping]) -> Vec<LinuxIdMapping> {
    let same = |map: &LinuxIdMapping| {
        LinuxIdMappingBuilder::default()
            .container_id(map.container_id())
            .host_id(map.container_id())
            .size(map.size())
            .build()
            .expect("all of its fields are set")
    };
    maps.iter().map(same).collect()
}

/// In the words of user_namespaces(7).
pub fn ranges(maps: &[LinuxIdMapping]) -> Vec<IdMap> {
    let range = |map: &LinuxIdMapping| IdMap {
        inside: map.container_id(),
        outside: map.host_id(),
        count: map.size(),
    };
    maps.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn range(inside: u32, outside: u32, count: u32) -> IdMap {
        IdMap {
            inside,
            outside,
            count,
        }
    }

    fn spec(namespaces: serde_json::Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "linux": {
                "namespaces": namespaces,
                "uidMappings": [
                    {"containerID": 0, "hostID": 1000, "size": 1},
                    {"containerID": 1, "hostID": 100000, "size": 9},
                ],
                "gidMappings": [{"containerID": 0, "hostID": 100, "size": 1}],
            },
        }))
        .expect("a spec")
    }

    #[test]
    fn the_host_maps_and_the_guest_has_the_same_ids() {
        let mut spec = spec(json!([{"type": "user"}]));
        let host = take(&mut spec).expect("a user namespace");
        assert_eq!(host.uids, [range(0, 1000, 1), range(1, 100_000, 9)]);
        assert_eq!(host.gids, [range(0, 100, 1)]);
        let linux = spec.linux().clone().expect("linux");
        let guest = ranges(linux.uid_mappings().as_deref().unwrap_or_default());
        assert_eq!(guest, [range(0, 0, 1), range(1, 1, 9)]);
    }

    #[test]
    fn without_a_user_namespace_it_is_refused_by_name() {
        let refused = take(&mut spec(json!([{"type": "mount"}]))).expect_err("refused");
        assert!(
            refused.to_string().contains("linux.namespaces"),
            "{refused}"
        );
    }
}
