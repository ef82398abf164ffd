//! `start`: leaves a server behind for the bundle's container, or names the one that serves its pod already.
//!
//! containerd before 2.3 tells the shim by flags and variables alone, and reads the address from standard output. Later
//! ones send `BootstrapParams` on standard input, and read a `BootstrapResult`, as a binary message or as JSON.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::BINARY;
use super::arguments::Arguments;
use super::error::Error;
use super::info::print_bytes;

/// Where servers' sockets are, unless containerd names another folder.
const SOCKETS: &str = "/run/containerd/s";

/// The annotations that name whom a container shares its server with: containerd's own, and the pod's.
const GROUPS: [&str; 3] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
];

/// The version of the task service that is spoken, told where it can be told.
const TASK_VERSION: i32 = 3;

/// The largest standard input and config.json that are read, in bytes.
const LONGEST_INPUT: u64 = 10 << 20;

/// The file in the bundle that containerd 1 finds a server by when it is started again.
const ADDRESS: &str = "address";

/// Where the server learns containerd's address for events from.
pub const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// How containerd is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// By the address alone, which all versions understand.
    Address,
    /// By a `BootstrapResult`, as a binary message.
    Binary,
    /// As JSON.
    Json,
}

/// What containerd wants beside what its flags say.
#[derive(Debug)]
struct Wanted {
    answer: Answer,
    sockets: PathBuf,
    events: Option<OsString>,
}

/// Leaves a server behind, and prints its address.
///
/// # Errors
/// When there is no bundle, or the server can't be started.
pub fn start(arguments: &Arguments) -> Result<(), Error> {
    let mut input = Vec::new();
    let read = io::stdin().take(LONGEST_INPUT).read_to_end(&mut input);
    read.map_err(Error::host("read standard input"))?;
    let wanted = Wanted::of(&input, arguments);
    let group = group(Path::new("."))?.unwrap_or_else(|| arguments.id.clone());
    let path = socket_path(&wanted.sockets, arguments, &group);
    if let Some(listener) = listen(&path)? {
        spawn(arguments, &wanted, &path, listener).inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })?;
    }
    let address = format!("unix://{}", path.display());
    fs::write(ADDRESS, &address).map_err(Error::file("write", ADDRESS))?;
    print_bytes(&wanted.answer.of(address)?)
}

impl Wanted {
    fn of(input: &[u8], arguments: &Arguments) -> Self {
        let (answer, params) = params(input, arguments);
        let named = |value: String| Some(value).filter(|value| !value.is_empty());
        let socket_dir = params.socket_dir.and_then(named);
        let events = named(params.containerd_ttrpc_address).map(OsString::from);
        Self {
            answer,
            sockets: socket_dir.map_or_else(|| SOCKETS.into(), PathBuf::from),
            events: events.or_else(|| std::env::var_os(TTRPC_ADDRESS)),
        }
    }
}

/// What standard input has. An older containerd writes the runtime's options there, which may be read as anything: so
/// they are parameters only if they repeat the flags.
fn params(input: &[u8], arguments: &Arguments) -> (Answer, BootstrapParams) {
    let repeats = |params: &BootstrapParams| {
        params.instance_id == arguments.id && params.namespace == arguments.namespace
    };
    if let Ok(json) = serde_json::from_slice::<JsonParams>(input) {
        let params = json.into_message();
        if repeats(&params) {
            return (Answer::Json, params);
        }
    }
    match BootstrapParams::parse_from_bytes(input) {
        Ok(params) if repeats(&params) => (Answer::Binary, params),
        _ => (Answer::Address, BootstrapParams::new()),
    }
}

/// The parameters that are used, under their JSON names (and those of the .proto file, as protobuf's JSON allows both).
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct JsonParams {
    #[serde(alias = "instance_id")]
    instance_id: String,
    namespace: String,
    #[serde(alias = "containerd_ttrpc_address")]
    containerd_ttrpc_address: String,
    #[serde(alias = "socket_dir")]
    socket_dir: Option<String>,
}

impl JsonParams {
    fn into_message(self) -> BootstrapParams {
        BootstrapParams {
            instance_id: self.instance_id,
            namespace: self.namespace,
            containerd_ttrpc_address: self.containerd_ttrpc_address,
            socket_dir: self.socket_dir,
            ..Default::default()
        }
    }
}

impl Answer {
    fn of(self, address: String) -> Result<Vec<u8>, Error> {
        let result = BootstrapResult {
            version: TASK_VERSION,
            address,
            protocol: "ttrpc".to_owned(),
            ..Default::default()
        };
        match self {
            Self::Address => Ok(result.address.into_bytes()),
            Self::Json => {
                let BootstrapResult {
                    version,
                    address,
                    protocol,
                    ..
                } = &result;
                let json = json!({"version": version, "address": address, "protocol": protocol});
                Ok(json.to_string().into_bytes())
            }
            Self::Binary => result.write_to_bytes().map_err(|source| Error::Message {
                what: "the answer to containerd",
                source,
            }),
        }
    }
}

/// Whom the bundle's container shares its server with.
fn group(bundle: &Path) -> Result<Option<String>, Error> {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: std::collections::BTreeMap<String, String>,
    }
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    let file = fs::File::open(&path).map_err(Error::file("open", &path))?;
    let read = file.take(LONGEST_INPUT).read_to_end(&mut text);
    read.map_err(Error::file("read", &path))?;
    let config: Annotated = serde_json::from_slice(&text).map_err(|source| Error::Json {
        what: "config.json",
        source,
    })?;
    let group = GROUPS.iter().find_map(|name| config.annotations.get(*name));
    Ok(group.filter(|group| !group.is_empty()).cloned())
}

/// The path is short, whatever the names, and nobody else's: a hash of what tells servers apart.
fn socket_path(sockets: &Path, arguments: &Arguments, group: &str) -> PathBuf {
    let Arguments {
        address, namespace, ..
    } = arguments;
    let hash = Sha256::digest(format!("{address}/{namespace}/{group}"));
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    sockets.join(hex)
}

/// Listens at a socket of this path; none if somebody does already.
fn listen(path: &Path) -> Result<Option<UnixListener>, Error> {
    let folder = path.parent().unwrap_or(path);
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder);
    made.map_err(Error::file("make the folder", folder))?;
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            // Of a server that was killed.
            fs::remove_file(path).map_err(Error::file("remove", path))?;
            UnixListener::bind(path)
        }
        bound => bound,
    };
    let listener = listener.map_err(Error::file("listen at", path))?;
    let own = fs::Permissions::from_mode(0o600);
    fs::set_permissions(path, own).map_err(Error::file("set the mode of", path))?;
    Ok(Some(listener))
}

/// Starts the server, with the socket as its standard input.
fn spawn(
    arguments: &Arguments,
    wanted: &Wanted,
    path: &Path,
    listener: UnixListener,
) -> Result<(), Error> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(BINARY);
    command.args(["-namespace", &arguments.namespace, "-id", &arguments.id]);
    command.args(["-address", &arguments.address]);
    command.arg("-socket").arg(path);
    if arguments.debug {
        command.arg("-debug");
    }
    if let Some(events) = &wanted.events {
        command.env(TTRPC_ADDRESS, events);
    }
    command.stdin(Stdio::from(OwnedFd::from(listener)));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let server = command.spawn().map_err(Error::host("start the server"))?;
    protect_containerd(server.id());
    Ok(())
}

/// The kernel is to kill the server for want of memory rather than containerd. It is no failure if it can't be told so.
fn protect_containerd(server: u32) {
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let score = fs::read_to_string(format!("/proc/{parent}/oom_score_adj"));
    let score = score
        .ok()
        .and_then(|score| score.trim().parse::<i32>().ok());
    if let Some(score) = score {
        let higher = (score + 1).min(1000).to_string();
        let _ = fs::write(format!("/proc/{server}/oom_score_adj"), higher);
    }
}

#[cfg(test)]
mod tests {
    use super::super::arguments::Action;
    use super::*;

    fn arguments() -> Arguments {
        Arguments {
            action: Action::Start,
            namespace: "k8s.io".to_owned(),
            id: "web".to_owned(),
            address: "/run/containerd/containerd.sock".to_owned(),
            socket: None,
            bundle: None,
            debug: false,
        }
    }

    #[test]
    fn each_containerd_is_answered_as_it_asks() {
        let params = BootstrapParams {
            instance_id: "web".to_owned(),
            namespace: "k8s.io".to_owned(),
            socket_dir: Some("/run/s".to_owned()),
            ..Default::default()
        };
        let binary = params.write_to_bytes().expect("a message");
        let wanted = Wanted::of(&binary, &arguments());
        assert_eq!(
            (wanted.answer, wanted.sockets),
            (Answer::Binary, "/run/s".into())
        );

        let json =
            br#"{"instanceId": "web", "namespace": "k8s.io", "containerdTtrpcAddress": "/t"}"#;
        let wanted = Wanted::of(json, &arguments());
        assert_eq!(wanted.answer, Answer::Json);
        assert_eq!(wanted.events, Some("/t".into()));

        // Somebody's, an older containerd's options, and nothing.
        let others = BootstrapParams {
            instance_id: "db".to_owned(),
            ..params
        };
        let others = others.write_to_bytes().expect("a message");
        for input in [others.as_slice(), b"\x0a\x03abc", b"{}", b""] {
            assert_eq!(Wanted::of(input, &arguments()).answer, Answer::Address);
        }
    }

    #[test]
    fn the_containers_of_a_pod_share_a_server() {
        let bundle = tempfile::tempdir().expect("a folder");
        let write =
            |text: &str| fs::write(bundle.path().join("config.json"), text).expect("written");
        write(r#"{"ociVersion": "1.0.2"}"#);
        assert_eq!(group(bundle.path()).expect("read"), None);
        write(r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}"#);
        assert_eq!(group(bundle.path()).expect("read").as_deref(), Some("pod"));
        write("7");
        assert!(group(bundle.path()).is_err());
    }

    #[test]
    fn a_socket_that_nobody_serves_is_taken_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = socket_path(&folder.path().join("s"), &arguments(), "pod");
        let listener = listen(&path).expect("listen").expect("nobody else");
        assert!(listen(&path).expect("looked").is_none());
        drop(listener);
        assert!(listen(&path).expect("listen").is_some());
    }
}
