//! A network namespace by path with one end of a veth in it, made with ip(8) as an engine makes it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

const NAMESPACE: &str = "hull-bench";
const HOST: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 1);

/// What makes it. The hardware addresses are fixed, so that nothing differs from run to run.
const STEPS: [&str; 9] = [
    "netns add hull-bench",
    "link add bench0 type veth peer name eth0 address 02:97:00:00:00:02 netns hull-bench",
    "addr add 10.97.0.1/24 dev bench0",
    "link set bench0 up",
    "-n hull-bench link set lo up",
    "-n hull-bench addr add 10.97.0.2/24 dev eth0",
    "-n hull-bench link set eth0 up",
    "-n hull-bench route add default via 10.97.0.1",
    "neigh add 10.97.0.2 lladdr 02:97:00:00:00:02 dev bench0",
];

/// The namespace, removed with the veth when dropped.
#[derive(Debug)]
pub struct Veth {
    namespace: PathBuf,
}

impl Veth {
    /// Makes both.
    pub fn new() -> Result<Self> {
        let veth = Self {
            namespace: Path::new("/run/netns").join(NAMESPACE),
        };
        for step in STEPS {
            ip(step)?;
        }
        Ok(veth)
    }

    /// The path of the namespace that is for the container.
    pub fn namespace(&self) -> &Path {
        &self.namespace
    }

    /// The address of the host's end.
    pub fn host(&self) -> IpAddr {
        HOST.into()
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        // The veth goes with its namespace.
        if let Err(e) = ip("netns delete hull-bench") {
            eprintln!("bench: {e:#}");
        }
    }
}

fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(words.split_ascii_whitespace())
        .output()
        .context("run ip: is iproute2 installed?")?;
    ensure!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
