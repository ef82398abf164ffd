//! `hull list`: all containers under `--root`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::ValueEnum;

use super::damaged;
use super::state::Shown;
use crate::cli::Global;
use crate::container::{ContainerError, ContainerId, Store};
use crate::error::Error;
use crate::sandbox::RunningVmm;

/// `hull list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// The form of the list
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Only the ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

const HEAD: [&str; 6] = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];

/// Prints the list.
///
/// # Errors
/// When `--root` can't be read.
pub fn run(global: &Global, args: &List) -> Result<ExitCode, Error> {
    let store = Store::open(&global.root)?;
    // First: whose folder is gone afterwards runs without one.
    let vms = damaged::of_store(&store)?;
    let listed = store.list()?;
    let mut states: Vec<Shown> = listed.states.into_iter().map(Shown::from).collect();
    states.extend(unreadable(&store, listed.damaged, &vms));
    let mut out = io::stdout().lock();
    match (args.quiet, args.format) {
        (true, _) => {
            for state in &states {
                writeln!(out, "{}", state.row()[0])?;
            }
        }
        (false, Format::Json) => {
            serde_json::to_writer(&mut out, &states).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        (false, Format::Table) => {
            let rows: Vec<_> = states.iter().map(Shown::row).collect();
            write!(out, "{}", table(HEAD.map(str::to_owned), &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The containers that have no state to show, each with its VM's pid if it runs.
fn unreadable(store: &Store, damaged: Vec<ContainerId>, vms: &[RunningVmm]) -> Vec<Shown> {
    let gone = |vmm: &&RunningVmm| {
        let found = store.find(&vmm.id);
        matches!(found, Err(ContainerError::Missing(_))) && vmm.process.is_alive()
    };
    let mut ids = damaged;
    for vmm in vms.iter().filter(gone) {
        log::warn!(
            "the folder of container {} is gone, and its VM runs as process {}; delete it with --force",
            vmm.id,
            vmm.process.pid
        );
        ids.push(vmm.id.clone());
    }
    ids.sort();
    ids.dedup();
    let pid = |id: &ContainerId| vms.iter().find(|vmm| vmm.id == *id);
    ids.into_iter()
        .map(|id| {
            let pid = pid(&id).map_or(0, |vmm| vmm.process.pid);
            Shown::damaged(id, pid)
        })
        .collect()
}

/// Columns as wide as their widest cell, and runc's three blanks between them.
pub fn table<const N: usize>(head: [String; N], rows: &[[String; N]]) -> String {
    const GAP: usize = 3;
    let lines = || std::iter::once(&head).chain(rows);
    let widths: Vec<usize> = (0..N)
        .map(|c| lines().map(|l| l[c].chars().count()).max().unwrap_or(0) + GAP)
        .collect();
    let mut text = String::new();
    for line in lines() {
        for (cell, width) in line.iter().zip(&widths) {
            text.push_str(&format!("{cell:<width$}"));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let cells = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let text = table(cells("ID", "PID"), &[cells("web", "7"), cells("a", "12")]);
        assert_eq!(text, "ID    PID\nweb   7\na     12\n");
    }
}
