//! A runtime under measurement: its binary, options of its own, and runc's command line.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::bundle::Bundle;
use crate::process;

/// A runtime: `NAME=PATH [OPTION…]` on our command line.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// What the report calls it.
    pub name: String,
    /// Its binary.
    pub path: PathBuf,
    /// Options that it gets before each verb.
    options: Vec<String>,
    /// Where its state and our logs of it are.
    root: PathBuf,
    /// What none of its commands takes.
    limit: Duration,
}

impl FromStr for Runtime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').ok_or("expected NAME=PATH [OPTION…]")?;
        let mut words = rest.split_ascii_whitespace();
        let path = words.next().ok_or("expected a path after the =")?.into();
        let options = words.map(str::to_owned).collect();
        Ok(Self {
            name: name.into(),
            path,
            options,
            root: PathBuf::new(),
            limit: Duration::MAX,
        })
    }
}

impl Runtime {
    /// The same runtime with its state in the folder `root`, and at most `limit` for each command.
    pub fn with(&self, root: PathBuf, limit: Duration) -> Result<Self> {
        std::fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        Ok(Self {
            root,
            limit,
            ..self.clone()
        })
    }

    /// How long to wait for the end of something that it was told to do.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The file that `create` writes the container's pid to.
    pub fn pid_file(&self) -> PathBuf {
        self.root.join("pid")
    }

    /// What the last command wrote.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    fn command(&self, global: &[&str], verb: &str) -> Command {
        let mut command = Command::new(&self.path);
        command.arg("--root").arg(self.root.join("state"));
        command.args(&self.options).args(global).arg(verb);
        command
    }

    fn time(&self, command: &mut Command) -> Result<Duration> {
        process::time(command, &self.log(), self.limit)
    }

    /// The command `run`; `global` are options before the verb.
    pub fn run_command(&self, global: &[&str], bundle: &Bundle, id: &str) -> Command {
        let mut command = self.command(global, "run");
        command.arg("--bundle").arg(&bundle.path).arg(id);
        command
    }

    /// `run`, to the end of the container; `global` are options before the verb.
    pub fn run(&self, global: &[&str], bundle: &Bundle, id: &str) -> Result<Duration> {
        self.time(&mut self.run_command(global, bundle, id))
    }

    /// `create`, with the pid in [`Self::pid_file`].
    pub fn create(&self, bundle: &Bundle, id: &str) -> Result<Duration> {
        let mut command = self.command(&[], "create");
        command
            .arg("--bundle")
            .arg(&bundle.path)
            .arg("--pid-file")
            .arg(self.pid_file())
            .arg(id);
        self.time(&mut command)
    }

    /// `start`.
    pub fn start(&self, id: &str) -> Result<Duration> {
        self.time(self.command(&[], "start").arg(id))
    }

    /// `exec` of one program, to its end.
    pub fn exec(&self, id: &str, program: &Path) -> Result<Duration> {
        self.time(self.command(&[], "exec").arg(id).arg(program))
    }

    /// `delete`.
    pub fn delete(&self, id: &str) -> Result<Duration> {
        self.time(self.command(&[], "delete").arg(id))
    }

    /// `delete --force`, of a container that may be in any state.
    pub fn delete_force(&self, id: &str) -> Result<Duration> {
        self.time(self.command(&[], "delete").arg("--force").arg(id))
    }
}
