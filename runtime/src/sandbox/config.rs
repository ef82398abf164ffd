//! What `create` tells the VMM process it launches: one JSON document in an inherited memory file, with
//! the numbers of the other file descriptors that it inherits.
//!
//! The same types hold the descriptors themselves on both sides. [`VmmConfig::with`] alone knows where they
//! are: what is passed on, kept open and taken over follows from it.

use std::convert::Infallible;
use std::num::NonZeroU8;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use hull_vmm::jail::tree::{Share, View};
use serde::{Deserialize, Serialize};

use super::HostTerminal;
use crate::spec::{Disk, MemoryPolicy, Network};

/// Everything a VMM process needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmmConfig<Fd = OwnedFd> {
    /// What it is to run.
    pub vm: VmConfig<Fd>,
    /// What connects it to others.
    pub ends: Ends<Fd>,
}

/// What `create` has decided.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmConfig<Fd = OwnedFd> {
    /// Whether the process waits to be let begin; see `lifeline`.
    pub held: bool,
    /// How many vCPUs the guest has.
    pub vcpus: NonZeroU8,
    /// The guest's memory, in MiB.
    pub memory_mib: u32,
    /// How much more it can be given while it runs, in MiB; 0 for nothing.
    pub growth_mib: u32,
    /// Words for the end of the kernel's command line.
    pub cmdline: String,
    /// The most that is kept of the guest's console, in bytes.
    pub console_log_size: u64,
    /// Whether the process shares a processor's core with no other process.
    pub core_scheduling: bool,
    /// What the guest sees of the host's file systems.
    pub shares: Vec<Share<Fd>>,
    /// What the host sees by the process's pid.
    pub view: View,
    /// The host's block devices that the guest has.
    pub disks: Vec<VmmDisk<Fd>>,
    /// How many slots there are for disks that are handed over while it runs; each costs a thread.
    pub disk_slots: u8,
    /// Whether the guest reaches UNIX sockets of the host in its shares.
    pub volume_sockets: bool,
    /// How many slots there are for network interfaces.
    pub nic_slots: u8,
    /// The network namespace that the process is in.
    pub network: Network<Fd>,
    /// The policy by which the host allocates the VM's memory.
    pub memory_policy: Option<MemoryPolicy>,
    /// How readily the host's kernel ends the process for want of memory (proc(5), oom_score_adj).
    pub oom_score_adj: Option<i32>,
    /// The guest kernel, where it is not the built-in one.
    pub kernel: Option<Fd>,
    /// The guest's initramfs, where it is not the built-in one.
    pub initramfs: Option<Fd>,
    /// The container's terminal, in place of the process's standard streams.
    pub terminal: Option<HostTerminal<Fd>>,
}

/// The VMM process's ends of what connects it to others, its KVM, and what it is root in.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ends<Fd = OwnedFd> {
    /// The listening control socket.
    pub listener: Fd,
    /// The connection to `create`; see `lifeline`.
    pub lifeline: Fd,
    /// A pipe on which the agent's hello is passed on to `create`.
    pub ready: Fd,
    /// The file that takes the guest's console.
    pub console: Fd,
    /// /dev/kvm: the process's cgroup may be one in which no device can be opened.
    pub kvm: Fd,
    /// The user namespace that the process is root in, where it is not the host's root.
    pub user_namespace: Option<Fd>,
}

/// One block device of the host.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmmDisk<Fd = OwnedFd> {
    /// The device, open for reading, and for writing unless `read_only`.
    pub device: Fd,
    /// The serial number by which the guest finds it.
    pub serial: String,
    /// Whether writes are refused, on the host's side.
    pub read_only: bool,
}

impl<Fd> VmmConfig<Fd> {
    /// The same, with each descriptor in another form.
    ///
    /// # Errors
    /// When `change` fails.
    pub fn with<'a, To, E>(
        &'a self,
        mut change: impl FnMut(&'a Fd) -> Result<To, E>,
    ) -> Result<VmmConfig<To>, E> {
        let Self { vm, ends } = self;
        Ok(VmmConfig {
            vm: vm.with(&mut change)?,
            ends: ends.with(&mut change)?,
        })
    }

    /// Its descriptors.
    pub fn descriptors(&self) -> Vec<&Fd> {
        let mut found = Vec::new();
        let Ok(_) = self.with(|fd| {
            found.push(fd);
            Ok::<_, Infallible>(())
        });
        found
    }
}

impl VmmConfig {
    /// With the numbers of its descriptors, as the process that inherits them has them.
    pub fn numbers(&self) -> VmmConfig<RawFd> {
        let Ok(numbers) = self.with(|fd| Ok::<_, Infallible>(fd.as_raw_fd()));
        numbers
    }
}

impl<Fd> VmConfig<Fd> {
    fn with<'a, To, E>(
        &'a self,
        change: &mut impl FnMut(&'a Fd) -> Result<To, E>,
    ) -> Result<VmConfig<To>, E> {
        // Without "..": a field that is new doesn't compile before it is here.
        let Self {
            held,
            vcpus,
            memory_mib,
            growth_mib,
            cmdline,
            console_log_size,
            core_scheduling,
            shares,
            view,
            disks,
            disk_slots,
            volume_sockets,
            nic_slots,
            network,
            memory_policy,
            oom_score_adj,
            kernel,
            initramfs,
            terminal,
        } = self;
        Ok(VmConfig {
            held: *held,
            vcpus: *vcpus,
            memory_mib: *memory_mib,
            growth_mib: *growth_mib,
            cmdline: cmdline.clone(),
            console_log_size: *console_log_size,
            core_scheduling: *core_scheduling,
            shares: (shares.iter())
                .map(|share| share.with(&mut *change))
                .collect::<Result<_, E>>()?,
            view: view.clone(),
            disks: (disks.iter())
                .map(|disk| disk.with(&mut *change))
                .collect::<Result<_, E>>()?,
            disk_slots: *disk_slots,
            volume_sockets: *volume_sockets,
            nic_slots: *nic_slots,
            network: network.with(&mut *change)?,
            memory_policy: memory_policy.clone(),
            oom_score_adj: *oom_score_adj,
            kernel: kernel.as_ref().map(&mut *change).transpose()?,
            initramfs: initramfs.as_ref().map(&mut *change).transpose()?,
            terminal: (terminal.as_ref())
                .map(|terminal| terminal.with(&mut *change))
                .transpose()?,
        })
    }
}

impl From<Disk> for VmmDisk {
    fn from(disk: Disk) -> Self {
        Self {
            device: disk.device,
            serial: disk.about.serial,
            read_only: disk.read_only,
        }
    }
}

impl<Fd> VmmDisk<Fd> {
    fn with<'a, To, E>(
        &'a self,
        change: impl FnOnce(&'a Fd) -> Result<To, E>,
    ) -> Result<VmmDisk<To>, E> {
        let Self {
            device,
            serial,
            read_only,
        } = self;
        Ok(VmmDisk {
            device: change(device)?,
            serial: serial.clone(),
            read_only: *read_only,
        })
    }
}

impl<Fd> Ends<Fd> {
    fn with<'a, To, E>(
        &'a self,
        change: &mut impl FnMut(&'a Fd) -> Result<To, E>,
    ) -> Result<Ends<To>, E> {
        let Self {
            listener,
            lifeline,
            ready,
            console,
            kvm,
            user_namespace,
        } = self;
        Ok(Ends {
            listener: change(listener)?,
            lifeline: change(lifeline)?,
            ready: change(ready)?,
            console: change(console)?,
            kvm: change(kvm)?,
            user_namespace: user_namespace.as_ref().map(change).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::TerminalStreams;
    use serde_json::json;

    #[test]
    fn what_is_written_has_the_number_of_each_descriptor() {
        let mut next = 100..;
        let mut number = || next.next().expect("a number");
        let mounted = json!({
            "path": number(), "recursive": true, "receives_propagation": false, "read_only": "Unchanged",
            "times": {"itself": null, "all": null}, "owners": null,
        });
        let terminal = HostTerminal::Relayed(TerminalStreams {
            text: number(),
            sizes: number(),
        });
        let share = json!({ "name": "root", "target": "/", "source": { "Bind": mounted } });
        let config = VmmConfig {
            vm: VmConfig {
                held: false,
                vcpus: NonZeroU8::MIN,
                memory_mib: 128,
                growth_mib: 0,
                cmdline: String::new(),
                console_log_size: 0,
                core_scheduling: false,
                shares: vec![serde_json::from_value(share).expect("a share")],
                view: View::default(),
                disks: vec![VmmDisk {
                    device: number(),
                    serial: "disk".to_owned(),
                    read_only: true,
                }],
                disk_slots: 0,
                volume_sockets: false,
                nic_slots: 0,
                network: Network::Named(number()),
                memory_policy: None,
                oom_score_adj: None,
                kernel: Some(number()),
                initramfs: Some(number()),
                terminal: Some(terminal),
            },
            ends: Ends {
                listener: number(),
                lifeline: number(),
                ready: number(),
                console: number(),
                kvm: number(),
                user_namespace: Some(number()),
            },
        };

        let mut numbers: Vec<RawFd> = config.descriptors().into_iter().copied().collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (100..number()).collect::<Vec<_>>());
        let text = serde_json::to_string(&config).expect("JSON");
        let read: VmmConfig<RawFd> = serde_json::from_str(&text).expect("the same");
        assert_eq!(read.descriptors(), config.descriptors());
    }
}
