//! What the types of config.json don't say: the rules between and within its fields, as runc has them
//! (its `specconv` and `configs/validate`).

use oci_spec::runtime::{
    Capabilities, Linux, LinuxIdMapping, LinuxMemory, LinuxNamespaceType, LinuxSchedulerPolicy,
    Process, Spec,
};

use super::SpecError;
use super::bounds;
use super::cpulist::CpuList;
use crate::network::is_interface_name;

/// Checks a config.json.
///
/// # Errors
/// Names the first field that breaks a rule.
pub fn validate(spec: &Spec) -> Result<(), SpecError> {
    version(spec.version())?;
    validate_process(
        spec.process()
            .as_ref()
            .ok_or(SpecError::Missing("process"))?,
    )?;
    mounts(spec)?;
    hooks(spec)?;
    let empty = Vec::new();
    let linux = spec.linux().as_ref();
    let namespaces = Namespaces(
        linux
            .and_then(|linux| linux.namespaces().as_ref())
            .unwrap_or(&empty)
            .iter()
            .map(|namespace| namespace.typ())
            .collect(),
    );
    namespaces.no_duplicates()?;
    namespaces.required_by(spec)?;
    if let Some(linux) = linux {
        validate_linux(linux, &namespaces)?;
    }
    bounds::check(spec)
}

/// Checks a `process` object.
///
/// # Errors
/// Names the first field that breaks a rule.
pub fn validate_process(process: &Process) -> Result<(), SpecError> {
    let cwd = process.cwd();
    if cwd.as_os_str().is_empty() {
        return Err(SpecError::Missing("process.cwd"));
    }
    if !cwd.is_absolute() {
        return Err(SpecError::invalid(
            "process.cwd",
            format!("{cwd:?} is not an absolute path"),
        ));
    }
    match process.args() {
        None => return Err(SpecError::Missing("process.args")),
        Some(args) if args.is_empty() => {
            return Err(SpecError::invalid(
                "process.args",
                "it names no program to run",
            ));
        }
        Some(_) => {}
    }
    bounds::check_process(process)?;
    capabilities(process)?;
    scheduler(process)?;
    if let Some(priority) = process.io_priority()
        && !(0..=7).contains(&priority.priority())
    {
        let why = format!("{} is not between 0 and 7", priority.priority());
        return Err(SpecError::invalid("process.ioPriority.priority", why));
    }
    affinity(process)
}

/// A semantic version of the series that hull reads (runtime-spec, config.md, "Specification version").
fn version(text: &str) -> Result<(), SpecError> {
    if text.is_empty() {
        return Err(SpecError::Missing("ociVersion"));
    }
    let invalid = |why: &str| SpecError::invalid("ociVersion", format!("{text:?}: {why}"));
    let version = semver::Version::parse(text)
        .map_err(|_| invalid("it is not a semantic version, like \"1.2.0\""))?;
    if version.major == 1 {
        Ok(())
    } else {
        Err(invalid("hull reads versions 1.x"))
    }
}

fn mounts(spec: &Spec) -> Result<(), SpecError> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        if mount.destination().as_os_str().is_empty() {
            let field = format!("mounts[{index}].destination");
            return Err(SpecError::invalid(field, "it is empty"));
        }
    }
    Ok(())
}

/// The rules of config.md, "POSIX-platform Hooks".
#[allow(deprecated)] // prestart, which engines still use
fn hooks(spec: &Spec) -> Result<(), SpecError> {
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    let lists = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (name, list) in lists {
        for (index, hook) in list.iter().flatten().enumerate() {
            let invalid = |field: &str, why: String| {
                SpecError::invalid(format!("hooks.{name}[{index}].{field}"), why)
            };
            if !hook.path().is_absolute() {
                let why = format!("{:?} is not an absolute path", hook.path());
                return Err(invalid("path", why));
            }
            if let Some(timeout) = hook.timeout().filter(|timeout| *timeout <= 0) {
                let why = format!("{timeout} is not a number of seconds above 0");
                return Err(invalid("timeout", why));
            }
            let variable = |entry: &&String| entry.find('=').is_some_and(|at| at > 0);
            if let Some(entry) = hook.env().iter().flatten().find(|e| !variable(e)) {
                return Err(invalid("env", format!("{entry:?} is not NAME=VALUE")));
            }
        }
    }
    Ok(())
}

/// The kinds of namespaces that config.json lists.
struct Namespaces(Vec<LinuxNamespaceType>);

impl Namespaces {
    fn has(&self, kind: LinuxNamespaceType) -> bool {
        self.0.contains(&kind)
    }

    fn no_duplicates(&self) -> Result<(), SpecError> {
        for (index, kind) in self.0.iter().enumerate() {
            if self.0.iter().take(index).any(|earlier| earlier == kind) {
                let field = format!("linux.namespaces[{index}].type");
                return Err(SpecError::invalid(
                    field,
                    "this kind of namespace is listed twice",
                ));
            }
        }
        Ok(())
    }

    /// Fields that would change a namespace which isn't the container's own.
    fn required_by(&self, spec: &Spec) -> Result<(), SpecError> {
        use LinuxNamespaceType::{Mount, Network, Time, User, Uts};
        let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
        let linux = spec.linux().as_ref();
        let listed = |list: Option<&Option<Vec<String>>>| {
            list.and_then(Option::as_ref)
                .is_some_and(|list| !list.is_empty())
        };
        let mapped = |maps: Option<&Option<Vec<LinuxIdMapping>>>| {
            maps.and_then(Option::as_ref)
                .is_some_and(|maps| !maps.is_empty())
        };
        let offsets = linux.and_then(|linux| linux.time_offsets().as_ref());
        let devices = linux.and_then(|linux| linux.net_devices().as_ref());
        let rules = [
            (
                devices.is_some_and(|map| !map.is_empty()),
                "linux.netDevices",
                Network,
                "network",
            ),
            (named(spec.hostname()), "hostname", Uts, "uts"),
            (named(spec.domainname()), "domainname", Uts, "uts"),
            (
                listed(linux.map(Linux::masked_paths)),
                "linux.maskedPaths",
                Mount,
                "mount",
            ),
            (
                listed(linux.map(Linux::readonly_paths)),
                "linux.readonlyPaths",
                Mount,
                "mount",
            ),
            (
                mapped(linux.map(Linux::uid_mappings)),
                "linux.uidMappings",
                User,
                "user",
            ),
            (
                mapped(linux.map(Linux::gid_mappings)),
                "linux.gidMappings",
                User,
                "user",
            ),
            (
                offsets.is_some_and(|map| !map.is_empty()),
                "linux.timeOffsets",
                Time,
                "time",
            ),
        ];
        for (set, field, kind, name) in rules {
            if set && !self.has(kind) {
                let why = format!("it needs a namespace of type {name:?} in linux.namespaces");
                return Err(SpecError::invalid(field, why));
            }
        }
        Ok(())
    }
}

fn validate_linux(linux: &Linux, namespaces: &Namespaces) -> Result<(), SpecError> {
    if namespaces.has(LinuxNamespaceType::User) {
        maps_root("linux.uidMappings", linux.uid_mappings().as_deref())?;
        maps_root("linux.gidMappings", linux.gid_mappings().as_deref())?;
    }
    for clock in linux
        .time_offsets()
        .iter()
        .flatten()
        .map(|(clock, _)| clock)
    {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            let why = format!("{clock:?} is not a clock that a time namespace has");
            return Err(SpecError::invalid("linux.timeOffsets", why));
        }
    }
    for key in linux.sysctl().iter().flatten().map(|(key, _)| key) {
        sysctl(key, namespaces)?;
    }
    for (name, device) in linux.net_devices().iter().flatten() {
        let new_name = device.name().as_deref().filter(|name| !name.is_empty());
        if let Some(wrong) = [Some(name.as_str()), new_name]
            .into_iter()
            .flatten()
            .find(|name| !is_interface_name(name))
        {
            let field = format!("linux.netDevices[{name:?}]");
            let why = format!("{wrong:?} can't be the name of a network interface");
            return Err(SpecError::invalid(field, why));
        }
    }
    if let Some(propagation) = linux
        .rootfs_propagation()
        .as_deref()
        .filter(|p| !p.is_empty())
    {
        let name = propagation.strip_prefix('r').unwrap_or(propagation);
        if !matches!(name, "shared" | "slave" | "private" | "unbindable") {
            let why = format!("{propagation:?} is not a kind of propagation");
            return Err(SpecError::invalid("linux.rootfsPropagation", why));
        }
    }
    let resources = linux.resources().as_ref();
    if let Some(memory) = resources.and_then(|resources| resources.memory().as_ref()) {
        swap(memory)?;
    }
    if let Some(cpus) = resources
        .and_then(|r| r.cpu().as_ref())
        .and_then(|cpu| cpu.cpus().as_ref())
    {
        cpu_list("linux.resources.cpu.cpus", cpus)?;
    }
    Ok(())
}

/// The container's root has to be somebody outside of its user namespace.
fn maps_root(field: &str, maps: Option<&[LinuxIdMapping]>) -> Result<(), SpecError> {
    let maps = maps.unwrap_or_default();
    if maps.is_empty() {
        return Err(SpecError::invalid(field, "a user namespace needs mappings"));
    }
    if maps
        .iter()
        .any(|map| map.container_id() == 0 && map.size() > 0)
    {
        Ok(())
    } else {
        Err(SpecError::invalid(
            field,
            "no mapping has the container's id 0",
        ))
    }
}

/// A sysctl may be set if it belongs to a namespace that is the container's own.
fn sysctl(key: &str, namespaces: &Namespaces) -> Result<(), SpecError> {
    use LinuxNamespaceType::{Ipc, Network, User, Uts};
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let name = dotted(key);
    let (kind, word) = if IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.") {
        (Ipc, "ipc")
    } else if name.starts_with("net.") {
        (Network, "network")
    } else if name.starts_with("user.") {
        (User, "user")
    } else if name == "kernel.domainname" {
        (Uts, "uts")
    } else {
        let why = match name.as_str() {
            "kernel.hostname" => "use the field hostname",
            _ => "it does not belong to a namespace",
        };
        return Err(SpecError::invalid(format!("linux.sysctl[{key:?}]"), why));
    };
    if namespaces.has(kind) {
        return Ok(());
    }
    let why = format!("it needs a namespace of type {word:?} in linux.namespaces");
    Err(SpecError::invalid(format!("linux.sysctl[{key:?}]"), why))
}

/// A sysctl's name with dots between its parts. It may be written with slashes instead; then a dot in
/// it is part of a name (sysctl.d(5)).
fn dotted(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(first) if key[first..].starts_with('/') => key
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

/// Memory and swap together can be limited only if memory is, and to no less.
fn swap(memory: &LinuxMemory) -> Result<(), SpecError> {
    let field = "linux.resources.memory.swap";
    let limit = memory.limit().unwrap_or(0);
    match memory.swap().unwrap_or(0) {
        ..-1 => Err(SpecError::invalid(
            field,
            "it is negative (-1 means unlimited)",
        )),
        -1 | 0 => Ok(()),
        _ if limit == 0 => Err(SpecError::invalid(field, "it needs memory.limit")),
        swap if limit > 0 && swap < limit => Err(SpecError::invalid(
            field,
            "it includes memory.limit, and so cannot be less",
        )),
        _ => Ok(()),
    }
}

/// The rules of capset(2). What is wrong with `ambient` alone [`fill_in`](super::read) takes out.
fn capabilities(process: &Process) -> Result<(), SpecError> {
    let Some(sets) = process.capabilities() else {
        return Ok(());
    };
    within(
        ("effective", sets.effective()),
        ("permitted", sets.permitted()),
    )?;
    within(
        ("inheritable", sets.inheritable()),
        ("bounding", sets.bounding()),
    )
}

/// One of the sets of capabilities has nothing that another lacks.
fn within(
    (inner, set): (&str, &Option<Capabilities>),
    (outer, bound): (&str, &Option<Capabilities>),
) -> Result<(), SpecError> {
    let has = |capability| bound.as_ref().is_some_and(|set| set.contains(capability));
    let lone = set.iter().flatten().filter(|capability| !has(capability));
    match lone.map(ToString::to_string).min() {
        None => Ok(()),
        Some(lone) => Err(SpecError::invalid(
            format!("process.capabilities.{inner}"),
            format!("CAP_{lone} is not in process.capabilities.{outer}"),
        )),
    }
}

/// The rules of sched_setattr(2).
fn scheduler(process: &Process) -> Result<(), SpecError> {
    use LinuxSchedulerPolicy::{SchedBatch, SchedDeadline, SchedFifo, SchedOther, SchedRr};
    let Some(scheduler) = process.scheduler() else {
        return Ok(());
    };
    let policy = *scheduler.policy();
    let nice = scheduler.nice().unwrap_or(0);
    if matches!(policy, SchedOther | SchedBatch) && !(-20..=19).contains(&nice) {
        let why = format!("{nice} is not between -20 and 19");
        return Err(SpecError::invalid("process.scheduler.nice", why));
    }
    if scheduler.priority().unwrap_or(0) != 0 && !matches!(policy, SchedFifo | SchedRr) {
        let why = "only SCHED_FIFO and SCHED_RR have one";
        return Err(SpecError::invalid("process.scheduler.priority", why));
    }
    let times = [
        scheduler.runtime(),
        scheduler.deadline(),
        scheduler.period(),
    ];
    if policy != SchedDeadline && times.iter().any(|time| time.unwrap_or(0) != 0) {
        let why = "only SCHED_DEADLINE has runtime, deadline and period";
        return Err(SpecError::invalid("process.scheduler", why));
    }
    Ok(())
}

fn affinity(process: &Process) -> Result<(), SpecError> {
    let Some(affinity) = process.exec_cpu_affinity() else {
        return Ok(());
    };
    if let Some(cpus) = affinity.initial() {
        cpu_list("process.execCPUAffinity.initial", cpus)?;
    }
    if let Some(cpus) = affinity.cpu_affinity_final() {
        cpu_list("process.execCPUAffinity.final", cpus)?;
    }
    Ok(())
}

fn cpu_list(field: &str, text: &str) -> Result<(), SpecError> {
    match text.parse::<CpuList>() {
        Ok(_) => Ok(()),
        Err(e) => Err(SpecError::invalid(field, e.to_string())),
    }
}
