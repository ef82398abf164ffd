//! A further container in a sandbox that runs: its shares are added to the VM's from outside, and a stand-in on the
//! host ends as it does.
//!
//! What belongs to the whole VM is as the first container has it: one that asks for something else is refused.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use hull_vmm::jail::tree::{ReadOnly, Share, Source};
use oci_spec::runtime::{LinuxResources, Spec};
use rustix::fs::fstat;
use rustix::rand::{GetRandomFlags, getrandom};

use super::console_socket::send_followed_terminal;
use super::create::{Create, Created, Terminal, commit, first_record, run_create_hooks};
use super::delete::{leave, remove_cgroup, undo};
use super::hooks::Hooks;
use super::network::{is_in_network, net_devices};
use super::{Context, Error, Verb, WrongState, allow, membership, mount_points, vm_memory};
use crate::cgroup::{self, HostCgroup};
use crate::chain::chain;
use crate::config::Config;
use crate::host::{Privilege, ProcessId};
use crate::sandbox::{
    AgentError, AttachedStdio, BlockingAgent, ContainerEnds, GuestNetwork, Lifeline, Offer,
    SandboxError, StandIn, Stdio, add_shares, hand_disk,
};
use crate::spec::{self, Disk, FilterCache, GuestSpec, Network, Plan};
use crate::store::{ContainerDir, Joined, Phase, SandboxDir, State, Status};
use crate::types::ContainerId;

/// The sandbox that a container is to join.
struct Target {
    files: SandboxDir,
    /// Its first container, with its record.
    first: State,
    /// That one's config.json.
    config: Spec,
    vmm: ProcessId,
}

/// What the guest gets of the container.
struct ForGuest {
    spec: GuestSpec,
    disks: Vec<Disk>,
    stdio: Offer,
}

/// Creates a container in the sandbox of another one.
///
/// # Errors
/// Every failure undoes what was made.
pub fn join(
    context: &Context,
    mut request: Create<'_>,
    sandbox: &ContainerId,
) -> Result<Created, Error> {
    let target = find(context, sandbox)?;
    let folder = unique().map_err(SandboxError::host("name the container's shares"))?;
    let shared = membership::share(context, &mut request.bundle, sandbox, target.vmm)?;
    let (mut plan, config) = plan(context, &request, &target, &folder)?;
    plan.guest_spec.shared_namespaces = shared;
    let joined = Joined {
        sandbox: sandbox.clone(),
        vmm: target.vmm,
        folder: folder.clone(),
        stand_in: None,
        cgroup: cgroup_of_stand_in(context, &request)?,
    };
    let container = first_record(&request, Some(joined.clone()));
    let sandbox = target.first.sandbox.clone();
    let mut state = State { container, sandbox };
    let dir = context.store()?.create(&state)?;
    let limits = cgroup::Limits {
        // The guest's kernel enforces them: on the host there is but a process that waits.
        resources: &LinuxResources::default(),
        sizing: target.first.sandbox.sizing,
        plugged_mib: 0,
        config: &config,
    };
    let (stand_in, for_guest) =
        match prepare_host(context, &dir, &joined, &mut request, plan, &target, &limits) {
            Ok(prepared) => prepared,
            Err(e) => {
                // With what can't be removed the folder stays, for `delete`.
                match leave(&dir, &state, true).and_then(|()| remove_cgroup(&state)) {
                    Ok(()) => dir.discard(),
                    Err(e) => log::warn!("{}", chain(&e)),
                }
                return Err(e);
            }
        };
    match bring_up(
        context, &stand_in, for_guest, &dir, &mut state, &request, &limits,
    ) {
        Ok(agent) => Ok(Created {
            dir,
            state,
            agent,
            process: stand_in.into_process(),
        }),
        Err(e) => {
            stand_in.abort();
            undo(context, dir, &state);
            Err(e)
        }
    }
}

/// The sandbox whose first container has this id.
fn find(context: &Context, id: &ContainerId) -> Result<Target, Error> {
    let dir = context.find(id)?;
    let first = dir.load()?;
    if let Some(joined) = &first.container.joined {
        return Err(Error::NotASandbox {
            id: id.clone(),
            sandbox: joined.sandbox.clone(),
        });
    }
    let verb = Verb::Join;
    allow(verb, &first, &Status::WITH_PROCESSES)?;
    let vmm = first.sandbox.vmm.ok_or_else(|| {
        Error::WrongState(WrongState {
            verb,
            id: id.clone(),
            status: Status::Stopped,
        })
    })?;
    Ok(Target {
        files: dir.own_sandbox(),
        config: dir.load_config()?,
        first,
        vmm,
    })
}

/// Looks at all that may be refused.
fn plan(
    context: &Context,
    request: &Create<'_>,
    target: &Target,
    folder: &str,
) -> Result<(Plan, Config), Error> {
    let privilege = Privilege::own();
    if !privilege.is_host_root() {
        return Err(Error::JoinNeedsRoot);
    }
    let bundle = &request.bundle;
    let mut config = context.settings.for_container(&bundle.annotations())?;
    config.volume_sockets &= target.first.sandbox.volume_sockets;
    spec::apply_policy(bundle, None, &config)?;
    let filters = FilterCache::below(&context.root);
    // A disk stays in its VM when its container goes, and keeps its serial number: it is one that nobody has had.
    let plan = spec::plan(bundle, folder, folder, &config, &filters, privilege)?;
    let sizing = target.first.sandbox.sizing;
    match request.sandbox {
        Some(_) => spec::fits(sizing, &plan.resources, &config)?,
        // Who makes a pod doesn't choose its VM: a limit is what its container may use at most.
        None => spec::warn_if_too_small(sizing, &plan.resources, &config),
    }
    let asks = [
        ("linux.resources.cpu.cpus", plan.is_bound_to_cpus()),
        ("linux.memoryPolicy", plan.memory_policy.is_some()),
        (
            "linux.netDevices",
            net_devices(bundle.spec()).next().is_some(),
        ),
        (
            "linux.namespaces",
            !is_network_of(&plan.network, target.vmm),
        ),
        (
            "process.selinuxLabel",
            plan.selinux_label.is_some() && label_of(bundle.spec()) != label_of(&target.config),
        ),
    ];
    let mut asked = asks.into_iter().filter(|(_, is_asked)| *is_asked);
    let of_the_vm = asked.next().map(|(field, _)| field);
    match of_the_vm.or_else(|| cgroup::needs_host(&plan.resources)) {
        Some(field) => Err(Error::OfTheSandbox {
            field,
            sandbox: target.first.sandbox.id.clone(),
        }),
        None => Ok((plan, config)),
    }
}

/// The cgroup that config.json names for the process on the host: engines count there, and wait for it to be empty. Without
/// a name there is none.
fn cgroup_of_stand_in(
    context: &Context,
    request: &Create<'_>,
) -> Result<Option<HostCgroup>, Error> {
    let spec = request.bundle.spec();
    if HostCgroup::asked_for(spec).is_none() {
        return Ok(None);
    }
    let cgroup = HostCgroup::of(spec, &request.id, context.systemd_cgroup, Privilege::own());
    Ok(cgroup?)
}

fn label_of(spec: &Spec) -> Option<&String> {
    (spec.process().as_ref()).and_then(|process| process.selinux_label().as_ref())
}

/// A name that nobody has had, 12 characters long.
fn unique() -> io::Result<String> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes[..6], GetRandomFlags::empty())?;
    Ok(format!("{:012x}", u64::from_le_bytes(bytes)))
}

/// Whether it is the network namespace that the sandbox has on the host, or none that anybody has named.
fn is_network_of(network: &Network, vmm: ProcessId) -> bool {
    let Network::Named(named) = network else {
        return true;
    };
    fstat(named).is_ok_and(|named| is_in_network(vmm, &named))
}

/// Has the host refuse every change to the container's root, from the first moment: what runs in the sandbox already
/// could change it at once.
fn make_root_read_only(shares: &mut [Share], folder: &str) {
    let target = Path::new(folder).join("rootfs");
    for share in shares.iter_mut().filter(|share| share.target == target) {
        if let Source::Bind(root) = &mut share.source {
            root.read_only = ReadOnly::Itself(true);
        }
    }
}

/// Adds the shares, hands the streams over, and starts the stand-in.
fn prepare_host(
    context: &Context,
    dir: &ContainerDir,
    joined: &Joined,
    request: &mut Create<'_>,
    mut plan: Plan,
    target: &Target,
    limits: &cgroup::Limits<'_>,
) -> Result<(Lifeline, ForGuest), Error> {
    let folder = &*joined.folder;
    dir.save_config(request.bundle.spec())?;
    if request.bundle.read_only_root() {
        mount_points::make(&request.bundle);
        make_root_read_only(&mut plan.shares, folder);
    }
    add_shares(target.vmm, folder, plan.shares)?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let own;
    let (stdio, sizes) = match std::mem::take(&mut request.terminal) {
        Terminal::Streams(streams) => {
            own = streams;
            (Stdio::Streams(own.each_ref().map(AsFd::as_fd)), None)
        }
        Terminal::None => (
            Stdio::Streams([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]),
            None,
        ),
        Terminal::Relayed(streams) => (Stdio::Terminal(streams), None),
        Terminal::Engine(socket) => {
            let (sizes, streams) = send_followed_terminal(socket)?;
            (Stdio::Terminal(streams), Some(sizes))
        }
    };
    let streams = AttachedStdio::attach(&target.files, stdio)?;
    let stdio = streams.offer();
    let cgroup = joined.cgroup.as_ref();
    let cgroup = cgroup.map(|cgroup| cgroup.make(limits)).transpose()?;
    let stand_in = StandIn {
        container: dir.id(),
        store: context.store()?.key()?,
        sandbox: &target.files,
        vmm: target.vmm,
        folder,
        cgroup: cgroup.flatten(),
        streams,
        sizes,
    };
    let stand_in = stand_in.spawn()?;
    let for_guest = ForGuest {
        spec: plan.guest_spec,
        disks: plan.disks,
        stdio,
    };
    Ok((stand_in, for_guest))
}

/// From a stand-in to a container whose state says `created`, which lives on without this process.
fn bring_up(
    context: &Context,
    stand_in: &Lifeline,
    for_guest: ForGuest,
    dir: &ContainerDir,
    state: &mut State,
    request: &Create<'_>,
    limits: &cgroup::Limits<'_>,
) -> Result<BlockingAgent, Error> {
    let ForGuest {
        mut spec,
        disks,
        stdio,
    } = for_guest;
    if let Some(joined) = &mut state.container.joined {
        joined.stand_in = ProcessId::of(stand_in.pid()).ok();
    }
    dir.save(&state.container)?;
    adopt(stand_in, dir, state, limits)?;
    run_create_hooks(&Hooks::of(request.bundle.spec()), state)?;
    let sandbox = dir.sandbox_of(&state.container)?;
    let agent = BlockingAgent::connect(&sandbox)?;
    // One of this id may have been deleted by force without the agent's doing.
    match agent.ask(|agent| agent.delete(dir.id())) {
        Ok(()) | Err(AgentError::NotFound(_)) => {}
        Err(e) => return Err(e.into()),
    }
    if let Some(joined) = &state.container.joined {
        vm_memory::fit(context, &joined.sandbox, joined.vmm, None)?;
    }
    // Last of what may fail here: a disk stays in its slot until the VM ends.
    hand_disks(&sandbox, &disks, &mut spec)?;
    let bundle = request.bundle.path();
    let ends = ContainerEnds {
        stdio,
        exit_status: None,
        notify: request.service_manager.is_some(),
        volume_sockets: false, // the sandbox's first container has asked for it, or may not
        network: GuestNetwork::default(),
    };
    agent
        .ask(|agent| agent.create(dir.id(), spec, bundle, ends))
        .map_err(Error::ContainerProcess)?;
    stand_in.begin()?;
    state.container.phase = Phase::Created;
    dir.save(&state.container)?;
    commit(request, stand_in)?;
    Ok(agent)
}

/// Has systemd make the stand-in's cgroup around it, if it is to.
fn adopt(
    stand_in: &Lifeline,
    dir: &ContainerDir,
    state: &mut State,
    limits: &cgroup::Limits<'_>,
) -> Result<(), Error> {
    let joined = state.container.joined.as_mut();
    let cgroup = joined.and_then(|joined| joined.cgroup.as_mut());
    if let Some(cgroup) = cgroup.filter(|cgroup| cgroup.is_scope()) {
        cgroup.adopt(stand_in.pid(), limits)?;
        dir.save(&state.container)?;
    }
    Ok(())
}

/// Hands the container's disks to the VM, and tells the agent of the slots that they are in.
fn hand_disks(vm: &SandboxDir, disks: &[Disk], spec: &mut GuestSpec) -> Result<(), Error> {
    for (disk, about) in disks.iter().zip(&mut spec.block_devices) {
        let slot = hand_disk(vm, disk.device.as_fd(), &disk.about.serial, disk.read_only)?;
        about.slot = u32::from(slot) + 1;
    }
    Ok(())
}
