//! Sysctls of one interface (`net.ipv4.conf.IF` and the like) that somebody has changed: those that aren't as the
//! namespace's `default`, which is what an interface starts with, nor as `lo`'s, which started with it too. For
//! neighbours only the host's own namespace has a `default`, and all others' interfaces start with that; so has `lo`,
//! which tells it there.
//!
//! What `default` itself says isn't carried along. It is the host's own choice, as of most distributions for
//! `rp_filter`, and no engine's for this container; an engine's `--sysctl` is in config.json.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::Error;
use super::links::Link;
use super::told::Told;

/// A sysctl of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Which of the four tables it is in.
    pub table: SysctlTable,
    /// Its name there: `rp_filter`, `disable_ipv6`.
    pub name: String,
    /// What is to be written to its file.
    pub value: String,
}

impl Sysctl {
    /// Its file below `/proc/sys`, for an interface of this name.
    pub fn path(&self, interface: &str) -> PathBuf {
        Path::new(self.table.folder())
            .join(interface)
            .join(&self.name)
    }

    /// Whether it is this one, with this value.
    pub(super) fn is(&self, table: SysctlTable, name: &str, value: &str) -> bool {
        (self.table, self.name.as_str(), self.value.as_str()) == (table, name, value)
    }
}

/// Where an interface has sysctls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SysctlTable {
    /// `net.ipv4.conf`
    Ipv4,
    /// `net.ipv6.conf`
    Ipv6,
    /// `net.ipv4.neigh`
    Ipv4Neighbours,
    /// `net.ipv6.neigh`
    Ipv6Neighbours,
}

impl SysctlTable {
    pub(super) const ALL: [Self; 4] = [
        Self::Ipv4,
        Self::Ipv6,
        Self::Ipv4Neighbours,
        Self::Ipv6Neighbours,
    ];

    /// The folder below `/proc/sys` that has one for each interface.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Ipv4 => "net/ipv4/conf",
            Self::Ipv6 => "net/ipv6/conf",
            Self::Ipv4Neighbours => "net/ipv4/neigh",
            Self::Ipv6Neighbours => "net/ipv6/neigh",
        }
    }
}

/// The most bytes that a value has. Longer ones aren't an interface's.
const LONGEST: usize = 4096;

/// What can be set of an interface in the guest's kernel (`devinet_sysctl` of Linux's net/ipv4/devinet.c). Others, of a newer
/// kernel of the host, nobody could set there. And listing the folders costs more than reading these does.
const IPV4: [&str; 32] = [
    "accept_local",
    "accept_redirects",
    "accept_source_route",
    "arp_accept",
    "arp_announce",
    "arp_evict_nocarrier",
    "arp_filter",
    "arp_ignore",
    "arp_notify",
    "bc_forwarding",
    "bootp_relay",
    "disable_policy",
    "disable_xfrm",
    "drop_gratuitous_arp",
    "drop_unicast_in_l2_multicast",
    "force_igmp_version",
    "forwarding",
    "igmpv2_unsolicited_report_interval",
    "igmpv3_unsolicited_report_interval",
    "ignore_routes_with_linkdown",
    "log_martians",
    "medium_id",
    "promote_secondaries",
    "proxy_arp",
    "proxy_arp_pvlan",
    "route_localnet",
    "rp_filter",
    "secure_redirects",
    "send_redirects",
    "shared_media",
    "src_valid_mark",
    "tag",
];

/// Likewise (`addrconf_sysctl` of net/ipv6/addrconf.c). `addr_gen_mode` is last, as `stable_secret` changes it.
const IPV6: [&str; 58] = [
    "accept_dad",
    "accept_ra",
    "accept_ra_defrtr",
    "accept_ra_from_local",
    "accept_ra_min_hop_limit",
    "accept_ra_min_lft",
    "accept_ra_mtu",
    "accept_ra_pinfo",
    "accept_ra_rt_info_max_plen",
    "accept_ra_rt_info_min_plen",
    "accept_ra_rtr_pref",
    "accept_redirects",
    "accept_source_route",
    "accept_untracked_na",
    "autoconf",
    "dad_transmits",
    "disable_ipv6",
    "disable_policy",
    "drop_unicast_in_l2_multicast",
    "drop_unsolicited_na",
    "enhanced_dad",
    "force_mld_version",
    "force_tllao",
    "forwarding",
    "hop_limit",
    "ignore_routes_with_linkdown",
    "ioam6_enabled",
    "ioam6_id",
    "ioam6_id_wide",
    "keep_addr_on_down",
    "max_addresses",
    "max_desync_factor",
    "mldv1_unsolicited_report_interval",
    "mldv2_unsolicited_report_interval",
    "mtu",
    "ndisc_evict_nocarrier",
    "ndisc_notify",
    "ndisc_tclass",
    "proxy_ndp",
    "ra_defrtr_metric",
    "ra_honor_pio_life",
    "ra_honor_pio_pflag",
    "regen_max_retry",
    "regen_min_advance",
    "router_probe_interval",
    "router_solicitation_delay",
    "router_solicitation_interval",
    "router_solicitation_max_interval",
    "router_solicitations",
    "rpl_seg_enabled",
    "seg6_enabled",
    "stable_secret",
    "suppress_frag_ndisc",
    "temp_prefered_lft",
    "temp_valid_lft",
    "use_oif_addrs_only",
    "use_tempaddr",
    "addr_gen_mode",
];

/// Likewise (`neigh_sysctl_template` of net/core/neighbour.c). What is there twice, in milliseconds or bytes too, is taken
/// once.
const NEIGHBOURS: [&str; 14] = [
    "anycast_delay",
    "app_solicit",
    "base_reachable_time_ms",
    "delay_first_probe_time",
    "gc_stale_time",
    "interval_probe_time_ms",
    "locktime",
    "mcast_resolicit",
    "mcast_solicit",
    "proxy_delay",
    "proxy_qlen",
    "retrans_time_ms",
    "ucast_solicit",
    "unres_qlen_bytes",
];

impl SysctlTable {
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Ipv4 => &IPV4,
            Self::Ipv6 => &IPV6,
            Self::Ipv4Neighbours | Self::Ipv6Neighbours => &NEIGHBOURS,
        }
    }
}

/// What the interfaces of a namespace start with: `default`, or `lo`, as far as they have been opened. There is none
/// where the kernel lacks the table.
#[derive(Default)]
pub(super) struct Defaults(Vec<(SysctlTable, Option<Folder>)>);

impl Defaults {
    fn of(&mut self, table: SysctlTable) -> Result<Option<&Folder>, Error> {
        let index = match self.0.iter().position(|(known, _)| *known == table) {
            Some(index) => index,
            None => {
                let folder = match Folder::open(table, "default")? {
                    None => Folder::open(table, "lo")?,
                    folder => folder,
                };
                self.0.push((table, folder));
                self.0.len() - 1
            }
        };
        Ok(self.0[index].1.as_ref())
    }

    /// The sysctls of an interface that aren't as these. What is as `lo`'s is taken for that. To be called by a thread in
    /// the namespace.
    ///
    /// # Errors
    /// When a file can't be read.
    pub(super) fn changed(&mut self, link: &Link, lo: &Told) -> Result<Vec<Sysctl>, Error> {
        let mut all = Vec::new();
        for table in SysctlTable::ALL {
            // An interface's IPv6 MTU follows its own, `default` has the least that IPv6 can do with.
            let follows = |name: &str| {
                (table, name) == (SysctlTable::Ipv6, "mtu") && link.told.has_ipv6_mtu(link.mtu)
            };
            // Without IPv6 in the whole namespace (docker, on a network of IPv4 alone) `default` and `lo` say so, too;
            // but the guest's kernel has it on.
            let switches_ipv6_off = |name: &str| {
                (table, name) == (SysctlTable::Ipv6, "disable_ipv6") && link.told.has_ipv6_off()
            };
            let is_candidate = |name: &&&str| {
                (link.told.may_differ(lo, table, name) && !follows(name)) || switches_ipv6_off(name)
            };
            let mut names = table.names().iter().filter(is_candidate).peekable();
            if names.peek().is_none() {
                continue;
            }
            let Some(own) = Folder::open(table, &link.name)? else {
                continue;
            };
            for name in names {
                let Some(value) = own.read(name)? else {
                    continue;
                };
                let default = match self.of(table)? {
                    Some(defaults) => defaults.read(name)?,
                    None => None,
                };
                if switches_ipv6_off(name) || default.as_ref() != Some(&value) {
                    let name = (*name).to_owned();
                    all.push(Sysctl { table, name, value });
                }
            }
        }
        Ok(all)
    }
}

/// The sysctls of an interface, or of `default`, which are opened from here.
struct Folder {
    path: PathBuf,
    fd: OwnedFd,
}

impl Folder {
    /// `None` where there is no such folder, as without IPv6.
    fn open(table: SysctlTable, name: &str) -> Result<Option<Self>, Error> {
        let path = Path::new("/proc/sys").join(table.folder()).join(name);
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        match openat(CWD, &path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { path, fd })),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::Sysctl {
                path,
                source: e.into(),
            }),
        }
    }

    /// A value; `None` for one that isn't set, that this kernel doesn't have, or that is gone with its interface.
    fn read(&self, name: &str) -> Result<Option<String>, Error> {
        let mut value = [0; LONGEST];
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut read = || -> rustix::io::Result<usize> {
            let file = openat(&self.fd, name, flags, Mode::empty())?;
            rustix::io::read(file, &mut value)
        };
        match read() {
            Ok(length) => {
                let value = String::from_utf8_lossy(&value[..length]);
                Ok(Some(value.trim_end().to_owned()))
            }
            // EIO: a `stable_secret` that nobody has set. EACCES: one that can only be written.
            Err(Errno::NOENT | Errno::IO | Errno::ACCESS) => Ok(None),
            Err(e) => Err(self.failed(name, e)),
        }
    }

    fn failed(&self, name: &str, error: Errno) -> Error {
        Error::Sysctl {
            path: self.path.join(name),
            source: error.into(),
        }
    }
}
