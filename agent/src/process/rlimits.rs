//! The resource limits of a process (getrlimit(2)).
//!
//! They are set in two steps, as starting a program may take more than the program itself is allowed, such as
//! file descriptors. Hard limits are raised first, while the process is privileged and errors are still reported.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::Failure;

/// Raises the hard limits that are below those of config.json, and changes nothing else.
///
/// # Errors
/// Names the limit that can't be set.
pub fn raise_hard_limits(process: &Process) -> Result<(), Failure> {
    for_each(of(process), |resource, wanted| {
        let now = getrlimit(resource);
        if above(wanted.current, wanted.maximum) {
            return Err(Errno::INVAL);
        }
        if above(wanted.maximum, now.maximum) {
            let maximum = wanted.maximum;
            return setrlimit(resource, Rlimit { maximum, ..now });
        }
        Ok(())
    })
}

/// Sets the limits, as the last step before the program is executed.
///
/// # Errors
/// Names the limit that can't be set, which [`raise_hard_limits`] would have reported.
pub fn apply(limits: &[PosixRlimit]) -> Result<(), Failure> {
    for_each(limits, setrlimit)
}

/// The limits of a process.
pub fn of(process: &Process) -> &[PosixRlimit] {
    process.rlimits().as_deref().unwrap_or_default()
}

fn for_each(
    limits: &[PosixRlimit],
    set: impl Fn(Resource, Rlimit) -> Result<(), Errno>,
) -> Result<(), Failure> {
    for limit in limits {
        set(resource(limit.typ()), wanted(limit))
            .map_err(Failure::field(format!("process.rlimits: {}", limit.typ())))?;
    }
    Ok(())
}

/// Whether a limit is higher than another one; no limit is the highest.
fn above(limit: Option<u64>, other: Option<u64>) -> bool {
    other.is_some_and(|other| limit.is_none_or(|limit| limit > other))
}

fn wanted(limit: &PosixRlimit) -> Rlimit {
    let finite = |value: u64| (value != libc::RLIM_INFINITY).then_some(value);
    Rlimit {
        current: finite(limit.soft()),
        maximum: finite(limit.hard()),
    }
}

fn resource(limit: PosixRlimitType) -> Resource {
    match limit {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn process(soft: u64, hard: u64) -> Process {
        let limits = json!([{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}]);
        serde_json::from_value(json!({"user": {}, "cwd": "/", "rlimits": limits})).expect("valid")
    }

    #[test]
    fn lower_limits_are_not_set_yet() {
        let before = getrlimit(Resource::Nofile);
        raise_hard_limits(&process(8, 8)).expect("lower is allowed");
        assert_eq!(getrlimit(Resource::Nofile), before);
        assert!(raise_hard_limits(&process(9, 8)).is_err());
    }

    #[test]
    fn no_limit_is_the_highest() {
        assert!(above(None, Some(u64::MAX - 1)) && above(Some(2), Some(1)));
        assert!(!above(None, None) && !above(Some(1), Some(1)));
    }
}
