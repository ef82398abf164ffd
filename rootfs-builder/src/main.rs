//! `hull-rootfs-builder`: the command line of the library beside it.

use std::fs::{self, File};
use std::io::{self, BufWriter};
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
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
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
    let Verb::Initramfs { agent, output } = Arguments::parse().command;
    match make(&agent, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hull-rootfs-builder: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to a file beside the output first, so that there is never half an archive. Makes the output's
/// folder where it is missing, as in a fresh clone.
fn make(agent: &Path, output: &Path) -> Result<(), Error> {
    let bytes = agent::read(agent)?;
    let partial = output.with_added_extension("partial");
    let folder = output.parent().map_or(Ok(()), fs::create_dir_all);
    let written = folder
        .and_then(|()| File::create(&partial))
        .and_then(|file| initramfs::write(&bytes, BufWriter::new(file)))
        .and_then(|()| fs::rename(&partial, output));
    written.map_err(|source| {
        let _ = fs::remove_file(&partial);
        Error::Write {
            path: output.to_owned(),
            source,
        }
    })
}
