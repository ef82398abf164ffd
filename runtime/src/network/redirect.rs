//! Redirection by tc(8): what one interface receives, another sends. Two of these, and a tap is as good as the
//! interface itself; Kata Containers calls it the tcfilter model.
//!
//! ```text
//! tc qdisc add dev FROM ingress
//! tc filter add dev FROM ingress pref 26741 protocol all u32 match u32 0 0 action mirred egress redirect dev TO
//! ```
//!
//! The filter is a u32 rather than a matchall: kernels are built without the latter. What an engine has put at the
//! interface's ingress is left alone: filters of its own are refused by the caller, as they would see nothing any
//! more; a clsact qdisc of its own is used, and stays. An ingress qdisc without filters, which does nothing, is
//! removed in the end. XDP and tcx programs come before
//! the filter, and qdiscs for sending (a rate limit) after it, so those keep working.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::error::NetlinkError;
use super::netlink::Netlink;

/// The preference of hull's filters, by which they are known: "hu".
pub(super) const PREFERENCE: u16 = 0x6875;

/// The qdisc's kind.
const INGRESS: &str = "ingress";

/// The kind of the qdisc that is none: what is sent isn't queued before the interface.
const NO_QUEUE: &str = "noqueue";

/// ETH_P_ALL of linux/if_ether.h.
const ALL_PROTOCOLS: u16 = 3;

/// Where filters for what is received are, in an ingress qdisc and in a clsact.
const RECEIVED: TcHandle = TcHandle {
    major: 0xffff,
    minor: TcHandle::MIN_INGRESS,
};

/// What is at an interface's ingress.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ingress {
    /// No qdisc.
    Nothing,
    /// A qdisc, and hull's filter or none.
    Own {
        /// Whether the qdisc is one that hull makes.
        is_ingress: bool,
        /// Whether there is a filter, which a VM process that has died has left.
        has_filter: bool,
    },
    /// A filter of somebody else's, of this kind.
    Others(String),
}

impl Ingress {
    /// Looks at an interface.
    pub(super) fn of(netlink: &mut Netlink, index: u32) -> Result<Self, NetlinkError> {
        let Some(kind) = qdisc(netlink, index)? else {
            return Ok(Self::Nothing);
        };
        let mut has_filter = false;
        for filter in filters(netlink, index)? {
            let kind = kind_of(&filter);
            if preference(&filter) != u32::from(PREFERENCE) || kind != Some(TcFilterU32::KIND) {
                return Ok(Self::Others(kind.unwrap_or("unknown").to_owned()));
            }
            has_filter = true;
        }
        Ok(Self::Own {
            is_ingress: kind == INGRESS,
            has_filter,
        })
    }
}

/// Has an interface that has no qdisc at its ingress get one.
pub(super) fn add_qdisc(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    let request = RouteNetlinkMessage::NewQueueDiscipline(ingress_qdisc(index));
    netlink.ask(request, NLM_F_CREATE | NLM_F_EXCL).map(drop)
}

/// Has an interface that was never up send what it is to send at once, without a qdisc's queue before its own.
pub(super) fn send_at_once(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    let mut request = at(index);
    request.header.parent = TcHandle::ROOT;
    let kind = TcAttribute::Kind(NO_QUEUE.to_owned());
    request.attributes.push(kind);
    let request = RouteNetlinkMessage::NewQueueDiscipline(request);
    netlink.ask(request, NLM_F_CREATE | NLM_F_EXCL).map(drop)
}

/// Has an interface send all that another one receives, which must have a qdisc at its ingress.
pub(super) fn add_filter(netlink: &mut Netlink, from: u32, to: u32) -> Result<(), NetlinkError> {
    let mut all = TcU32Selector::default();
    all.flags = TcU32SelectorFlags::Terminal;
    all.keys = vec![TcU32Key::default()];
    all.nkeys = 1;
    let mut redirect = TcMirror::default();
    redirect.eaction = TcMirrorActionType::EgressRedir;
    redirect.generic.action = TcActionType::Stolen;
    redirect.ifindex = to;
    let redirect = TcActionOption::Mirror(TcActionMirrorOption::Parms(redirect));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![redirect]),
    ];
    add_u32(netlink, own_filter(from), all, action)
}

/// Adds a u32 filter that does one thing with what it selects.
pub(super) fn add_u32(
    netlink: &mut Netlink,
    mut filter: TcMessage,
    selector: TcU32Selector,
    action: TcAction,
) -> Result<(), NetlinkError> {
    filter.attributes.push(TcAttribute::Options(vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]));
    let request = RouteNetlinkMessage::NewTrafficFilter(filter);
    netlink.ask(request, NLM_F_CREATE | NLM_F_EXCL).map(drop)
}

/// Removes hull's filter, and the qdisc if it is one that hull makes. None of it need be there, nor the interface;
/// somebody else's filters stay, and their qdisc with them.
pub(super) fn remove(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    match try_remove(netlink, index) {
        // Somebody else was faster, or the interface is gone.
        Err(e) if e.is(libc::ENOENT) || e.is(libc::ENODEV) => Ok(()),
        done => done,
    }
}

fn try_remove(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    match Ingress::of(netlink, index)? {
        Ingress::Nothing | Ingress::Others(_) => Ok(()),
        Ingress::Own {
            is_ingress: true, ..
        } => {
            let request = RouteNetlinkMessage::DelQueueDiscipline(ingress_qdisc(index));
            netlink.ask(request, 0).map(drop)
        }
        Ingress::Own {
            is_ingress: false,
            has_filter,
        } => match has_filter {
            true => remove_filter(netlink, index),
            false => Ok(()),
        },
    }
}

/// Removes hull's filter, which must be there.
pub(super) fn remove_filter(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    let request = RouteNetlinkMessage::DelTrafficFilter(own_filter(index));
    netlink.ask(request, 0).map(drop)
}

/// The kind of the qdisc at an interface's ingress, if it has one.
fn qdisc(netlink: &mut Netlink, index: u32) -> Result<Option<String>, NetlinkError> {
    let mut request = at(index);
    request.header.parent = TcHandle::INGRESS;
    // Kernels before 6.4 answer who asks for one qdisc only as they would a listener.
    match netlink.ask(RouteNetlinkMessage::GetQueueDiscipline(request), NLM_F_ECHO) {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(qdisc) => kind_of(&qdisc).map(str::to_owned),
            _ => None,
        })),
        Err(e) if e.is(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The filters at an interface's ingress. One may be told of in several messages.
pub(super) fn filters(netlink: &mut Netlink, index: u32) -> Result<Vec<TcMessage>, NetlinkError> {
    let mut request = at(index);
    request.header.parent = RECEIVED;
    let answers = netlink.dump(&RouteNetlinkMessage::GetTrafficFilter(request))?;
    let filter = |answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
        _ => None,
    };
    Ok(answers.into_iter().filter_map(filter).collect())
}

fn kind_of(message: &TcMessage) -> Option<&str> {
    (message.attributes.iter()).find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

/// A filter's preference, which is the upper half.
pub(super) fn preference(filter: &TcMessage) -> u32 {
    filter.header.info >> 16
}

fn at(index: u32) -> TcMessage {
    TcMessage::with_index(index.cast_signed())
}

fn ingress_qdisc(index: u32) -> TcMessage {
    let mut qdisc = at(index);
    qdisc.header.parent = TcHandle::INGRESS;
    qdisc.header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    let kind = TcAttribute::Kind(INGRESS.to_owned());
    qdisc.attributes.push(kind);
    qdisc
}

fn own_filter(index: u32) -> TcMessage {
    u32_filter(index, PREFERENCE, ALL_PROTOCOLS)
}

/// A u32 filter, still without what it does, for frames of a protocol (ETH_P_* of linux/if_ether.h) that an interface
/// receives. Of several preferences the lowest comes first.
pub(super) fn u32_filter(index: u32, preference: u16, protocol: u16) -> TcMessage {
    let mut filter = at(index);
    filter.header.parent = RECEIVED;
    filter.header.info = u32::from(preference) << 16 | u32::from(protocol.to_be());
    let kind = TcAttribute::Kind(TcFilterU32::KIND.to_owned());
    filter.attributes.push(kind);
    filter
}
