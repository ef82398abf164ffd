//! Checks that a program can be the agent: it must not need anything that the guest doesn't have, and a
//! wrong link shows only when it is started.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use elf::ElfBytes;
use elf::abi::{EM_X86_64, PT_INTERP};
use elf::endian::LittleEndian;

/// The word that a working agent's `--version` begins with.
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
    /// It isn't a program at all.
    #[error("the agent {path} is no 64-bit ELF file: {source}")]
    NotElf {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: elf::ParseError,
    },
    /// It is for another machine.
    #[error("the agent {path} is no program for x86-64")]
    Machine {
        /// Its path.
        path: PathBuf,
    },
    /// It needs libraries, which the guest hasn't.
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
    /// It starts, and fails or is something else.
    #[error("`{path} --version` ended with {status} and said {output:?}: is it hull's agent?")]
    Version {
        /// Its path.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        output: String,
    },
}

/// Reads the agent and checks that it is static and starts.
///
/// # Errors
/// When it isn't, or doesn't.
pub fn read(path: &Path) -> Result<Vec<u8>, AgentError> {
    let named = || path.to_owned();
    let bytes = std::fs::read(path).map_err(|source| AgentError::Read {
        path: named(),
        source,
    })?;
    check_static(path, &bytes)?;
    let output = Command::new(path)
        .arg("--version")
        .output()
        .map_err(|source| AgentError::Start {
            path: named(),
            source,
        })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || !text.starts_with(NAME) {
        return Err(AgentError::Version {
            path: named(),
            status: output.status,
            output: text,
        });
    }
    Ok(bytes)
}

fn check_static(path: &Path, bytes: &[u8]) -> Result<(), AgentError> {
    let named = || path.to_owned();
    let not_elf = |source| AgentError::NotElf {
        path: named(),
        source,
    };
    let elf = ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(not_elf)?;
    if elf.ehdr.e_machine != EM_X86_64 {
        return Err(AgentError::Machine { path: named() });
    }
    let mut segments = elf.segments().into_iter().flatten();
    if segments.any(|segment| segment.p_type == PT_INTERP) {
        return Err(AgentError::Dynamic { path: named() });
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
