//! `hull create`: from a bundle to a container that waits to be started.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::unistd::User;
use oci_spec::runtime::Process;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::delete::undo;
use super::notify;
use super::state::for_hook;
use super::terminal::{self, Console, Relay};
use crate::cgroup::{HostCgroup, Limits};
use crate::cli::Global;
use crate::config::Config;
use crate::container::{
    Call, ContainerDir, ContainerId, Hooks, Phase, ProcessId, Stage, State, Status, Store,
};
use crate::error::{Error, chain};
use crate::inherited;
use crate::sandbox::{
    Agent, BootFiles, HostTerminal, Launch, Sandbox, VmConfig, VmmDisk, VmmProcess,
};
use crate::spec::{self, Bundle, FilterCache, GuestSpec, Plan, Sizing};

/// The options of `create`, which `run` has too.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The folder with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Write the process's pid to FILE
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// A UNIX socket that gets the terminal's file descriptor
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Accepted: a guest's rootfs is never an initramfs, so there is nothing to pivot around
    #[arg(long)]
    pub no_pivot: bool,
    /// Do not give the container a session keyring of its own
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass N further file descriptors
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

/// `hull create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    #[command(flatten)]
    options: Options,
    /// The container's id: unique on this host
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// A created container.
pub struct Created {
    /// Its folder, still locked.
    pub dir: ContainerDir,
    /// Its state, as it is on disk.
    pub state: State,
    /// The connection to its agent.
    pub agent: Agent,
    /// Its VMM process, a child of this one.
    pub vmm: VmmProcess,
    /// The user's terminal, where that is the container's.
    pub relay: Option<Relay>,
}

/// Creates a container.
///
/// # Errors
/// Every failure undoes what was made.
pub fn run(global: &Global, args: &Create) -> Result<ExitCode, Error> {
    create(global, &args.options, &args.id, true)?;
    Ok(ExitCode::SUCCESS)
}

/// What `create` does, for `run` as well. `detached` says that this process ends before the container.
///
/// # Errors
/// Every failure undoes what was made.
pub fn create(
    global: &Global,
    options: &Options,
    id: &str,
    detached: bool,
) -> Result<Created, Error> {
    let Planned {
        id,
        bundle,
        console,
        config,
        boot,
        plan,
        cgroup,
    } = plan(global, options, id, detached)?;
    // A cgroup binds the VM to its CPUs by itself.
    let pinned = match cgroup {
        Some(_) => None,
        None => plan.pin()?,
    };
    for limit in inherited::too_low() {
        log::warn!(
            "the caller's {limit} holds for the VM process too, as this user may not raise it (setrlimit(2)): \
             raise it where the caller is started if the VM fails"
        );
    }
    let store = Store::open(&global.root)?;
    let sizing = plan.sizing;
    let mut state = first_state(&id, &bundle, sizing, cgroup);
    let dir = store.create(&state)?;
    let limits = Limits {
        resources: &plan.resources,
        sizing,
        config: &config,
    };
    let prepared = prepare(&dir, &state, &bundle, console, &limits);
    let Prepared {
        cgroup,
        terminal,
        relay,
    } = match prepared {
        Ok(prepared) => prepared,
        Err(e) => {
            dir.discard();
            return Err(e);
        }
    };
    let launch = Launch {
        dir: &dir,
        cgroup,
        selinux_label: plan.selinux_label,
        user_namespace: plan.user_namespace,
        vm: VmConfig {
            held: state.cgroup.as_ref().is_some_and(HostCgroup::is_scope),
            vcpus: sizing.vcpus,
            memory_mib: sizing.memory_mib,
            cmdline: cmdline(global, &config),
            console_log_size: u64::from(config.console_log_size) << 10,
            core_scheduling: config.core_scheduling,
            shares: plan.shares,
            disks: plan.disks.into_iter().map(VmmDisk::from).collect(),
            network: plan.network,
            memory_policy: plan.memory_policy,
            oom_score_adj: plan.oom_score_adj,
            kernel: boot.kernel.map(Into::into),
            initramfs: boot.initramfs.map(Into::into),
            terminal,
        },
    };
    let launched = launch.spawn();
    drop(pinned);
    let mut sandbox = match launched {
        Ok(sandbox) => sandbox,
        Err(e) => {
            discard(dir, &state);
            return Err(e.into());
        }
    };
    let made = bring_up(
        &mut sandbox,
        &dir,
        &mut state,
        &bundle,
        plan.guest_spec,
        options,
        limits,
    );
    let agent = match made {
        Ok(agent) => agent,
        Err(e) => {
            sandbox.abort();
            undo(dir, &state);
            return Err(e);
        }
    };
    match sandbox.commit() {
        Ok(vmm) => Ok(Created {
            dir,
            state,
            agent,
            vmm,
            relay,
        }),
        Err(e) => {
            remove_pid_file(options);
            undo(dir, &state);
            Err(e.into())
        }
    }
}

/// What is known before anything is made.
struct Planned<'a> {
    id: ContainerId,
    bundle: Bundle,
    console: Console<'a>,
    config: Config,
    boot: BootFiles,
    plan: Plan,
    cgroup: Option<HostCgroup>,
}

/// Looks at all that may be refused.
fn plan<'a>(
    global: &Global,
    options: &'a Options,
    id: &str,
    detached: bool,
) -> Result<Planned<'a>, Error> {
    let id: ContainerId = id.parse()?;
    refuse_options(options)?;
    let bundle = spec::load(&options.bundle)?;
    let process = bundle.spec().process().as_ref();
    let terminal = process.and_then(Process::terminal).unwrap_or(false);
    let console = Console::of(terminal, detached, options.console_socket.as_deref())?;
    let config = global.container_config(&bundle.annotations())?;
    let boot = config.boot().open()?;
    let filters = FilterCache::below(&global.root);
    let plan = spec::plan(&bundle, id.as_str(), &config, &filters, is_root())?;
    let cgroup = HostCgroup::of(bundle.spec(), &id, global.systemd_cgroup, is_root())?;
    Ok(Planned {
        id,
        bundle,
        console,
        config,
        boot,
        plan,
        cgroup,
    })
}

/// What the VMM process is started with, besides its plan.
struct Prepared {
    /// The directory of its cgroup, unless systemd makes that.
    cgroup: Option<File>,
    terminal: Option<HostTerminal>,
    /// What of the terminal stays here.
    relay: Option<Relay>,
}

/// Makes what the VMM process needs. Of what was made before a failure, only the container's folder is
/// left.
fn prepare(
    dir: &ContainerDir,
    state: &State,
    bundle: &Bundle,
    console: Console<'_>,
    limits: &Limits<'_>,
) -> Result<Prepared, Error> {
    if let Some(cgroup) = &state.cgroup {
        cgroup.warn_if_shared();
    }
    dir.save_config(bundle.spec())?;
    let (terminal, relay) = open_console(console)?;
    let made = state.cgroup.as_ref().map(|cgroup| cgroup.make(limits));
    Ok(Prepared {
        cgroup: made.transpose()?.flatten(),
        terminal,
        relay,
    })
}

/// What the guest's kernel is told beyond what it always is.
fn cmdline(global: &Global, config: &Config) -> String {
    let debug = if global.debug { " hull.log=debug" } else { "" };
    format!("{}{debug}", config.kernel_params)
}

/// From a launched VMM process to a container whose state says `created`.
fn bring_up(
    sandbox: &mut Sandbox,
    dir: &ContainerDir,
    state: &mut State,
    bundle: &Bundle,
    guest_spec: GuestSpec,
    options: &Options,
    limits: Limits<'_>,
) -> Result<Agent, Error> {
    // From here on `delete --force` finds the process, whatever becomes of this one.
    state.vmm = ProcessId::of(sandbox.pid()).ok();
    dir.save(state)?;
    if let Some(cgroup) = state.cgroup.as_mut().filter(|cgroup| cgroup.is_scope()) {
        cgroup.adopt(sandbox.pid(), &limits)?;
        dir.save(state)?;
        sandbox.begin()?;
    }
    let boot_timeout = Duration::from_secs(limits.config.boot_timeout.into());
    let streams = sandbox.wait_up(dir, boot_timeout)?;
    run_create_hooks(&Hooks::of(bundle.spec()), state)?;
    let agent = sandbox.wait_ready(dir, boot_timeout)?;
    agent
        .create(
            dir.id(),
            guest_spec,
            &state.bundle,
            streams,
            notify::is_wanted(),
        )
        .map_err(Error::container_process)?;
    if bundle.read_only_root() {
        sandbox.make_root_read_only(dir)?;
    }
    if let Some(cgroup) = &state.cgroup {
        cgroup.limit_container(&limits)?;
    }
    state.phase = Phase::Created;
    dir.save(state)?;
    // Last, so that what fails leaves no pid file, and somebody's of that name is left alone.
    if let Some(path) = &options.pid_file {
        write_pid_file(path, sandbox.pid())?;
    }
    Ok(agent)
}

/// The hooks of `create`, while the guest boots: the process that the state names is there, in the
/// container's namespaces of the host, and the container's own process isn't.
fn run_create_hooks(hooks: &Hooks, state: &State) -> Result<(), Error> {
    // `delete --force` kills it, and must not have to wait for a hook.
    let sandbox = state.vmm.and_then(|vmm| vmm.open());
    let call = Call {
        state: &for_hook(state, Status::Creating)?,
        folder: Some(&state.bundle),
        sandbox: sandbox.as_ref(),
    };
    for stage in [
        Stage::Prestart,
        Stage::CreateRuntime,
        Stage::CreateContainer,
    ] {
        hooks.run(stage, call)?;
    }
    Ok(())
}

fn refuse_options(options: &Options) -> Result<(), Error> {
    if options.preserve_fds > 0 {
        let why = "--preserve-fds: a host's file descriptor has no meaning inside a VM";
        return Err(Error::Usage(why.to_owned()));
    }
    Ok(())
}

/// What the VMM process is given for the container's terminal, and what stays here.
fn open_console(console: Console<'_>) -> Result<(Option<HostTerminal>, Option<Relay>), Error> {
    match console {
        Console::None => Ok((None, None)),
        Console::Engine(socket) => {
            let slave = terminal::send_to_engine(socket)?;
            Ok((Some(HostTerminal::Pty(slave)), None))
        }
        Console::Foreground => {
            let (relay, ends) = Relay::new()?;
            Ok((Some(HostTerminal::Relayed(ends)), Some(relay)))
        }
    }
}

/// Removes what there is before the VMM process: nobody has been told of it, so no hook runs.
fn discard(dir: ContainerDir, state: &State) {
    let removed = state
        .cgroup
        .as_ref()
        .map(|cgroup| cgroup.remove(true))
        .transpose();
    if let Err(e) = removed {
        log::warn!("{}", chain(&e));
    }
    dir.discard();
}

fn first_state(
    id: &ContainerId,
    bundle: &Bundle,
    sizing: Sizing,
    cgroup: Option<HostCgroup>,
) -> State {
    State {
        id: id.clone(),
        phase: Phase::Creating,
        paused: false,
        sizing,
        vmm: None,
        cgroup,
        bundle: bundle.path().to_owned(),
        rootfs: bundle.rootfs().to_owned(),
        created: OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default(),
        owner: owner(),
        annotations: bundle.annotations(),
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The name of the user who runs this, as `list` shows it: as with runc, a number where /etc/passwd has none.
fn owner() -> String {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return "root".to_owned();
    }
    match User::from_uid(uid.as_raw().into()) {
        Ok(Some(user)) => user.name,
        _ => format!("#{}", uid.as_raw()),
    }
}

/// Writes a pid file as runc does: it appears whole, for whoever watches for it.
///
/// # Errors
/// When it can't be written.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<(), Error> {
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let name = path
        .file_name()
        .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    // What a command that was killed has left. Or somebody's link, which is not to be followed.
    let _ = fs::remove_file(&temporary);
    let mut file = File::create_new(&temporary).map_err(failed)?;
    file.write_all(pid.to_string().as_bytes())
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|source| {
            let _ = fs::remove_file(&temporary);
            failed(source)
        })
}

fn remove_pid_file(options: &Options) {
    if let Some(path) = &options.pid_file {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_goes_through_nobodys_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, others) = (folder.path().join("pid"), folder.path().join("others"));
        fs::write(&others, "kept").expect("write");
        std::os::unix::fs::symlink(&others, folder.path().join(".pid")).expect("a link");

        write_pid_file(&path, 42).expect("written");

        assert_eq!(fs::read_to_string(&path).expect("read"), "42");
        assert_eq!(fs::read_to_string(&others).expect("read"), "kept");
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 2);
    }
}
