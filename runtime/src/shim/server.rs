//! The server that `start` leaves behind: it serves containerd until it has no container any more.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::asynchronous::Server;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use super::arguments::Arguments;
use super::bootstrap::TTRPC_ADDRESS;
use super::error::Error;
use super::events::Events;
use super::logger;
use super::task::Tasks;

/// The names of the task service: the same requests in both.
const TASK_SERVICES: [&str; 2] = ["containerd.task.v3.Task", "containerd.task.v2.Task"];

/// How long a thread for what blocks stays for the next.
const IDLE_THREADS: Duration = Duration::from_secs(2);

/// How many requests may block at once: those beyond it wait.
const BLOCKING_THREADS: usize = 128;

/// How long the last events may take.
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// Serves at the socket that is its standard input.
///
/// # Errors
/// When it can't begin to.
pub fn serve(arguments: &Arguments) -> Result<(), Error> {
    let listener = take_stdin().map_err(Error::host("take over the socket"))?;
    // Whoever ends containerd's session or terminal doesn't mean this.
    let _ = rustix::process::setsid();
    logger::init(Path::new("."), arguments.debug)?;
    // The bundle is to be removed while other containers of the pod go on.
    rustix::process::chdir("/").map_err(|e| Error::host("leave the bundle")(e.into()))?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(IDLE_THREADS)
        .build();
    let runtime = runtime.map_err(Error::host("start the server"))?;
    let served = runtime.block_on(run(arguments, listener));
    // What blocks then, nobody waits for.
    runtime.shutdown_background();
    served
}

async fn run(arguments: &Arguments, listener: UnixListener) -> Result<(), Error> {
    let address = std::env::var_os(TTRPC_ADDRESS).map(PathBuf::from);
    let events = Events::to(address, &arguments.namespace);
    let tasks = Arc::new(Tasks::new(arguments, events.clone()));
    let listener = Listener::try_from(listener).map_err(Error::host("listen"))?;
    let mut server = Server::new().add_listener(listener);
    for name in TASK_SERVICES {
        let services = create_task(Arc::clone(&tasks) as _);
        let named = services
            .into_values()
            .map(|service| (name.to_owned(), service));
        server = server.register_service(named.collect());
    }
    let ended = |kind| signal(kind).map_err(Error::host("handle signals"));
    let (mut terminated, mut interrupted) = (
        ended(SignalKind::terminate())?,
        ended(SignalKind::interrupt())?,
    );
    server.start().await.map_err(Error::Server)?;
    tokio::select! {
        () = tasks.done.notified() => {}
        _ = terminated.recv() => log::info!("the shim is asked to end by SIGTERM"),
        _ = interrupted.recv() => log::info!("the shim is asked to end by SIGINT"),
    }
    tasks.leave_socket();
    events.flush(LAST_EVENTS).await;
    server.shutdown().await.map_err(Error::Server)
}

/// Takes the socket, and leaves nothing in its place.
fn take_stdin() -> io::Result<UnixListener> {
    let stdin = io::stdin();
    let listener = UnixListener::from(stdin.as_fd().try_clone_to_owned()?);
    let null = openat(
        CWD,
        c"/dev/null",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(listener)
}
