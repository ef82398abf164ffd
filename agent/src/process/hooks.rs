//! The `startContainer` hooks: they run in the container, between `start` and its program.
//!
//! libcontainer runs them, but not when it would by itself: it does so before the container's
//! capabilities and seccomp filter hold, and these programs come from the container's own root.

use std::collections::HashMap;
use std::ffi::CString;
use std::path::PathBuf;

use libcontainer::container::{ContainerStatus, State};
use libcontainer::hooks::run_hooks;
use oci_spec::runtime::{Hook, Spec};
use serde::{Deserialize, Serialize};

use crate::error::{Failure, chain};

/// The hooks, and what they are told. It travels to the helper as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartHooks {
    hooks: Vec<Hook>,
    state: State,
}

impl StartHooks {
    /// Those of a config.json, if it has any; `bundle` is where it lies on the host.
    #[must_use]
    pub fn of(spec: &Spec, id: &str, bundle: &str) -> Option<Self> {
        let hooks = spec.hooks().as_ref()?.start_container().clone()?;
        let mut state = State::new(id, ContainerStatus::Created, None, PathBuf::from(bundle));
        state.annotations = spec.annotations().clone();
        (!hooks.is_empty()).then_some(Self { hooks, state })
    }

    /// Runs them, one after the other, in the calling process's place and with its privileges. One
    /// without an environment of its own has the process's, as with runc.
    ///
    /// # Errors
    /// When one fails; those after it don't run.
    pub fn run(&self, env: &[CString]) -> Result<(), Failure> {
        let env = variables(env);
        let mut state = self.state.clone();
        state.pid = Some(std::process::id().cast_signed());
        for (index, hook) in self.hooks.iter().enumerate() {
            let hook = vec![hook.clone()];
            run_hooks(Some(&hook), Some(&state), None, None, Some(&env)).map_err(|e| {
                let why = chain(&e);
                Failure::other(format!("error running startContainer hook #{index}: {why}"))
            })?;
        }
        Ok(())
    }
}

fn variables(env: &[CString]) -> HashMap<String, String> {
    let entries = env.iter().filter_map(|entry| entry.to_str().ok());
    entries
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(script: &str) -> StartHooks {
        let spec = serde_json::json!({
            "ociVersion": "1.2.0",
            "annotations": {"org.example.color": "green"},
            "hooks": {"startContainer": [
                {"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 20}]},
        });
        let spec = serde_json::from_value(spec).expect("a config.json");
        StartHooks::of(&spec, "c", "/on/the/host").expect("hooks")
    }

    #[test]
    fn a_hook_gets_the_state_and_the_processs_environment() {
        let script = r#"read -r state; [ "$COLOR" = red ] || exit 1; case $state in
            *'"status":"created"'*'"bundle":"/on/the/host"'*green*) exit 0;; esac; exit 2"#;
        let env = [c"COLOR=red".to_owned(), c"PATH=/usr/bin:/bin".to_owned()];
        hooks(script).run(&env).expect("it succeeds");
    }

    #[test]
    fn a_failure_names_the_hook() {
        let failure = hooks("exit 3").run(&[]).expect_err("it fails");
        assert!(
            failure.message.contains("startContainer hook #0"),
            "{failure}"
        );
        assert!(failure.message.ends_with(": 3"), "{failure}");
    }
}
