//! What runtimes make of values of config.json that the runtime-spec leaves open. [`super::read`] has
//! made JSON of the file by then, and reads it into types after; what is refused, others say.

use oci_spec::runtime::Capability;
use serde_json::{Value, json};

/// The sets of `process.capabilities`.
const SETS: [&str; 5] = [
    "bounding",
    "effective",
    "inheritable",
    "permitted",
    "ambient",
];

/// Takes out capabilities that nobody knows, with a warning: an engine that is newer than the runtime asks
/// for what can't be given, and its container is to run without.
pub fn forget_unknown_capabilities(config: &mut Value) {
    for set in SETS {
        let Some(Value::Array(names)) = config.pointer_mut(&format!("/process/capabilities/{set}"))
        else {
            continue;
        };
        names.retain(|name| {
            let known =
                !name.is_string() || serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known {
                log::warn!(
                    "config.json: process.capabilities.{set}: {name}: no such capability, ignored"
                );
            }
            known
        });
    }
}

/// Takes out ambient capabilities that can't be raised: the kernel wants each to be permitted and
/// inheritable, and with runc the process goes without. There is a warning where the program would have
/// had them: root's has all that is permitted in any case, so that `runc spec` lists some in vain.
pub fn forget_lone_ambient_capabilities(config: &mut Value) {
    let level = lone_ambient_level(config);
    let Some(Value::Object(sets)) = config.pointer_mut("/process/capabilities") else {
        return;
    };
    let known = |name: &Value| serde_json::from_value::<Capability>(name.clone()).ok();
    let [permitted, inheritable] = ["permitted", "inheritable"].map(|set| -> Vec<_> {
        let names = sets.get(set).and_then(Value::as_array);
        names.into_iter().flatten().filter_map(known).collect()
    });
    let Some(Value::Array(ambient)) = sets.get_mut("ambient") else {
        return;
    };
    let raised = |name: &Value| {
        known(name).is_none_or(|c| permitted.contains(&c) && inheritable.contains(&c))
    };
    let (kept, lone): (Vec<_>, Vec<_>) = ambient.drain(..).partition(raised);
    *ambient = kept;
    if !lone.is_empty() {
        let lone = lone.iter().filter_map(Value::as_str).collect::<Vec<_>>();
        log::log!(
            level,
            "config.json: process.capabilities.ambient: {}: not both permitted and inheritable, ignored",
            lone.join(", ")
        );
    }
}

fn lone_ambient_level(config: &Value) -> log::Level {
    match config["process"]["user"]["uid"].as_u64() {
        Some(1..) => log::Level::Warn,
        _ => log::Level::Debug,
    }
}

/// Maps every id to itself in a new user namespace for which config.json maps none.
pub fn map_identity(config: &mut Value) {
    let is_new = |n: &Value| n["type"] == "user" && n["path"].as_str().is_none_or(str::is_empty);
    let mapped =
        |linux: &Value, ids: &str| linux[ids].as_array().is_some_and(|maps| !maps.is_empty());
    let Some(linux) = config.get_mut("linux") else {
        return;
    };
    if linux["namespaces"]
        .as_array()
        .is_some_and(|all| all.iter().any(is_new))
        && !mapped(linux, "uidMappings")
        && !mapped(linux, "gidMappings")
    {
        for ids in ["uidMappings", "gidMappings"] {
            linux[ids] = json!([{"containerID": 0, "hostID": 0, "size": u32::MAX}]);
        }
    }
}

/// Takes a limit of no processes for none, as runc does: older engines write 0 for what isn't set.
pub fn forget_pids_limit_of_zero(config: &mut Value) {
    if let Some(resources) = config
        .pointer_mut("/linux/resources")
        .and_then(Value::as_object_mut)
        && resources.get("pids").is_some_and(|pids| pids["limit"] == 0)
    {
        resources.remove("pids");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_capabilities_are_forgotten() {
        let mut config = json!({"process": {"capabilities": {"bounding": ["CAP_KILL", "CAP_NEW", "new"], "ambient": [1]}}});
        forget_unknown_capabilities(&mut config);
        let expected = json!({"bounding": ["CAP_KILL"], "ambient": [1]});
        assert_eq!(config["process"]["capabilities"], expected);
    }

    #[test]
    fn what_is_ambient_is_permitted_and_inheritable() {
        let mut config = json!({"process": {"capabilities": {
            "permitted": ["CAP_KILL", "CAP_CHOWN"], "inheritable": ["kill", "CAP_SETUID"],
            "ambient": ["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", 1],
        }}});
        forget_lone_ambient_capabilities(&mut config);
        let sets = &config["process"]["capabilities"];
        assert_eq!(sets["ambient"], json!(["CAP_KILL", 1]));
    }

    #[test]
    fn an_ambient_capability_is_missed_by_those_who_are_not_root() {
        let level = |user| lone_ambient_level(&json!({"process": {"user": user}}));
        assert_eq!(level(json!({"uid": 1000})), log::Level::Warn);
        assert_eq!(level(json!({"uid": 0})), log::Level::Debug);
        assert_eq!(level(Value::Null), log::Level::Debug);
    }

    #[test]
    fn a_pids_limit_of_zero_is_none() {
        let of = |limit: i32| {
            let mut config = json!({"linux": {"resources": {"pids": {"limit": limit}}}});
            forget_pids_limit_of_zero(&mut config);
            config["linux"]["resources"]["pids"].clone()
        };
        assert_eq!(of(0), Value::Null);
        assert_eq!(of(7)["limit"], 7);
    }

    #[test]
    fn a_user_namespace_without_mappings_maps_each_id_to_itself() {
        let of = |linux: Value| {
            let mut config = json!({"linux": linux});
            map_identity(&mut config);
            config["linux"]["gidMappings"].clone()
        };
        let user = json!([{"type": "user"}]);
        assert_eq!(of(json!({"namespaces": user}))[0]["size"], u32::MAX);
        assert_eq!(of(json!({"namespaces": [{"type": "pid"}]})), Value::Null);
        assert_eq!(
            of(json!({"namespaces": user, "uidMappings": [{"size": 1}]})),
            Value::Null
        );
    }
}
