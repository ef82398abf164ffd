//! What a container's network is worth: a veth whose one end is in a network namespace that the bundle names, as an
//! engine makes it, and whose other end is in the host's. In the container runs this program as a [`peer`].

mod peer;
mod veth;

pub use peer::run as run_peer;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::bundle::Bundle;
use crate::process::{Handle, tail};
use crate::report::{Measurement, Unit};
use crate::runtime::Runtime;
use peer::{DRIVER_PORT, Driver};
use veth::Veth;

/// The program's name in the container.
const PEER: &str = "/hull-bench";

/// The container's name.
const ID: &str = "network";

/// Bytes sent in each of the measurements of throughput.
const STREAM: u64 = 16 << 20;

/// Requests in each of the measurements of latency.
const REQUESTS: u64 = 500;

/// Measures throughput and latency both ways. `suffix` tells this variant of the runtime from its usual one, with
/// which it is compared; `global` are options that make it.
pub fn measure(
    runtime: &Runtime,
    (suffix, global): (&str, &[&str]),
    (work, rootfs): (&Path, &Path),
    repeats: usize,
) -> Result<Vec<Measurement>> {
    let veth = Veth::new()?;
    let driver = SocketAddr::new(veth.host(), DRIVER_PORT);
    let bundle = Bundle::write(work, rootfs, &[PEER, "peer", &driver.to_string()])?;
    std::fs::copy("/proc/self/exe", work.join("rootfs").join("hull-bench"))
        .context("copy this program into the container's root file system")?;
    bundle.join_network(veth.namespace())?;
    let listener = TcpListener::bind(driver).with_context(|| format!("listen at {driver}"))?;

    let container = Container::run(runtime, global, &bundle)?;
    let figures = container
        .with_driver(&listener, runtime, |driver| figures(driver, repeats))
        .inspect_err(|_| {
            // the failure itself is what is worth telling
            let _ = runtime.delete_force(ID);
        })?;
    Ok(figures
        .into_iter()
        .map(|(case, unit, values)| {
            let figure =
                Measurement::values(&format!("{case}{suffix}"), &runtime.name, unit, values);
            figure.beside(case)
        })
        .collect())
}

/// `run` of /bin/true in a network namespace with one interface.
pub fn measure_run(runtime: &Runtime, bundle: &Bundle, repeats: usize) -> Result<Vec<Measurement>> {
    let veth = Veth::new()?;
    bundle.join_network(veth.namespace())?;
    runtime.run(&[], bundle, "network-warm")?;
    let totals = (0..repeats)
        .map(|n| runtime.run(&[], bundle, &format!("network-{n}")))
        .collect::<Result<Vec<_>>>()?;
    Ok(vec![Measurement::times(
        "run-network",
        &runtime.name,
        &totals,
    )])
}

type Figure = (&'static str, Unit, Vec<f64>);

fn figures(driver: &Driver, repeats: usize) -> Result<[Figure; 4]> {
    #[allow(clippy::cast_precision_loss)] // both numbers are small
    let (bytes, requests) = (STREAM as f64, REQUESTS as f64);
    let rate = |taken: Duration| bytes / taken.as_secs_f64();
    let latency = |taken: Duration| taken.as_secs_f64() / requests;
    Ok([
        (
            "network-send",
            Unit::BytesPerSecond,
            repeated(repeats, || driver.peer_sends(STREAM).map(rate))?,
        ),
        (
            "network-receive",
            Unit::BytesPerSecond,
            repeated(repeats, || driver.peer_receives(STREAM).map(rate))?,
        ),
        (
            "network-ask",
            Unit::SecondsPerRequest,
            repeated(repeats, || driver.peer_asks(REQUESTS).map(latency))?,
        ),
        (
            "network-answer",
            Unit::SecondsPerRequest,
            repeated(repeats, || driver.peer_answers(REQUESTS).map(latency))?,
        ),
    ])
}

/// Does it once for nothing, so that windows are as large as they get, then as often as is counted.
fn repeated(repeats: usize, mut once: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    once()?;
    (0..repeats).map(|_| once()).collect()
}

/// The container with the peer.
struct Container {
    command: Child,
    handle: Handle,
}

impl Container {
    fn run(runtime: &Runtime, global: &[&str], bundle: &Bundle) -> Result<Self> {
        let mut command = runtime.run_command(global, bundle, ID);
        let log = std::fs::File::create(runtime.log()).context("make the runtime's log")?;
        let output = log.try_clone().context("duplicate a file descriptor")?;
        command.stdin(Stdio::null()).stdout(output).stderr(log);
        let command = command
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let handle = Handle::of(command.id().cast_signed())?;
        Ok(Self { command, handle })
    }

    /// Waits until the peer has connected, measures, and waits for the container's end.
    fn with_driver<T>(
        self,
        listener: &TcpListener,
        runtime: &Runtime,
        measure: impl FnOnce(&Driver) -> Result<T>,
    ) -> Result<T> {
        let said = || format!("the container says: {}", tail(&runtime.log()));
        self.handle
            .wait_for(listener, runtime.limit())
            .with_context(said)?;
        let driver = Driver::meet(listener, runtime.limit())?;
        let measured = measure(&driver).with_context(said)?;
        drop(driver);
        self.end(runtime)?;
        Ok(measured)
    }

    /// Waits for its end, which it comes to by itself once the connections are closed.
    fn end(mut self, runtime: &Runtime) -> Result<()> {
        let ended = self.handle.wait_exit(runtime.limit());
        if ended.is_err() {
            let _ = self.command.kill();
        }
        let status = self.command.wait().context("wait for the container")?;
        ended.context("wait for the container's end")?;
        anyhow::ensure!(
            status.success(),
            "the container ended with {status}: {}",
            tail(&runtime.log())
        );
        Ok(())
    }
}
