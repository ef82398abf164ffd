//! `linux.resources.devices`: of the rules about a device, the last one that names an access counts.
//!
//! libcgroups makes a program of the rules, and lets the last rule decide that names *all* that is asked
//! for at once. By that, opening for reading and writing escapes a rule that denies writing, and fails
//! where one rule allows reading and another one writing. [`settle`] writes the rules anew, so that both
//! come to the same: for each set of devices one rule, with all that may be done, and, unless that is
//! everything, one before it that denies the rest. libcgroups adds runc's own rules to them, and no filter
//! where there are none at all.

use std::collections::BTreeSet;

use oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceType};

/// All that can be done with a device: reading, writing, making nodes.
const ALL: &str = "rwm";

/// Devices of one type, by their numbers; without one, all of them. In order, what has fewer numbers
/// comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Devices {
    numbers: usize,
    block: bool,
    major: Option<i64>,
    minor: Option<i64>,
}

impl Devices {
    fn new(block: bool, major: Option<i64>, minor: Option<i64>) -> Self {
        Self {
            numbers: usize::from(major.is_some()) + usize::from(minor.is_some()),
            block,
            major,
            minor,
        }
    }

    /// What a rule is about, unless it is about all devices.
    fn of(rule: &LinuxDeviceCgroup) -> Option<Self> {
        let given = |number: Option<i64>| number.filter(|number| *number >= 0);
        let block = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::B => true,
            LinuxDeviceType::C | LinuxDeviceType::U => false,
            LinuxDeviceType::P | LinuxDeviceType::A => return None,
        };
        Some(Self::new(block, given(rule.major()), given(rule.minor())))
    }

    /// The devices of both.
    fn common(self, other: Self) -> Option<Self> {
        let both = |a: Option<i64>, b: Option<i64>| match (a, b) {
            (Some(a), Some(b)) if a != b => None,
            (a, b) => Some(a.or(b)),
        };
        let same_type = self.block == other.block;
        let major = both(self.major, other.major).filter(|_| same_type)?;
        Some(Self::new(self.block, major, both(self.minor, other.minor)?))
    }

    fn rule(self, allow: bool, access: String) -> LinuxDeviceCgroup {
        let mut rule = bare_rule(allow, access);
        rule.set_typ(Some(if self.block {
            LinuxDeviceType::B
        } else {
            LinuxDeviceType::C
        }))
        .set_major(self.major)
        .set_minor(self.minor);
        rule
    }
}

/// Writes the rules of a config.json anew.
pub(super) fn settle(linux: &mut Linux) {
    let mut resources = linux.resources().clone().unwrap_or_default();
    let rules = resources.devices().as_deref().unwrap_or_default();
    resources.set_devices(Some(settled(rules)));
    linux.set_resources(Some(resources));
}

fn settled(rules: &[LinuxDeviceCgroup]) -> Vec<LinuxDeviceCgroup> {
    // As with runc, a rule about all devices is about all access, and ends what came before it.
    let start = rules.iter().rposition(|rule| Devices::of(rule).is_none());
    let allowed = start.is_some_and(|start| rules[start].allow());
    let rules = &rules[start.map_or(0, |start| start + 1)..];

    let named: BTreeSet<_> = rules.iter().filter_map(Devices::of).collect();
    let common = named.iter().flat_map(|a| {
        let named = &named;
        named.iter().filter_map(|b| a.common(*b))
    });
    let mut settled = vec![bare_rule(allowed, ALL.to_owned())];
    for devices in common.collect::<BTreeSet<_>>() {
        let may = |access: &char| {
            let about = rules.iter().rev().find(|rule| {
                let covers =
                    Devices::of(rule).is_some_and(|of| of.common(devices) == Some(devices));
                covers && access_of(rule).contains(*access)
            });
            about.map_or(allowed, LinuxDeviceCgroup::allow)
        };
        let access: String = ALL.chars().filter(may).collect();
        if access != ALL {
            settled.push(devices.rule(false, ALL.to_owned()));
        }
        if !access.is_empty() {
            settled.push(devices.rule(true, access));
        }
    }
    settled
}

/// What a rule is about; if it doesn't say, everything. Letters that mean nothing are in no answer.
fn access_of(rule: &LinuxDeviceCgroup) -> &str {
    rule.access()
        .as_deref()
        .filter(|access| !access.is_empty())
        .unwrap_or(ALL)
}

/// A rule about all devices.
fn bare_rule(allow: bool, access: String) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(LinuxDeviceType::A))
        .set_major(None)
        .set_minor(None)
        .set_access(Some(access));
    rule
}

#[cfg(test)]
mod tests {
    use super::super::Number;
    use super::*;
    use serde_json::{Value, json};

    fn rule(allow: bool, text: &str, access: &str) -> Value {
        let [kind, numbers] = text.split(' ').collect::<Vec<_>>()[..] else {
            return json!({ "allow": allow, "access": access });
        };
        let (major, minor) = numbers.split_once(':').expect("two numbers");
        let number = |text: &str| text.parse::<i64>().unwrap_or(-1);
        json!({
            "allow": allow, "type": kind, "access": access,
            "major": number(major), "minor": number(minor),
        })
    }

    /// Whether libcgroups' program allows all of `access` at once, of these rules written anew.
    fn may(rules: &[Value], block: bool, (major, minor): Number, access: &str) -> bool {
        let mut linux: Linux =
            serde_json::from_value(json!({ "resources": { "devices": rules } })).expect("valid");
        settle(&mut linux);
        let settled = linux.resources().clone().and_then(|r| r.devices().clone());
        let settled = settled.expect("rules");
        let device = Devices::new(block, Some(major), Some(minor));
        let decides = settled.iter().rev().find(|rule| {
            let about = Devices::of(rule).is_none_or(|of| of.common(device) == Some(device));
            about && access.chars().all(|one| access_of(rule).contains(one))
        });
        decides.expect("the first is about everything").allow()
    }

    const FUSE: Number = (10, 229);

    #[test]
    fn a_denied_access_is_denied_together_with_others() {
        let rules = [rule(true, "c 10:229", "rwm"), rule(false, "c 10:229", "w")];
        assert!(may(&rules, false, FUSE, "r") && may(&rules, false, FUSE, "rm"));
        assert!(!may(&rules, false, FUSE, "w") && !may(&rules, false, FUSE, "rw"));
    }

    #[test]
    fn what_two_rules_allow_is_allowed_together() {
        let rules = [rule(true, "c 10:*", "r"), rule(true, "c *:229", "w")];
        assert!(may(&rules, false, FUSE, "rw"));
        assert!(!may(&rules, false, FUSE, "m") && !may(&rules, true, FUSE, "r"));
        assert!(may(&rules, false, (10, 1), "r") && !may(&rules, false, (10, 1), "rw"));
    }

    #[test]
    fn a_rule_about_everything_ends_what_came_before() {
        let all = |allow| json!({ "allow": allow });
        let before = [rule(true, "c 10:229", "rwm"), all(false)];
        assert!(!may(&before, false, FUSE, "r"));
        let hole = [
            all(true),
            rule(false, "c 10:*", ""),
            rule(true, "c 10:*", "ax"),
        ];
        assert!(!may(&hole, false, FUSE, "r") && may(&hole, false, (1, 1), "rw"));
        assert!(
            !may(&[], true, (8, 0), "r"),
            "denied by default, as by runc"
        );
    }
}
