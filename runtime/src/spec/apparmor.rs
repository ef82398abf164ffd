//! AppArmor profiles. Guests have no AppArmor: an engine's default profile is taken for what holds in its place,
//! if the operator lets it be ([`Config::apparmor_defaults`]), and any other is refused.

use oci_spec::runtime::Process;

use super::SpecError;
use super::audit::{Finding, Verdict};
use super::fields::Enforcer;
use super::refuse::{Node, Refusal};
use crate::config::Config;

const FIELD: &str = "process.apparmorProfile";

const REMEDY: &str = "remove it or say \"unconfined\" (engines: --security-opt apparmor=unconfined), and confine \
                      the container by seccomp, capabilities and masked paths";

/// Whether it is a profile that confines nothing.
pub fn is_unconfined(profile: &str) -> bool {
    matches!(profile, "" | "unconfined")
}

/// Whether a profile is one that an engine gives every container: docker's, that of podman and buildah, whose name
/// ends with the version of their library, containerd's for the CRI, and CRI-O's.
fn is_default(profile: &str) -> bool {
    let versioned = ["containers-default", "crio-default"];
    let is_version = |rest: &str| rest.is_empty() || rest.starts_with('-');
    matches!(profile, "docker-default" | "cri-containerd.apparmor.d")
        || (versioned.iter()).any(|name| profile.strip_prefix(name).is_some_and(is_version))
}

/// `process.apparmorProfile`: an administrator's own profile says what no engine's default does, and nothing would
/// hold it.
pub fn check(node: Node<'_>) -> Option<Refusal> {
    let profile = node.value.as_str()?;
    let taken = is_unconfined(profile) || is_default(profile);
    (!taken).then(|| {
        let reason = format!("{profile:?}: the guest's kernel has no AppArmor");
        Refusal::new(reason, REMEDY)
    })
}

/// What is to be said of a process's profile, beyond [`check`].
pub(super) fn judge(process: Option<&Process>, config: &Config) -> Option<Finding> {
    let profile = process?.apparmor_profile().as_deref()?;
    if is_unconfined(profile) || !is_default(profile) {
        return None;
    }
    let verdict = match config.apparmor_defaults {
        true => {
            let note = format!(
                "{profile:?} is taken as held by the VM's wall, the masked and read-only paths, and seccomp: the \
                 guest's kernel has no AppArmor (apparmor_defaults of hull.toml)"
            );
            Verdict::Noted(Enforcer::Guest, note)
        }
        false => {
            let reason = format!(
                "{profile:?}: the guest's kernel has no AppArmor, and apparmor_defaults of hull.toml is false"
            );
            Verdict::Refused(Refusal::new(reason, REMEDY))
        }
    };
    let path = FIELD.to_owned();
    Some(Finding { path, verdict })
}

/// A process as the guest can have it: without a profile.
///
/// # Errors
/// When it has one that is refused.
pub fn without_profile(mut process: Process, config: &Config) -> Result<Process, SpecError> {
    let profile = process.apparmor_profile().clone().unwrap_or_default();
    let value = profile.into();
    let node = Node {
        key: "apparmorProfile",
        value: &value,
        root: &serde_json::Value::Null,
    };
    let refused = |refusal| Finding {
        path: FIELD.to_owned(),
        verdict: Verdict::Refused(refusal),
    };
    let finding = check(node)
        .map(refused)
        .or_else(|| judge(Some(&process), config));
    if let Some(finding) = finding.filter(|finding| finding.verdict.is_fatal()) {
        return Err(SpecError::Refused(vec![finding]));
    }
    process.set_apparmor_profile(None);
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::chain;

    fn with(profile: &str) -> Process {
        let mut process = Process::default();
        process.set_apparmor_profile(Some(profile.to_owned()));
        process
    }

    #[test]
    fn engines_defaults_are_taken_unless_the_operator_says_no() {
        let no = Config {
            apparmor_defaults: false,
            ..Config::default()
        };
        for profile in [
            "docker-default",
            "containers-default-0.50.1",
            "containers-default",
            "cri-containerd.apparmor.d",
            "crio-default",
            "crio-default-1.30.0",
        ] {
            let taken = without_profile(with(profile), &Config::default()).expect(profile);
            assert_eq!(taken.apparmor_profile(), &None);
            let said = chain(&without_profile(with(profile), &no).expect_err(profile));
            let expected = format!(
                "process.apparmorProfile: {profile:?}: the guest's kernel has no AppArmor, and"
            );
            assert!(said.contains(&expected), "{said}");
        }
        for profile in ["", "unconfined"] {
            assert!(without_profile(with(profile), &no).is_ok(), "{profile:?}");
        }
    }

    #[test]
    fn any_other_profile_is_refused_by_name() {
        for profile in [
            "docker-defaulted",
            "containers-defaults-1",
            "mine",
            "unconfined2",
        ] {
            let refused = without_profile(with(profile), &Config::default());
            let said = chain(&refused.expect_err(profile));
            assert!(
                said.contains(&format!("{profile:?}: the guest's kernel")),
                "{said}"
            );
            assert!(said.contains("apparmor=unconfined"), "{said}");
        }
    }
}
