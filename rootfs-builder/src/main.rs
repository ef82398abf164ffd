//! `hull-rootfs-builder`: the command line of the library beside it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hull_rootfs_builder::agent::{self, AgentError};
use hull_rootfs_builder::initramfs;

/// Builds root file systems for hull's guests
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the guest's initramfs: a cpio archive with the agent as /init
    Initramfs {
        /// The agent: a static program
        #[arg(long)]
        agent: PathBuf,
        /// Where to write the archive
        #[arg(long)]
        output: PathBuf,
    },
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

fn main() -> ExitCode {
    let Command::Initramfs { agent, output } = Arguments::parse().command;
    match make(&agent, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hull-rootfs-builder: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to a file beside the output and renames it, so that the output is never incomplete. Makes the output's
/// directory if it is missing, as in a fresh clone. An output that has these bytes already keeps its modification
/// time, so that nothing that depends on it is rebuilt.
fn make(agent: &Path, output: &Path) -> Result<(), Error> {
    let mut archive = Vec::new();
    let failed = |source| Error::Write {
        path: output.to_owned(),
        source,
    };
    initramfs::write(&agent::read(agent)?, &mut archive).map_err(failed)?;
    if fs::read(output).is_ok_and(|there| there == archive) {
        return Ok(());
    }
    let partial = output.with_added_extension("partial");
    let parent = output.parent().map_or(Ok(()), fs::create_dir_all);
    let written = parent
        .and_then(|()| fs::write(&partial, archive))
        .and_then(|()| fs::rename(&partial, output));
    written.map_err(|source| {
        let _ = fs::remove_file(&partial);
        failed(source)
    })
}
