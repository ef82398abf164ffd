//! What the kernel tells of an interface's sysctls along with it, in a message for all: by that is known which of them
//! are as those of `lo`, which nobody changes and which has what the namespace's interfaces start with. Only the others'
//! files have to be read, of more than a hundred.

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, Inet6DevConf, InetDevConf,
};
use netlink_packet_route::neighbour_table::{
    NeighbourTableAttribute, NeighbourTableMessage, NeighbourTableParameter,
};

use super::SysctlTable;

/// What is told of an interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    ipv4: Option<InetDevConf>,
    ipv6: Option<Inet6DevConf>,
    ipv4_neighbours: Option<Vec<NeighbourTableParameter>>,
    ipv6_neighbours: Option<Vec<NeighbourTableParameter>>,
}

impl Told {
    /// Of the families of an RTM_NEWLINK.
    pub(super) fn of(families: &[AfSpecUnspec]) -> Self {
        let mut told = Self::default();
        for family in families {
            match family {
                AfSpecUnspec::Inet(all) => {
                    told.ipv4 = all.iter().find_map(|attribute| match attribute {
                        AfSpecInet::DevConf(conf) => Some(*conf),
                        _ => None,
                    });
                }
                AfSpecUnspec::Inet6(all) => {
                    told.ipv6 = all.iter().find_map(|attribute| match attribute {
                        AfSpecInet6::DevConf(conf) => Some(*conf),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        told
    }

    /// Adds what is told of neighbours, if it is about the interface of this index.
    pub(super) fn add(&mut self, index: u32, table: &NeighbourTableMessage) {
        for attribute in &table.attributes {
            let NeighbourTableAttribute::Parms(all) = attribute else {
                continue;
            };
            if !all.contains(&NeighbourTableParameter::Ifindex(index)) {
                continue;
            }
            let settings = all.iter().filter(|one| is_setting(one)).cloned().collect();
            match table.header.family {
                AddressFamily::Inet => self.ipv4_neighbours = Some(settings),
                AddressFamily::Inet6 => self.ipv6_neighbours = Some(settings),
                _ => {}
            }
        }
    }

    /// Whether a sysctl may have another value than another interface's.
    pub(super) fn may_differ(&self, other: &Self, table: SysctlTable, name: &str) -> bool {
        let pair = match table {
            SysctlTable::Ipv4 => both(&self.ipv4, &other.ipv4, |conf| ipv4(conf, name)),
            SysctlTable::Ipv6 => both(&self.ipv6, &other.ipv6, |conf| ipv6(conf, name)),
            SysctlTable::Ipv4Neighbours => {
                return self.ipv4_neighbours.is_none()
                    || self.ipv4_neighbours != other.ipv4_neighbours;
            }
            SysctlTable::Ipv6Neighbours => {
                return self.ipv6_neighbours.is_none()
                    || self.ipv6_neighbours != other.ipv6_neighbours;
            }
        };
        pair.is_none_or(|(own, others)| own != others)
    }

    /// Whether it has no IPv6, though the kernel has.
    pub(super) fn has_ipv6_off(&self) -> bool {
        self.ipv6.is_some_and(|conf| conf.disable_ipv6 != 0)
    }

    /// Whether the IPv6 MTU is this.
    pub(super) fn has_ipv6_mtu(&self, mtu: u32) -> bool {
        let told = self.ipv6.map(|conf| i64::from(conf.mtu6));
        told == Some(mtu.into())
    }
}

/// The values of both, where both are told.
fn both<T>(
    own: &Option<T>,
    others: &Option<T>,
    value: impl Fn(&T) -> Option<i32>,
) -> Option<(i32, i32)> {
    Some((value(own.as_ref()?)?, value(others.as_ref()?)?))
}

/// Whether it is one that somebody sets, and not the kernel by itself.
fn is_setting(parameter: &NeighbourTableParameter) -> bool {
    !matches!(
        parameter,
        NeighbourTableParameter::Ifindex(_)
            | NeighbourTableParameter::ReferenceCount(_)
            | NeighbourTableParameter::ReachableTime(_)
    )
}

/// The value of a sysctl of `net.ipv4.conf`, if it is told: `disable_policy` and `disable_xfrm` count as untold, as
/// `lo` has others than it started with.
fn ipv4(conf: &InetDevConf, name: &str) -> Option<i32> {
    Some(match name {
        "accept_local" => conf.accept_local,
        "accept_redirects" => conf.accept_redirects,
        "accept_source_route" => conf.accept_source_route,
        "arp_accept" => conf.arp_accept,
        "arp_announce" => conf.arp_announce,
        "arp_evict_nocarrier" => conf.arp_evict_nocarrier,
        "arp_filter" => conf.arpfilter,
        "arp_ignore" => conf.arp_ignore,
        "arp_notify" => conf.arp_notify,
        "bc_forwarding" => conf.bc_forwarding,
        "bootp_relay" => conf.bootp_relay,
        "drop_gratuitous_arp" => conf.drop_gratuitous_arp,
        "drop_unicast_in_l2_multicast" => conf.drop_unicast_in_l2_multicast,
        "force_igmp_version" => conf.force_igmp_version,
        "forwarding" => conf.forwarding,
        "igmpv2_unsolicited_report_interval" => conf.igmpv2_unsolicited_report_interval,
        "igmpv3_unsolicited_report_interval" => conf.igmpv3_unsolicited_report_interval,
        "ignore_routes_with_linkdown" => conf.ignore_routes_with_linkdown,
        "log_martians" => conf.log_martians,
        "medium_id" => conf.medium_id,
        "promote_secondaries" => conf.promote_secondaries,
        "proxy_arp" => conf.proxy_arp,
        "proxy_arp_pvlan" => conf.proxy_arp_pvlan,
        "route_localnet" => conf.route_localnet,
        "rp_filter" => conf.rp_filter,
        "secure_redirects" => conf.secure_redirects,
        "send_redirects" => conf.send_redirects,
        "shared_media" => conf.shared_media,
        "src_valid_mark" => conf.src_vmark,
        "tag" => conf.tag,
        _ => return None,
    })
}

/// The value of a sysctl of `net.ipv6.conf`, if it is told: `stable_secret` isn't, nor what is newer than this list.
/// Nor do `accept_dad` and `use_tempaddr` count, of which `lo` has others than it started with.
fn ipv6(conf: &Inet6DevConf, name: &str) -> Option<i32> {
    Some(match name {
        "accept_ra" => conf.accept_ra,
        "accept_ra_defrtr" => conf.accept_ra_defrtr,
        "accept_ra_from_local" => conf.accept_ra_from_local,
        "accept_ra_min_hop_limit" => conf.accept_ra_min_hop_limit,
        "accept_ra_min_lft" => conf.accept_ra_min_lft,
        "accept_ra_mtu" => conf.accept_ra_mtu,
        "accept_ra_pinfo" => conf.accept_ra_pinfo,
        "accept_ra_rt_info_max_plen" => conf.accept_ra_rt_info_max_plen,
        "accept_ra_rt_info_min_plen" => conf.accept_ra_rt_info_min_plen,
        "accept_ra_rtr_pref" => conf.accept_ra_rtr_pref,
        "accept_redirects" => conf.accept_redirects,
        "accept_source_route" => conf.accept_source_route,
        "accept_untracked_na" => conf.accept_untracked_na,
        "autoconf" => conf.autoconf,
        "dad_transmits" => conf.dad_transmits,
        "disable_ipv6" => conf.disable_ipv6,
        "disable_policy" => conf.disable_policy,
        "drop_unicast_in_l2_multicast" => conf.drop_unicast_in_l2_multicast,
        "drop_unsolicited_na" => conf.drop_unsolicited_na,
        "enhanced_dad" => conf.enhanced_dad,
        "force_mld_version" => conf.force_mld_version,
        "force_tllao" => conf.force_tllao,
        "forwarding" => conf.forwarding,
        "hop_limit" => conf.hoplimit,
        "ignore_routes_with_linkdown" => conf.ignore_routes_with_linkdown,
        "ioam6_enabled" => conf.ioam6_enabled,
        "ioam6_id" => conf.ioam6_id,
        "ioam6_id_wide" => conf.ioam6_id_wide,
        "keep_addr_on_down" => conf.keep_addr_on_down,
        "max_addresses" => conf.max_addresses,
        "max_desync_factor" => conf.max_desync_factor,
        "mldv1_unsolicited_report_interval" => conf.mldv1_unsolicited_report_interval,
        "mldv2_unsolicited_report_interval" => conf.mldv2_unsolicited_report_interval,
        "mtu" => conf.mtu6,
        "ndisc_evict_nocarrier" => conf.ndisc_evict_nocarrier,
        "ndisc_notify" => conf.ndisc_notify,
        "ndisc_tclass" => conf.ndisc_tclass,
        "proxy_ndp" => conf.proxy_ndp,
        "ra_defrtr_metric" => conf.ra_defrtr_metric,
        "regen_max_retry" => conf.regen_max_retry,
        "router_probe_interval" => conf.rtr_probe_interval,
        "router_solicitation_delay" => conf.rtr_solicit_delay,
        "router_solicitation_interval" => conf.rtr_solicit_interval,
        "router_solicitation_max_interval" => conf.rtr_solicit_max_interval,
        "router_solicitations" => conf.rtr_solicits,
        "rpl_seg_enabled" => conf.rpl_seg_enabled,
        "seg6_enabled" => conf.seg6_enabled,
        "suppress_frag_ndisc" => conf.suppress_frag_ndisc,
        "temp_prefered_lft" => conf.temp_prefered_lft,
        "temp_valid_lft" => conf.temp_valid_lft,
        "use_oif_addrs_only" => conf.use_oif_addrs_only,
        "addr_gen_mode" => conf.addr_gen_mode,
        _ => return None,
    })
}
