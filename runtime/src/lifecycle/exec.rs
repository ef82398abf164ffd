//! Running a further process in a container.

use std::pin::pin;
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::runtime::Process;

use super::{Context, Error, Verb, allow};
use crate::chain::chain;
use crate::sandbox::{Agent, AttachedStdio, BlockingAgent, Stdio};
use crate::spec::{self, SpecError};
use crate::store::{ContainerDir, SandboxDir, Status};
use crate::types::ContainerId;

/// A container that a further process is for.
#[derive(Debug)]
pub struct Target {
    /// Its folder.
    pub dir: ContainerDir,
    sandbox: SandboxDir,
}

impl Target {
    /// Hands the standard streams of a process that it is to have to its VM process.
    ///
    /// # Errors
    /// When the VM process doesn't answer.
    pub fn attach(&self, stdio: Stdio<'_>) -> Result<AttachedStdio, Error> {
        Ok(AttachedStdio::attach(&self.sandbox, stdio)?)
    }
}

/// A container that can take a further process. With `ignore_paused` also a paused one: the process runs once
/// that is resumed.
///
/// # Errors
/// When the container is in another state.
pub fn find_for_exec(
    context: &Context,
    id: &ContainerId,
    ignore_paused: bool,
) -> Result<Target, Error> {
    let dir = context.find(id)?;
    let state = dir.load()?;
    allow(Verb::Exec, &state, &Status::WITH_PROCESSES)?;
    match state.status() {
        Status::Paused if !ignore_paused => Err(Error::Paused),
        _ => Ok(Target {
            sandbox: dir.sandbox_of(&state.container)?,
            dir,
        }),
    }
}

/// The container's own process, as its stored config.json has it.
///
/// # Errors
/// When that can't be read.
pub fn own_process(dir: &ContainerDir) -> Result<Process, Error> {
    let process = dir.load_config()?.process().clone();
    Ok(process.ok_or(SpecError::Missing("process"))?)
}

/// The process as the guest can have it: without an AppArmor profile, if that is one which is taken, and without its
/// SELinux label. That, if any, is the container's, whose VM has it: one VM can't have two.
///
/// # Errors
/// When it has another label or profile.
pub fn for_guest(
    context: &Context,
    process: Process,
    Target { dir, .. }: &Target,
) -> Result<Process, Error> {
    let mut process = match process.apparmor_profile() {
        None => process,
        Some(_) => {
            let annotations = dir.load()?.container.annotations;
            let config = context.settings.for_container(&annotations)?;
            spec::without_profile(process, &config)?
        }
    };
    let asked_for = process.selinux_label().clone().unwrap_or_default();
    if !asked_for.is_empty() {
        let own = own_process(dir)?.selinux_label().clone();
        if own.as_ref() != Some(&asked_for) {
            let own = own.unwrap_or_default();
            return Err(Error::OtherLabel { asked_for, own });
        }
        process.set_selinux_label(None);
    }
    Ok(process)
}

/// The signal that is none (kill(2)).
const IS_IT_THERE: i32 = 0;

/// A further process that was started.
pub struct Execution {
    agent: BlockingAgent,
    container: ContainerId,
    id: String,
    stdio: AttachedStdio,
}

/// Starts a process of [`for_guest`] in the container, in this cgroup below the container's.
///
/// # Errors
/// When the VM process or the agent refuses.
pub fn exec(
    target: &Target,
    process: &Process,
    cgroup: &str,
    stdio: Stdio<'_>,
) -> Result<Execution, Error> {
    let Target { dir, sandbox } = target;
    let stdio = target.attach(stdio)?;
    let agent = BlockingAgent::connect(sandbox)?;
    let id = unique_id();
    let json = serde_json::to_vec(process).map_err(Error::Describe)?;
    agent
        .ask(|agent| agent.exec(dir.id(), &id, json, cgroup, stdio.offer()))
        .map_err(Error::ExecProcess)?;
    Ok(Execution {
        agent,
        container: dir.id().clone(),
        id,
        stdio,
    })
}

impl Execution {
    /// The connection to the container's agent.
    pub fn agent(&self) -> &BlockingAgent {
        &self.agent
    }

    /// The container that it is in.
    pub fn container(&self) -> &ContainerId {
        &self.container
    }

    /// Its id, which no other process of the container has or will have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits for its end, however long that takes, and returns its exit status. If this process ends before, the
    /// other one is killed where `stands_for_it`; `tell` is called once the agent sees to that.
    ///
    /// # Errors
    /// That of `tell`: the process is killed then. When the agent doesn't tell.
    pub async fn wait(
        &self,
        agent: &Agent,
        stands_for_it: bool,
        tell: impl FnOnce() -> Result<(), Error>,
    ) -> Result<u8, Error> {
        let mut end = pin!(agent.wait(&self.container, &self.id, stands_for_it));
        // It takes a connection's requests in order: once it answers this one, it waits.
        let waits = agent.signal(&self.container, &self.id, IS_IT_THERE, false);
        let ended = tokio::select! {
            biased;
            status = &mut end => Some(status?),
            // A process that isn't there any more has an end to report.
            _ = waits => None,
        };
        if let Err(e) = tell() {
            self.kill(agent).await;
            return Err(e);
        }
        match ended {
            Some(status) => Ok(status),
            None => Ok(end.await?),
        }
    }

    /// Ends a process that nobody will wait for.
    async fn kill(&self, agent: &Agent) {
        let killed = agent.signal(&self.container, &self.id, libc::SIGKILL, false);
        if let Err(e) = killed.await {
            log::warn!("the process goes on: {}", chain(&e));
        }
    }

    /// Waits until all that it has written has reached its reader, who may take as long as it likes.
    pub fn wait_flushed(self) {
        self.stdio.wait_flushed();
    }
}

fn unique_id() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}
