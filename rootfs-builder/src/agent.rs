//! Checks that a program can be the agent: it must be static, as the guest has no libraries, and it must run.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use elf::ElfBytes;
use elf::abi::{EM_X86_64, PT_INTERP};
use elf::endian::LittleEndian;

/// What the agent's `--version` prints begins with this.
const NAME: &str = "hull-agent ";

/// Why a program can't be the agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It can't be read.
    #[error("read the agent {path}: {source}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It isn't an ELF file.
    #[error("the agent {path} is not a 64-bit ELF file: {source}")]
    NotElf {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: elf::ParseError,
    },
    /// It is for another processor.
    #[error("the agent {path} is not a program for x86-64")]
    Machine {
        /// Its path.
        path: PathBuf,
    },
    /// It needs libraries, which the guest doesn't have.
    #[error(
        "the agent {path} is linked dynamically: build it with this workspace's .cargo/config.toml"
    )]
    Dynamic {
        /// Its path.
        path: PathBuf,
    },
    /// It doesn't start.
    #[error("start `{path} --version`: {source}")]
    Start {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It starts, but fails or isn't the agent.
    #[error("`{path} --version` ended with {status} and printed {output:?}: is it hull's agent?")]
    Version {
        /// Its path.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        output: String,
    },
}

/// Reads the agent and checks that it is static and starts.
///
/// # Errors
/// When it can't be read, isn't static or isn't the agent.
pub fn read(path: &Path) -> Result<Vec<u8>, AgentError> {
    let owned_path = || path.to_owned();
    let bytes = std::fs::read(path).map_err(|source| AgentError::Read {
        path: owned_path(),
        source,
    })?;
    check_static(path, &bytes)?;
    let output = Command::new(path)
        .arg("--version")
        .output()
        .map_err(|source| AgentError::Start {
            path: owned_path(),
            source,
        })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || !text.starts_with(NAME) {
        return Err(AgentError::Version {
            path: owned_path(),
            status: output.status,
            output: text,
        });
    }
    Ok(bytes)
}

fn check_static(path: &Path, bytes: &[u8]) -> Result<(), AgentError> {
    let owned_path = || path.to_owned();
    let not_elf = |source| AgentError::NotElf {
        path: owned_path(),
        source,
    };
    let elf = ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(not_elf)?;
    if elf.ehdr.e_machine != EM_X86_64 {
        return Err(AgentError::Machine { path: owned_path() });
    }
    let mut segments = elf.segments().into_iter().flatten();
    if segments.any(|segment| segment.p_type == PT_INTERP) {
        return Err(AgentError::Dynamic { path: owned_path() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_agent_is_refused() {
        let shell = read(Path::new("/bin/sh"));
        assert!(
            matches!(shell, Err(AgentError::Dynamic { .. })),
            "{shell:?}"
        );
        let text = read(Path::new("/etc/passwd"));
        assert!(matches!(text, Err(AgentError::NotElf { .. })), "{text:?}");
        // A static program, but another one: this test itself.
        let this = std::env::current_exe().expect("the test's own path");
        let other = read(&this);
        assert!(
            matches!(other, Err(AgentError::Version { .. })),
            "{other:?}"
        );
    }
}
