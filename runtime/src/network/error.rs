//! Why the network of a namespace can't be read, connected or changed.

use std::io;
use std::path::PathBuf;

use netlink_packet_core::DecodeError;
use netlink_packet_route::link::LinkLayerType;

/// What is wrong with a network namespace, or an interface in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// setns(2), or what it takes.
    #[error("enter the container's network namespace on the host")]
    Enter(#[source] io::Error),
    /// Whoever looks into a namespace is in it, so that is a thread of its own.
    #[error("start a thread for the container's network namespace")]
    Thread(#[source] io::Error),
    /// Another command of hull's is about an interface of the namespace, or flock(2) fails.
    #[error(
        "take turns with who else connects interfaces of the container's network namespace to a VM"
    )]
    Turn(#[source] io::Error),
    /// The thread died, by a fault of hull's.
    #[error("the thread that was to {what} has died")]
    Died {
        /// What it was about.
        what: String,
    },
    /// The kernel took too long; somebody may hold its lock of all network interfaces.
    #[error("waited {seconds} s for the host's kernel to {what}")]
    TimedOut {
        /// What it was asked.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// rtnetlink(7).
    #[error("{what}")]
    Netlink {
        /// What was being done, and with which interface.
        what: String,
        /// Why not.
        #[source]
        source: NetlinkError,
    },
    /// A VM has Ethernet interfaces only.
    #[error(
        "interface {interface} of the container's network namespace is up, and no Ethernet interface \
         ({kind:?}): hull can't connect it to a VM; set it down or remove it"
    )]
    NotEthernet {
        /// Its name.
        interface: String,
        /// What it is instead (ARPHRD_* of linux/if_arp.h).
        kind: LinkLayerType,
    },
    /// What an interface below it receives would go to the VM before it reaches this one.
    #[error(
        "interface {interface} of the container's network namespace is joined to another one in it (a VLAN, a bridge, \
         a bond): hull connects only interfaces that stand alone"
    )]
    Joined {
        /// Its name.
        interface: String,
    },
    /// A route whose nexthop object can't be replaced by what it stands for.
    #[error(
        "route {destination}: its nexthop object {id} isn't shown in full; set the sysctl \
         net.ipv4.nexthop_compat_mode in the container's network namespace to 1"
    )]
    NexthopObject {
        /// Where the route leads.
        destination: String,
        /// The nexthop's number (ip-nexthop(8)).
        id: u32,
    },
    /// A file below /proc/sys/net.
    #[error("read {}", path.display())]
    Sysctl {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel doesn't tell of sockets, or gives none.
    #[error("look for a resolver of the container's network, and connect to it")]
    Resolver(#[source] io::Error),
    /// There is no tun(4) for hull, or it makes no tap.
    #[error("make the tap {tap} of interface {interface} by /dev/net/tun")]
    Tap {
        /// The interface that it is for.
        interface: String,
        /// Its name.
        tap: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else has a tap of that name.
    #[error(
        "interface {interface} is connected to a VM already: its tap {tap} is in use, and was so for {seconds} s"
    )]
    Busy {
        /// The interface.
        interface: String,
        /// Its tap.
        tap: String,
        /// How long hull has waited for it to go.
        seconds: u64,
    },
    /// An engine filters what the interface receives, and would no longer see it.
    #[error(
        "interface {interface} has tc filters at its ingress ({kind}) that aren't hull's: they would see nothing \
         of what a VM gets; remove them"
    )]
    Filters {
        /// The interface.
        interface: String,
        /// The kind of the first of them (tc(8)).
        kind: String,
    },
    /// No interface of that name.
    #[error("there is no interface {0:?}")]
    NoInterface(String),
    /// Another interface has the name.
    #[error("there is an interface {0:?} in the container's network namespace already")]
    Taken(String),
    /// Not a name that an interface can have.
    #[error(
        "{0:?} can't be an interface's name: it takes 1 to 15 bytes, without blanks, \"/\", \":\" and \"%\", and \
         not \".\" or \"..\""
    )]
    Name(String),
}

/// What is wrong with a request to the kernel, or its answer.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket.
    #[error("use an rtnetlink socket")]
    Socket(#[source] io::Error),
    /// The kernel said no, perhaps with a word about it.
    #[error("the host's kernel refuses it{}{said}", if .said.is_empty() { "" } else { ": " })]
    Refused {
        /// What it says beside the number (NLMSGERR_ATTR_MSG), often nothing.
        said: String,
        /// The number.
        #[source]
        source: io::Error,
    },
    /// An answer that isn't understood. None is passed over: the container would lack something.
    #[error("the host's kernel answers in a form that hull doesn't know")]
    Decode(#[source] DecodeError),
    /// No answer in time.
    #[error("the host's kernel doesn't answer in time")]
    TimedOut,
    /// Each answer was cut short by a change.
    #[error("it changed each of the {times} times that it was read")]
    Changing {
        /// How often it was read.
        times: u32,
    },
}

impl NetlinkError {
    /// Whether it is this refusal, an `errno`.
    pub(super) fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(errno))
    }
}

/// Says what was being done.
pub(super) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, NetlinkError> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Netlink {
            what: what(),
            source,
        })
    }
}
