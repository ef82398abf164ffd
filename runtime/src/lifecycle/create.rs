//! From a bundle to a container that waits to be started.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::LinuxMemory;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::delete::undo;
use super::foreign_network;
use super::hooks::{HookContext, Hooks, Stage};
use super::join::join;
use super::membership;
use super::network::{ConnectedNetwork, PlannedNetwork, may_have_interfaces, move_devices};
use super::resolver::relay_resolver;
use super::state::for_hook;
use super::{Context, Error, console_socket, pid_file};
use crate::cgroup::{HostCgroup, Limits};
use crate::chain::chain;
use crate::config::Config;
use crate::host::{Privilege, ProcessId, inherited};
use crate::sandbox::{
    BlockingAgent, BootFiles, ChildProcess, ContainerEnds, GuestNetwork, HostTerminal, Launch,
    Lifeline, Sandbox, Streams, TerminalStreams, VmConfig, VmmDisk, open_connection,
};
use crate::spec::{self, Bundle, FilterCache, GuestSpec, Plan};
use crate::store::{ContainerDir, ContainerRecord, Joined, Phase, SandboxRecord, State, Status};
use crate::types::ContainerId;

/// What is to be created.
#[derive(Debug)]
pub struct Create<'a> {
    /// The container's id.
    pub id: ContainerId,
    /// Its bundle.
    pub bundle: Bundle,
    /// Who is at the host's side of its terminal.
    pub terminal: Terminal<'a>,
    /// The file that gets the pid.
    pub pid_file: Option<&'a Path>,
    /// The service manager's socket, if one waits for the container's word that it is ready (sd_notify(3)). That of the
    /// bundle comes first.
    pub service_manager: Option<PathBuf>,
    /// The container whose sandbox it joins. Without it, its config.json may name one as engines do; else it gets one of
    /// its own.
    pub sandbox: Option<ContainerId>,
}

/// Who is at the host's side of a process's terminal.
#[derive(Debug, Default)]
pub enum Terminal<'a> {
    /// The process has none; it gets this process's stdio.
    #[default]
    None,
    /// The process has none; it gets these as stdin, stdout and stderr. None of them may be this process's own.
    Streams([OwnedFd; 3]),
    /// An engine, which gets it through this socket.
    Engine(&'a Path),
    /// Whoever holds the other ends of these.
    Relayed(TerminalStreams),
}

/// A created container.
pub struct Created {
    /// Its folder, still locked.
    pub dir: ContainerDir,
    /// Its state, as it is on disk.
    pub state: State,
    /// The connection to its agent.
    pub agent: BlockingAgent,
    /// The process that stands for it, a child of this one.
    pub process: ChildProcess,
}

impl Created {
    /// A further connection to its agent.
    ///
    /// # Errors
    /// When the VM process or the agent doesn't answer.
    pub fn connect(&self) -> Result<UnixStream, Error> {
        let sandbox = self.dir.sandbox_of(&self.state.container)?;
        Ok(open_connection(&sandbox.socket_path())?)
    }
}

/// Creates a container.
///
/// # Errors
/// Every failure undoes what was made.
pub fn create(context: &Context, mut request: Create<'_>) -> Result<Created, Error> {
    if let Some(socket) = request.bundle.take_notify_socket() {
        request.service_manager = Some(socket);
    }
    match membership::sandbox_of(context, &request)? {
        None => with_sandbox(context, request),
        Some(sandbox) => join(context, request, &sandbox),
    }
}

/// Creates a container with a sandbox of its own.
fn with_sandbox(context: &Context, mut request: Create<'_>) -> Result<Created, Error> {
    let Planned {
        config,
        boot,
        mut plan,
        network,
        cgroup,
    } = Planned::of(context, &request)?;
    let mut resources = std::mem::take(&mut plan.resources);
    if plan.sizing.growth_mib > 0 && resources.memory().is_none() {
        // A pod's: the host is to hold its VM to what it has been given.
        resources.set_memory(Some(LinuxMemory::default()));
    }
    let limits = Limits {
        resources: &resources,
        sizing: plan.sizing,
        plugged_mib: 0,
        config: &config,
    };
    for limit in inherited::too_low() {
        log::warn!(
            "the caller's {limit} holds for the VM process too, as this user may not raise it (setrlimit(2)): \
             raise it where the caller is started if the VM fails"
        );
    }
    let id = request.id.clone();
    let (sizing, vmm) = (plan.sizing, None);
    let sandbox = SandboxRecord {
        id,
        sizing,
        vmm,
        cgroup,
        network: network.record,
        follower: None,
        volume_sockets: config.volume_sockets,
    };
    let container = first_record(&request, None);
    let mut state = State { container, sandbox };
    let dir = context.store()?.create(&state)?;
    let boot = Boot {
        files: boot,
        cmdline: cmdline(context, &config),
        nic_slots: network.slots,
    };
    let (mut sandbox, guest_spec) = match launch(&dir, &state, &mut request, plan, boot, &limits) {
        Ok(launched) => launched,
        Err(e) => {
            dir.discard();
            return Err(e);
        }
    };
    match bring_up(
        &mut sandbox,
        &dir,
        &mut state,
        &request,
        guest_spec,
        &limits,
    ) {
        Ok(agent) => Ok(Created {
            dir,
            state,
            agent,
            process: sandbox.lifeline.into_process(),
        }),
        Err(e) => {
            sandbox.lifeline.abort();
            undo(context, dir, &state);
            Err(e)
        }
    }
}

/// What is known before anything is made.
struct Planned {
    config: Config,
    boot: BootFiles,
    plan: Plan,
    network: PlannedNetwork,
    cgroup: Option<HostCgroup>,
}

/// What a VM is launched with, beside what its container is to have.
struct Boot {
    files: BootFiles,
    cmdline: String,
    nic_slots: u8,
}

impl Planned {
    /// Looks at all that may be refused.
    fn of(context: &Context, request: &Create<'_>) -> Result<Self, Error> {
        let Create { id, bundle, .. } = request;
        let config = context.settings.for_container(&bundle.annotations())?;
        spec::apply_policy(bundle, Some(id.as_str()), &config)?;
        foreign_network::refuse(id, bundle.spec())?;
        membership::refuse_foreign(bundle)?;
        let boot = config.boot().open()?;
        let filters = FilterCache::below(&context.root);
        let privilege = Privilege::own();
        let mut plan = spec::plan(bundle, id.as_str(), "hull", &config, &filters, privilege)?;
        let spec = bundle.spec();
        let network = PlannedNetwork::of(&plan, spec, &config)?;
        let cgroup = HostCgroup::of(spec, id, context.systemd_cgroup, privilege)?;
        if cgroup.is_none() {
            // Nothing on the host would hold a guest to what it has been given.
            plan.sizing = plan.sizing.fixed();
        }
        Ok(Self {
            config,
            boot,
            plan,
            network,
            cgroup,
        })
    }
}

/// Launches the VM process. Of what was made before a failure, only the container's folder is left.
fn launch(
    dir: &ContainerDir,
    state: &State,
    request: &mut Create<'_>,
    plan: Plan,
    boot: Boot,
    limits: &Limits<'_>,
) -> Result<(Sandbox, GuestSpec), Error> {
    let own_cgroup = state.sandbox.cgroup.as_ref();
    if let Some(cgroup) = own_cgroup {
        cgroup.warn_if_shared();
    }
    dir.save_config(request.bundle.spec())?;
    let (terminal, stdio) = open_terminal(std::mem::take(&mut request.terminal))?;
    let cgroup = own_cgroup.map(|cgroup| cgroup.make(limits)).transpose()?;
    // A cgroup binds the VM to its CPUs by itself.
    let pinned = match own_cgroup {
        Some(_) => None,
        None => plan.pin()?,
    };
    let vm = VmConfig {
        held: own_cgroup.is_some_and(HostCgroup::is_scope),
        vcpus: plan.sizing.vcpus,
        memory_mib: plan.sizing.memory_mib,
        growth_mib: plan.sizing.growth_mib,
        cmdline: boot.cmdline,
        console_log_size: u64::from(limits.config.console_log_size) << 10,
        core_scheduling: limits.config.core_scheduling,
        shares: plan.shares,
        view: plan.view,
        disks: plan.disks.into_iter().map(VmmDisk::from).collect(),
        disk_slots: limits.config.disk_slots,
        volume_sockets: limits.config.volume_sockets,
        nic_slots: boot.nic_slots,
        network: plan.network,
        memory_policy: plan.memory_policy,
        oom_score_adj: plan.oom_score_adj,
        kernel: boot.files.kernel.map(Into::into),
        initramfs: boot.files.initramfs.map(Into::into),
        terminal,
    };
    let launch = Launch {
        dir: &dir.own_sandbox(),
        cgroup: cgroup.flatten(),
        selinux_label: plan.selinux_label,
        user_namespace: plan.user_namespace,
        stdio,
        vm,
    };
    let launched = launch.spawn();
    drop(pinned);
    match launched {
        Ok(sandbox) => Ok((sandbox, plan.guest_spec)),
        Err(e) => {
            if let Some(Err(e)) = own_cgroup.map(|cgroup| cgroup.remove(true)) {
                log::warn!("{}", chain(&e));
            }
            Err(e.into())
        }
    }
}

/// From a launched VM process to a container whose state says `created`, and a VM that lives on without this
/// process.
fn bring_up(
    sandbox: &mut Sandbox,
    dir: &ContainerDir,
    state: &mut State,
    request: &Create<'_>,
    guest_spec: GuestSpec,
    limits: &Limits<'_>,
) -> Result<BlockingAgent, Error> {
    let files = dir.own_sandbox();
    // From here on `delete --force` finds the process, whatever becomes of this one.
    state.sandbox.vmm = ProcessId::of(sandbox.lifeline.pid()).ok();
    files.save(&state.sandbox)?;
    let cgroup = state.sandbox.cgroup.as_mut();
    if let Some(cgroup) = cgroup.filter(|cgroup| cgroup.is_scope()) {
        cgroup.adopt(sandbox.lifeline.pid(), limits)?;
        files.save(&state.sandbox)?;
        sandbox.lifeline.begin()?;
    }
    let boot_timeout = Duration::from_secs(limits.config.boot_timeout.into());
    let Streams { stdio, exit_status } = sandbox.wait_up(&files, boot_timeout)?;
    // While the guest boots.
    move_devices(request.bundle.spec(), &state.sandbox)?;
    run_create_hooks(&Hooks::of(request.bundle.spec()), state)?;
    let looks_there = may_have_interfaces(&state.sandbox, request.bundle.spec());
    let connected = match looks_there && state.sandbox.network.is_some() {
        true => Some(ConnectedNetwork::of(&files, &mut state.sandbox)?),
        false => None,
    };
    let agent = sandbox.wait_ready(&files, boot_timeout)?;
    let network = match connected {
        Some(connected) => connected.hand_over(&files, &mut state.sandbox)?,
        None => GuestNetwork::default(),
    };
    let bundle = request.bundle.path();
    let ends = ContainerEnds {
        stdio,
        exit_status: Some(exit_status),
        notify: request.service_manager.is_some(),
        volume_sockets: limits.config.volume_sockets,
        network,
    };
    agent
        .ask(|agent| agent.create(dir.id(), guest_spec, bundle, ends))
        .map_err(Error::ContainerProcess)?;
    if looks_there {
        relay_resolver(dir.id(), &files, &mut state.sandbox, &agent)?;
    }
    if request.bundle.read_only_root() {
        sandbox.make_root_read_only(dir.id())?;
    }
    if let Some(cgroup) = &state.sandbox.cgroup {
        cgroup.limit_container(limits)?;
    }
    state.container.phase = Phase::Created;
    dir.save(&state.container)?;
    commit(request, &sandbox.lifeline)?;
    Ok(agent)
}

/// Writes the pid file, and lets the container's process live on. Last of all, so that what fails leaves no pid file,
/// and somebody's of that name is left alone.
pub(super) fn commit(request: &Create<'_>, lifeline: &Lifeline) -> Result<(), Error> {
    if let Some(path) = request.pid_file {
        pid_file::write(path, lifeline.pid())?;
    }
    lifeline.commit().inspect_err(|_| {
        if let Some(path) = request.pid_file {
            let _ = fs::remove_file(path);
        }
    })?;
    Ok(())
}

/// The hooks of `create`, while the guest boots: the process that the state names is there, in the
/// container's namespaces of the host, and the container's own process isn't.
pub(super) fn run_create_hooks(hooks: &Hooks, state: &State) -> Result<(), Error> {
    // `delete --force` kills it, and must not have to wait for a hook.
    let sandbox = state.process().and_then(|process| process.open());
    let call = HookContext {
        state: &for_hook(state, Status::Creating)?,
        folder: Some(&state.container.bundle),
        sandbox: sandbox.as_ref(),
    };
    for stage in Stage::OF_CREATE {
        hooks.run(stage, call)?;
    }
    Ok(())
}

/// What the VM process is given for the container's terminal, or as its standard streams.
fn open_terminal(
    terminal: Terminal<'_>,
) -> Result<(Option<HostTerminal>, Option<[OwnedFd; 3]>), Error> {
    Ok(match terminal {
        Terminal::None => (None, None),
        Terminal::Streams(stdio) => (None, Some(stdio)),
        Terminal::Engine(socket) => {
            let terminal = console_socket::send_terminal(socket)?;
            (Some(HostTerminal::Pty(terminal)), None)
        }
        Terminal::Relayed(streams) => (Some(HostTerminal::Relayed(streams)), None),
    })
}

/// What the guest's kernel is told beyond what it always is.
fn cmdline(context: &Context, config: &Config) -> String {
    let debug = if context.debug { " hull.log=debug" } else { "" };
    format!("{}{debug}", config.kernel_params)
}

/// What is first known of the container.
pub(super) fn first_record(request: &Create<'_>, joined: Option<Joined>) -> ContainerRecord {
    let Create { id, bundle, .. } = request;
    let now = OffsetDateTime::now_utc().format(&Rfc3339);
    ContainerRecord {
        id: id.clone(),
        phase: Phase::Creating,
        paused: false,
        bundle: bundle.path().to_owned(),
        rootfs: bundle.rootfs().to_owned(),
        created: now.unwrap_or_default(),
        owner: owner(),
        annotations: bundle.annotations(),
        service_manager: request.service_manager.clone(),
        joined,
    }
}

/// The name of the user who runs this, as `list` shows it: as with runc, a number where /etc/passwd has none.
///
/// The file is read here, and not by the C library: that loads what nsswitch.conf names, which in a static program
/// crashes.
fn owner() -> String {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return "root".to_owned();
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    user_name(&users, uid.as_raw()).map_or_else(|| format!("#{}", uid.as_raw()), str::to_owned)
}

/// The name of a user in the text of passwd(5).
fn user_name(users: &str, uid: u32) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let is_it = fields.nth(1)?.parse() == Ok(uid);
        is_it.then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_named_as_the_file_has_it() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\n+::::::\n\nann:x:1000:7::/:\nbob:x:7:1000::/:\n";
        assert_eq!(user_name(users, 1000), Some("ann"));
        assert_eq!(user_name(users, 7), Some("bob"));
        assert_eq!(user_name(users, 8), None);
    }
}
