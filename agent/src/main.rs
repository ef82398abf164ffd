//! The agent's binary: PID 1 of the guest, or one of its helpers.

use std::process::ExitCode;

use hull_agent::{boot, helper};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(helper::SUBCOMMAND) => helper::run(arguments.get(1..).unwrap_or_default()),
        Some("--version") => {
            println!("hull-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ if std::process::id() == 1 => boot::run(),
        _ => {
            eprintln!("hull-agent: this program runs as PID 1 of a hull guest only");
            ExitCode::FAILURE
        }
    }
}
