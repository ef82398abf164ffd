//! The systemd driver: the VM's cgroup is a scope, a unit that systemd makes around a process that is
//! there already. What `cgroupsPath` means then are runc's rules: `slice:prefix:name`.
//!
//! systemd removes a scope and its cgroup by itself once the last process has left, some time later. Were
//! its cgroup removed by somebody else, it would keep the unit: so it is asked to stop that, and waited for.
//! Limits are written to the cgroup's files as without systemd; the unit's properties say the same, for
//! systemd writes them again when it is reloaded.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use hull_cgroup::limits::Setting;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use zbus::connection::Builder;
use zbus::{OwnedObjectPath, Variant};

use super::CgroupError;
use crate::spec::CpuList;
use crate::types::ContainerId;

/// How long systemd may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where a scope goes that names no slice, of the host's systemd and of a user's own.
const DEFAULT_SLICE: &str = "system.slice";
const USERS_SLICE: &str = "user.slice";

const SLICE: &str = ".slice";

/// Why systemd didn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// It isn't there.
    #[error("--systemd-cgroup: cannot reach systemd over D-Bus")]
    Unreachable(#[source] zbus::Error),
    /// An ordinary user's isn't there.
    #[error(
        "--systemd-cgroup: cannot reach the systemd of user {uid} over the bus that DBUS_SESSION_BUS_ADDRESS \
         or XDG_RUNTIME_DIR names; log in as that user, have the user's systemd run without that (loginctl \
         enable-linger), or leave --systemd-cgroup out"
    )]
    UsersUnreachable {
        /// Whose.
        uid: u32,
        /// What there is instead.
        #[source]
        source: zbus::Error,
    },
    /// It said no.
    #[error("systemd refuses to {what} {unit}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Of which unit.
        unit: String,
        /// What it said.
        #[source]
        source: zbus::Error,
    },
    /// It tried, and couldn't.
    #[error("systemd could not {what} {unit}: the job's result is {result:?}")]
    Job {
        /// What was asked.
        what: &'static str,
        /// Which unit.
        unit: String,
        /// In its words.
        result: String,
    },
    /// It doesn't answer.
    #[error("waited {} s for systemd to {what} {unit}, in vain", TIMEOUT.as_secs())]
    Timeout {
        /// What was asked.
        what: &'static str,
        /// Of which unit.
        unit: String,
    },
    /// There is no way to wait for it.
    #[error("cannot talk to systemd")]
    Runtime(#[source] io::Error),
}

/// A scope that a VM's cgroup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// The slice that it is in.
    slice: String,
    /// Its own name.
    unit: String,
    /// Whether systemd has made it: before, one of this name is somebody else's.
    started: bool,
}

impl Scope {
    /// The scope for what config.json asks for, of the host's systemd, or of the user's own.
    ///
    /// # Errors
    /// When that isn't of the form, or the slice's name is none.
    pub fn of(asked: Option<&Path>, id: &ContainerId) -> Result<Self, CgroupError> {
        let default_slice = match ordinary_user() {
            None => DEFAULT_SLICE,
            Some(_) => USERS_SLICE,
        };
        Self::named(asked, id, default_slice)
    }

    fn named(
        asked: Option<&Path>,
        id: &ContainerId,
        default_slice: &str,
    ) -> Result<Self, CgroupError> {
        let default = format!(":hull:{id}");
        let asked = asked.map_or(default.into(), Path::to_string_lossy);
        let parts: Vec<_> = asked.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            let why = format!("{asked:?} is not of the form slice:prefix:name (--systemd-cgroup)");
            return Err(CgroupError::Path(why));
        };
        let slice = match slice {
            "" => default_slice,
            slice => slice,
        };
        if directories(slice).is_none() {
            let why = format!("{slice:?} is not the name of a systemd slice");
            return Err(CgroupError::Path(why));
        }
        if name.is_empty() || name.ends_with(SLICE) || asked.contains('/') {
            let why = format!("{asked:?} does not name a scope, and a slice holds no process");
            return Err(CgroupError::Path(why));
        }
        Ok(Self {
            slice: slice.to_owned(),
            unit: format!("{prefix}-{name}.scope"),
            started: false,
        })
    }

    /// Where systemd will make its cgroup, if it manages all of them.
    pub fn expected_path(&self) -> PathBuf {
        let slice = directories(&self.slice).unwrap_or_default();
        Path::new("/").join(slice).join(&self.unit)
    }
}

/// The directories of a slice: `a-b.slice` is in `a.slice`, and `-.slice` is the root.
fn directories(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(SLICE)?;
    let mut directories = PathBuf::new();
    if name == "-" {
        return Some(directories);
    }
    let mut ancestor = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains('/') {
            return None;
        }
        ancestor.push_str(part);
        directories.push(format!("{ancestor}{SLICE}"));
        ancestor.push('-');
    }
    Some(directories)
}

/// What is asked of systemd (org.freedesktop.systemd1(5)).
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        auxiliary: &[(&str, &[(&str, Variant<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;

    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Variant<'_>)],
    ) -> zbus::Result<()>;

    fn subscribe(&self) -> zbus::Result<()>;

    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

/// Starts a scope around a process, with limits, and returns once the process is in it.
///
/// # Errors
/// When systemd isn't there, or refuses.
pub async fn start(scope: &mut Scope, pid: i32, limits: &[Setting]) -> Result<(), SystemdError> {
    const WHAT: &str = "start";
    let pids = [pid.unsigned_abs()];
    let mut properties = vec![
        (
            "Description",
            Variant::from(format!("hull: the VM of {}", scope.unit)),
        ),
        ("Slice", Variant::from(&*scope.slice)),
        ("PIDs", Variant::from(&pids[..])),
        // Its files are hull's to write.
        ("Delegate", Variant::from(true)),
        // One that failed is forgotten as one that ended.
        ("CollectMode", Variant::from("inactive-or-failed")),
        ("DefaultDependencies", Variant::from(false)),
    ];
    for accounting in [
        "CPUAccounting",
        "IOAccounting",
        "MemoryAccounting",
        "TasksAccounting",
    ] {
        properties.push((accounting, Variant::from(true)));
    }
    for limit in limits {
        properties.extend(property(limit));
    }
    within_time(WHAT, scope, async {
        let manager = connect().await?;
        let start = async || {
            manager
                .start_transient_unit(&scope.unit, "fail", &properties, &[])
                .await
        };
        run_job(WHAT, scope, &manager, start).await
    })
    .await?;
    scope.started = true;
    Ok(())
}

/// Stops a scope that was started, and returns once its cgroup is gone. It is no error if systemd has done
/// so already: a scope whose start was cut off ends with its process.
///
/// # Errors
/// When systemd isn't there, or refuses.
pub async fn stop(scope: &Scope) -> Result<(), SystemdError> {
    const WHAT: &str = "stop";
    if !scope.started {
        return Ok(());
    }
    let stopped = within_time(WHAT, scope, async {
        let manager = connect().await?;
        let stop = async || manager.stop_unit(&scope.unit, "replace").await;
        run_job(WHAT, scope, &manager, stop).await
    });
    match stopped.await {
        Err(SystemdError::Refused { source, .. }) if is_no_such_unit(&source) => Ok(()),
        other => other,
    }
}

fn is_no_such_unit(error: &zbus::Error) -> bool {
    const NAME: &str = "org.freedesktop.systemd1.NoSuchUnit";
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == NAME)
}

/// Asks for a job, and returns once it is done.
async fn run_job(
    what: &'static str,
    scope: &Scope,
    manager: &ManagerProxy<'_>,
    ask: impl AsyncFnOnce() -> zbus::Result<OwnedObjectPath>,
) -> Result<(), SystemdError> {
    let refused = |source| refused(what, scope, source);
    manager.subscribe().await.map_err(refused)?;
    // From here on, so that the end of the job isn't missed.
    let mut ended = manager.receive_job_removed().await.map_err(refused)?;
    let job = ask().await.map_err(refused)?;
    while let Some(signal) = ended.next().await {
        let signal = signal.args().map_err(refused)?;
        if signal.job != job {
            continue;
        }
        return match &*signal.result {
            "done" => Ok(()),
            result => Err(SystemdError::Job {
                what,
                unit: scope.unit.clone(),
                result: result.to_owned(),
            }),
        };
    }
    Err(SystemdError::Unreachable(zbus::Error::InterfaceNotFound))
}

/// Has a scope's properties say what its limits are.
///
/// # Errors
/// When systemd isn't there, or refuses.
pub async fn set(scope: &Scope, limits: &[Setting]) -> Result<(), SystemdError> {
    const WHAT: &str = "set the limits of";
    let properties: Vec<_> = limits.iter().flat_map(property).collect();
    if properties.is_empty() {
        return Ok(());
    }
    within_time(WHAT, scope, async {
        let manager = connect().await?;
        // Until the next boot, which no scope outlives.
        let set = manager.set_unit_properties(&scope.unit, true, &properties);
        set.await.map_err(|source| refused(WHAT, scope, source))
    })
    .await
}

/// To the host's systemd, or for an ordinary user to the user's own.
async fn connect() -> Result<ManagerProxy<'static>, SystemdError> {
    let user = ordinary_user();
    let builder = match user {
        None => Builder::system(),
        Some(uid) => Builder::session().user_id(uid),
    };
    let manager = async { ManagerProxy::new(&builder.build().await?).await };
    manager.await.map_err(|source| match user {
        None => SystemdError::Unreachable(source),
        Some(uid) => SystemdError::UsersUnreachable { uid, source },
    })
}

/// The ordinary user who runs this, by the id that the user has outside of a user namespace: podman runs
/// its runtime as the root of one. Nobody for the host's root.
fn ordinary_user() -> Option<u32> {
    let own = geteuid().as_raw();
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    Some(outside(&map, own).unwrap_or(own)).filter(|uid| *uid != 0)
}

/// What an id is outside of a user namespace with this map (user_namespaces(7)).
fn outside(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let numbers: Vec<u32> = line.split_whitespace().flat_map(str::parse).collect();
        let [inside, outside, count] = numbers[..] else {
            return None;
        };
        let offset = id.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    })
}

fn refused(what: &'static str, scope: &Scope, source: zbus::Error) -> SystemdError {
    SystemdError::Refused {
        what,
        unit: scope.unit.clone(),
        source,
    }
}

/// Waits for systemd, but no longer than that.
async fn within_time(
    what: &'static str,
    scope: &Scope,
    request: impl Future<Output = Result<(), SystemdError>>,
) -> Result<(), SystemdError> {
    let answer = tokio::time::timeout(TIMEOUT, request).await;
    answer.unwrap_or_else(|_| {
        Err(SystemdError::Timeout {
            what,
            unit: scope.unit.clone(),
        })
    })
}

/// Waits for what systemd is asked, in code that isn't async: in a small runtime that lives for one request, so not
/// to be used by what runs in another one.
///
/// # Errors
/// Those of the request, and when there can be no runtime.
pub fn wait(request: impl Future<Output = Result<(), SystemdError>>) -> Result<(), SystemdError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SystemdError::Runtime)?
        .block_on(request)
}

/// The properties for a value of a cgroup's file (systemd.resource-control(5)); none where systemd leaves
/// the file alone.
fn property(Setting { file, value, .. }: &Setting) -> Vec<(&'static str, Variant<'static>)> {
    // What is read of a weight names whom it is for.
    let number = || match value.strip_prefix("default ").unwrap_or(value) {
        "max" => Some(u64::MAX),
        text => text.parse().ok(),
    };
    let name = match &**file {
        "memory.max" => "MemoryMax",
        "memory.low" => "MemoryLow",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "cpu.weight" => "CPUWeight",
        "io.weight" => "IOWeight",
        "cpuset.cpus" => return set_of("AllowedCPUs", value),
        "cpuset.mems" => return set_of("AllowedMemoryNodes", value),
        "cpu.max" => return cpu_quota(value),
        _ => return Vec::new(),
    };
    let property = number().map(|number| (name, Variant::from(number)));
    property.into_iter().collect()
}

/// A list of numbers as systemd has it: a bit for each.
fn set_of(name: &'static str, list: &str) -> Vec<(&'static str, Variant<'static>)> {
    let words = list.parse::<CpuList>().unwrap_or_default().bits();
    let bits: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    vec![(name, Variant::from(bits))]
}

/// systemd's unit is CPU time in a second, and it counts in percents.
fn cpu_quota(value: &str) -> Vec<(&'static str, Variant<'static>)> {
    const PERCENT: u64 = 10_000;
    let (quota, period) = value.split_once(' ').unwrap_or((value, "100000"));
    let Some(period) = period.parse::<u64>().ok().filter(|period| *period > 0) else {
        return Vec::new();
    };
    let per_second = match quota.parse::<u64>() {
        Ok(quota) => {
            let per_second = quota.saturating_mul(1_000_000) / period;
            per_second.div_ceil(PERCENT).saturating_mul(PERCENT)
        }
        Err(_) => u64::MAX,
    };
    vec![
        ("CPUQuotaPerSecUSec", Variant::from(per_second)),
        ("CPUQuotaPeriodUSec", Variant::from(period)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(asked: &str) -> Result<Scope, CgroupError> {
        let asked = Some(Path::new(asked)).filter(|path| !path.as_os_str().is_empty());
        Scope::named(asked, &"web".parse().expect("id"), DEFAULT_SLICE)
    }

    #[test]
    fn a_scope_is_named_as_runc_names_it() {
        let path = |asked| scope(asked).expect("a scope").expected_path();
        let cases = [
            ("system.slice:docker:1", "/system.slice/docker-1.scope"),
            (
                "a-b-c.slice:p:n",
                "/a.slice/a-b.slice/a-b-c.slice/p-n.scope",
            ),
            ("-.slice:p:n", "/p-n.scope"),
            (":p:n", "/system.slice/p-n.scope"),
            ("", "/system.slice/hull-web.scope"),
        ];
        for (asked, expected) in cases {
            assert_eq!(path(asked), Path::new(expected), "{asked}");
        }
    }

    #[test]
    fn what_names_no_scope_is_refused() {
        let cases = [
            "/a/b",
            "a.slice:n",
            "a:p:n",
            "a--b.slice:p:n",
            ".slice:p:n",
            "a.slice:p:n.slice",
            "a.slice:p:",
            "a.slice:p:x/y",
        ];
        for asked in cases {
            let refused = scope(asked).expect_err(asked).to_string();
            assert!(
                refused.starts_with("config.json: linux.cgroupsPath: "),
                "{refused}"
            );
        }
    }

    #[test]
    fn the_root_of_a_user_namespace_is_somebody_outside() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        let found = [0, 1, 65536, 65537].map(|id| outside(map, id));
        assert_eq!(found, [Some(1000), Some(100_000), Some(165_535), None]);
        assert_eq!(outside("0 0 4294967295\n", 7), Some(7));
    }

    fn properties(file: &str, value: &str) -> Vec<(&'static str, Variant<'static>)> {
        property(&Setting::new("field", file, value))
    }

    #[test]
    fn a_limit_is_a_property() {
        assert_eq!(
            properties("memory.max", "max"),
            [("MemoryMax", Variant::from(u64::MAX))]
        );
        assert_eq!(
            properties("cpuset.cpus", "0,9-10"),
            [(
                "AllowedCPUs",
                Variant::from(vec![1_u8, 6, 0, 0, 0, 0, 0, 0])
            )]
        );
        assert_eq!(
            properties("cpu.max", "12345 100000"),
            [
                ("CPUQuotaPerSecUSec", Variant::from(130_000_u64)),
                ("CPUQuotaPeriodUSec", Variant::from(100_000_u64)),
            ]
        );
        assert_eq!(
            properties("io.weight", "default 10"),
            [("IOWeight", Variant::from(10_u64))]
        );
        assert!(properties("io.max", "8:0 rbps=1").is_empty());
        assert!(properties("io.weight", "8:0 10").is_empty());
    }
}
