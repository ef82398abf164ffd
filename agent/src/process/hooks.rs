//! The `startContainer` hooks. They run in the container, after `start` and before its program, with no more
//! privileges than the program: they come from the container's own root.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, Spec, VERSION};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Strerror};
use crate::sys;

/// The hooks, and the state that they get on stdin. The helper gets this as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartContainerHooks {
    hooks: Vec<Hook>,
    state: State,
}

/// The state of a container (runtime.md, "State").
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    oci_version: String,
    id: String,
    status: String,
    pid: i32,
    bundle: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<HashMap<String, String>>,
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("{}", Strerror(.0))]
    Run(#[from] io::Error),
    #[error("{}", Strerror(.0))]
    WriteState(io::Error),
    #[error("it has not ended after {0} s")]
    Timeout(u64),
    #[error("{0}")]
    Status(ExitStatus),
}

impl StartContainerHooks {
    /// The hooks of a config.json, if it has any; `bundle` is the path of the bundle on the host.
    #[must_use]
    pub fn of(spec: &Spec, id: &str, bundle: &str) -> Option<Self> {
        let hooks = spec.hooks().as_ref()?.start_container().clone()?;
        let state = State {
            oci_version: VERSION.to_owned(),
            id: id.to_owned(),
            status: "created".to_owned(),
            pid: 0,
            bundle: bundle.to_owned(),
            annotations: spec.annotations().clone(),
        };
        (!hooks.is_empty()).then_some(Self { hooks, state })
    }

    /// Runs them, one after the other, as children of the calling process and with its privileges. A hook
    /// without an environment of its own gets the process's, as with runc.
    ///
    /// # Errors
    /// When one fails; those after it don't run.
    pub fn run(&self, env: &[CString]) -> Result<(), Failure> {
        let mut state = self.state.clone();
        state.pid = std::process::id().cast_signed();
        let state = serde_json::to_vec(&state).map_err(|e| Failure::other(e.to_string()))?;
        for (index, hook) in self.hooks.iter().enumerate() {
            run(hook, &state, env).map_err(|e| {
                Failure::other(format!("error running startContainer hook #{index}: {e}"))
            })?;
        }
        Ok(())
    }
}

fn run(hook: &Hook, state: &[u8], env: &[CString]) -> Result<(), HookError> {
    let mut command = Command::new(hook.path());
    if let Some((name, args)) = hook.args().as_ref().and_then(|args| args.split_first()) {
        command.arg0(name).args(args);
    }
    command.env_clear();
    match hook.env() {
        Some(env) => command.envs(env.iter().filter_map(|entry| entry.split_once('='))),
        None => command.envs(env.iter().filter_map(variable)),
    };
    command
        .stdin(state_file(state).map_err(HookError::WriteState)?)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let mut child = command.spawn()?;
    let limit = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok());
    let status = match limit {
        Some(limit) => wait(&mut child, limit)?,
        None => child.wait()?,
    };
    match status.success() {
        true => Ok(()),
        false => Err(HookError::Status(status)),
    }
}

/// A file with the state, at its start. Not a pipe: a hook that doesn't read its stdin may still succeed, and
/// one that never reads a state longer than a pipe holds would keep the writer past the hook's time limit.
fn state_file(state: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("state", MemfdFlags::CLOEXEC)?);
    file.write_all(state)?;
    file.rewind()?;
    Ok(file)
}

/// Waits for a hook to end, and kills it after `limit` seconds. The calling process has one thread; otherwise
/// another thread might get the SIGCHLD.
fn wait(child: &mut Child, limit: u64) -> Result<ExitStatus, HookError> {
    let sigchld = sys::BlockedSigchld::block()?;
    let end = Instant::now() + Duration::from_secs(limit);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if !sigchld.wait(end.saturating_duration_since(Instant::now()))? {
            let _ = child.kill();
            return Err(HookError::Timeout(limit));
        }
    }
}

fn variable(entry: &CString) -> Option<(&OsStr, &OsStr)> {
    let entry = entry.as_bytes();
    let end = entry.iter().position(|byte| *byte == b'=')?;
    let (name, value) = entry.split_at(end);
    Some((OsStr::from_bytes(name), OsStr::from_bytes(&value[1..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(script: &str, timeout: Option<u64>) -> StartContainerHooks {
        let spec = serde_json::json!({
            "ociVersion": "1.2.0",
            "annotations": {"org.example.color": "green"},
            "hooks": {"startContainer": [
                {"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": timeout}]},
        });
        let spec = serde_json::from_value(spec).expect("a config.json");
        StartContainerHooks::of(&spec, "c", "/on/the/host").expect("hooks")
    }

    #[test]
    fn a_hook_gets_the_state_and_the_processs_environment() {
        let script = r#"read -r state; [ "$COLOR" = red ] || exit 1; case $state in
            *'"status":"created"'*'"bundle":"/on/the/host"'*green*) exit 0;; esac; exit 2"#;
        let env = [c"COLOR=red".to_owned(), c"PATH=/usr/bin:/bin".to_owned()];
        hooks(script, None).run(&env).expect("it succeeds");
    }

    #[test]
    fn one_that_does_not_read_a_long_state_has_its_time_limit() {
        let mut hooks = hooks("exec sleep 60", Some(1));
        let long = "x".repeat(1 << 20);
        hooks.state.annotations = Some([("long".to_owned(), long)].into());
        let message = hooks.run(&[]).expect_err("it is late").message;
        assert!(message.ends_with("it has not ended after 1 s"), "{message}");
    }

    #[test]
    fn a_failure_names_the_hook() {
        let failure = hooks("exit 3", None).run(&[]).expect_err("it fails");
        assert!(
            failure.message.contains("startContainer hook #0"),
            "{failure}"
        );
        assert!(failure.message.ends_with(": 3"), "{failure}");
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let begun = Instant::now();
        let failure = hooks("exec sleep 60", Some(1)).run(&[]);
        let message = failure.expect_err("it is late").message;
        assert!(message.ends_with("it has not ended after 1 s"), "{message}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
