//! The runtime under test, and a container of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde::Deserialize;

use crate::bundle::Bundle;
use crate::leaks;
use crate::process::{Finished, Running, Stream, limit};

/// The runtime's binary: `HULL_RUNTIME`, or this repository's release build.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("HULL_RUNTIME") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target/x86_64-unknown-linux-gnu/release/hull"),
    })
}

/// Whether hull itself is under test, rather than a runtime it is held against.
pub fn is_hull() -> bool {
    static IS_HULL: OnceLock<bool> = OnceLock::new();
    *IS_HULL.get_or_init(|| {
        let version = Command::new(binary())
            .arg("--version")
            .output()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", binary().display()));
        String::from_utf8_lossy(&version.stdout).starts_with("hull")
    })
}

/// A guest may take half of what a whole command may; on a slow machine `HULL_E2E_LIMIT` is raised.
fn boot_timeout() -> Vec<String> {
    if !is_hull() {
        return Vec::new();
    }
    let seconds = limit().as_secs() / 2;
    vec!["--boot-timeout".to_owned(), seconds.to_string()]
}

/// What `state` prints (OCI runtime specification, "State").
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The specification's version that the state complies with.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// creating, created, running or stopped.
    pub status: String,
    /// A host process that lives as long as the container; 0 once it has stopped.
    #[serde(default)]
    pub pid: i32,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// The bundle's annotations.
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// A container of the runtime under test, which may or may not exist yet.
///
/// Dropped, it is deleted by force, and the test fails if anything of it is left.
#[derive(Debug)]
pub struct Container {
    /// Its bundle.
    pub bundle: Bundle,
    /// Its id.
    pub id: String,
    root: PathBuf,
    bundle_path: String,
    /// Its standard output once it is created.
    pub stdout: Option<Stream>,
    /// Its standard error once it is created.
    pub stderr: Option<Stream>,
    /// Words between the runtime and the verb.
    global: Vec<String>,
    /// Words that run the runtime's binary: `nsenter`, `prlimit` and the like.
    wrapper: Vec<String>,
    /// The runtime's binary.
    binary: PathBuf,
    /// What `create` and `run` are told of its sandbox.
    sandbox: Vec<String>,
}

impl Container {
    /// A container of this bundle, with a state folder (`--root`) of its own.
    pub fn new(bundle: Bundle) -> Self {
        let root = bundle.folder("root");
        Self::below(&root, bundle)
    }

    /// A container of this bundle, with this state folder.
    pub fn below(root: &Path, bundle: Bundle) -> Self {
        bundle.write();
        Self {
            id: bundle.token().to_owned(),
            bundle_path: bundle.path().display().to_string(),
            bundle,
            root: root.to_owned(),
            stdout: None,
            stderr: None,
            global: boot_timeout(),
            wrapper: Vec::new(),
            binary: binary().to_owned(),
            sandbox: Vec::new(),
        }
    }

    /// A container of this bundle that is to be created in the sandbox of another one.
    pub fn in_sandbox_of(first: &Self, bundle: Bundle) -> Self {
        let mut container = Self::below(first.root(), bundle);
        container.sandbox = vec!["--sandbox".to_owned(), first.id.clone()];
        container
    }

    /// Has the runtime called with these global options, instead of the limit to the guest's start.
    #[must_use]
    pub fn with_global(mut self, options: &[&str]) -> Self {
        self.global.clear();
        self.with_further_global(options)
    }

    /// Has the runtime called with these global options too.
    #[must_use]
    pub fn with_further_global(mut self, options: &[&str]) -> Self {
        self.global.extend(options.iter().map(|&o| o.to_owned()));
        self
    }

    /// Has another runtime make it than the one under test; one that isn't hull.
    #[must_use]
    pub fn made_by(mut self, runtime: &Path) -> Self {
        self.binary = runtime.to_owned();
        self.global = Vec::new();
        self
    }

    /// Has the runtime run by another command, of which these are the words.
    #[must_use]
    pub fn wrapped(mut self, words: &[&str]) -> Self {
        let words = words.iter().map(|&w| w.to_owned());
        self.wrapper.splice(0..0, words);
        self
    }

    /// Has the runtime run with a limit, as an option of prlimit(1), that it may not raise.
    #[must_use]
    pub fn limited(self, limit: &str) -> Self {
        self.wrapped(&[
            "setpriv",
            "--bounding-set=-sys_resource",
            "--inh-caps=-sys_resource",
            "prlimit",
            limit,
        ])
    }

    /// Has the runtime run after a shell command that changes what it sees, in a mount namespace.
    #[must_use]
    pub fn after(self, change: &str) -> Self {
        let script = format!("set -e; {change}; exec \"$@\"");
        self.wrapped(&["unshare", "--mount", "sh", "-c", &script, "sh"])
    }

    /// The state folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The runtime with these arguments, no input, and its outputs in pipes.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut words = self.wrapper.iter();
        let mut command = match words.next() {
            Some(wrapper) => {
                let mut command = Command::new(wrapper);
                command.args(words).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        command
            .arg("--root")
            .arg(&self.root)
            .args(&self.global)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the runtime with these arguments to its end.
    pub fn call(&self, args: &[&str]) -> Finished {
        Running::spawn(&mut self.command(args)).finish()
    }

    /// `run`, ready to be given other stdio.
    pub fn run_command(&self) -> Command {
        self.make_command("run")
    }

    /// `run` to the container's end.
    pub fn run(&self) -> Finished {
        Running::spawn(&mut self.run_command()).finish()
    }

    /// `run`, without waiting.
    pub fn start_run(&self) -> Running {
        Running::spawn(&mut self.run_command())
    }

    /// `run` in the background of the test: the container runs once this returns, as its process
    /// has written a first line, which must be `ready`.
    pub fn run_until_ready(&self) -> Running {
        let mut running = self.start_run();
        assert_eq!(running.line(), "ready");
        running
    }

    /// `create`, ready to be given other stdio.
    pub fn create_command(&self) -> Command {
        self.make_command("create")
    }

    fn make_command(&self, verb: &str) -> Command {
        let mut command = self.command(&[verb, "--bundle", self.bundle_path()]);
        command.args(&self.sandbox).arg(&self.id);
        command
    }

    /// `create`, which must succeed. The container's outputs are then in `stdout` and `stderr`.
    #[track_caller]
    pub fn create(&mut self) {
        let mut running = Running::spawn(&mut self.create_command());
        let status = running.exit();
        if !status.success() {
            let _ = running.finish().ok();
            unreachable!("create had failed");
        }
        self.stdout = running.stdout.take();
        self.stderr = running.stderr.take();
    }

    /// `start`.
    pub fn start(&self) -> Finished {
        self.call(&["start", &self.id])
    }

    /// `kill` with a signal's name or number.
    pub fn kill(&self, signal: &str) -> Finished {
        self.call(&["kill", &self.id, signal])
    }

    /// `delete`.
    pub fn delete(&self) -> Finished {
        self.call(&["delete", &self.id])
    }

    /// `delete --force`.
    pub fn delete_force(&self) -> Finished {
        self.call(&["delete", "--force", &self.id])
    }

    /// `update` with these options.
    pub fn update(&self, options: &[&str]) -> Finished {
        self.call(&[&["update"], options, &[&*self.id]].concat())
    }

    /// `exec` with these options and words, ready to be given other stdio.
    pub fn exec_command(&self, options: &[&str], words: &[&str]) -> Command {
        let args: Vec<_> = ["exec"]
            .iter()
            .chain(options)
            .chain(&[self.id.as_str()])
            .chain(words)
            .copied()
            .collect();
        self.command(&args)
    }

    /// `exec` of these words to its end.
    pub fn exec(&self, words: &[&str]) -> Finished {
        Running::spawn(&mut self.exec_command(&[], words)).finish()
    }

    /// `exec` of a shell script to its end.
    pub fn exec_shell(&self, script: &str) -> Finished {
        self.exec(&["/bin/sh", "-c", script])
    }

    /// What `state` says, which must succeed.
    #[track_caller]
    pub fn state(&self) -> State {
        let done = self.call(&["state", &self.id]).ok();
        serde_json::from_slice(&done.stdout)
            .unwrap_or_else(|error| panic!("state is not the specification's: {error}: {done:?}"))
    }

    /// The bundle's path as a word.
    pub fn bundle_path(&self) -> &str {
        &self.bundle_path
    }

    /// What is left of this container, once it is deleted.
    pub fn leaks(&self) -> Vec<String> {
        leaks::of(self.bundle.token(), &self.root)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // the test has its reason; this is only to leave the machine clean
            let _ = self.command(&["delete", "--force", &self.id]).output();
            return;
        }
        let _ = self.delete_force().ok();
        self.stdout = None;
        self.stderr = None;
        let left = self.leaks();
        assert!(left.is_empty(), "left of {}: {left:#?}", self.id);
    }
}
