//! A guest that does its worst to the machine below it: no crash, no hang, no growth.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hull_tests::{Bundle, Container, Running, guest, leaks, only_hull, random};
use serde_json::json;

const MIB: u64 = 1 << 20;
/// The guest's memory at most, which is its own to touch: the container's limit and an allowance.
const GUEST_MEMORY: u64 = 320 * MIB;
/// What the VMM itself may use.
const OVERHEAD: u64 = 48 * MIB;
/// How long it goes on, in seconds: until it is given up, as it never brings up an agent.
const ATTACK: &str = "10";

/// What was seen of a guest until its end.
struct Seen {
    said: String,
    /// The most memory that one process had, in bytes.
    memory: u64,
    /// The most that lay in the state folder, in bytes.
    state: u64,
}

fn attack(image: &[u8]) -> Seen {
    let bundle = Bundle::new().set("/linux/resources/memory", json!({ "limit": 256 * MIB }));
    let kernel = bundle.beside("kernel");
    fs::write(&kernel, image).unwrap();
    let kernel = kernel.display().to_string();
    let container =
        Container::new(bundle).with_global(&["--kernel", &kernel, "--boot-timeout", ATTACK]);

    let run = container.start_run();
    let (mut memory, mut state) = (0, 0);
    while !run.exits_within(Duration::from_millis(500)) {
        for (pid, _) in leaks::processes(container.bundle.token()) {
            memory = memory.max(peak_memory(pid));
        }
        state = state.max(size_below(container.root()));
    }
    let done = run.finish().exits(1);
    Seen {
        said: done.err(),
        memory,
        state,
    }
}

/// The most that process `pid` ever had in memory, in bytes.
fn peak_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn size_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn garbage_in_every_register_and_queue() {
    only_hull!("runc has no virtual machine");
    let seed = random::seed();
    eprintln!("HULL_E2E_SEED={seed}");

    let seen = attack(&guest::scribbling(seed));

    // It was given up, so until then the VMM neither crashed nor refused to serve it.
    assert!(
        seen.said.contains(&format!("{ATTACK} s")),
        "seed {seed}: {}",
        seen.said
    );
    assert!(seen.memory > MIB, "its process was not found");
    assert!(
        seen.memory < GUEST_MEMORY + OVERHEAD,
        "seed {seed}: it grew to {} MiB",
        seen.memory / MIB
    );
}

#[test]
fn endless_words_on_its_console() {
    only_hull!("runc has no virtual machine");

    let seen = attack(&guest::shouting());

    assert!(seen.said.contains(&format!("{ATTACK} s")), "{}", seen.said);
    assert!(
        seen.said.len() < 16 << 10,
        "{} bytes of message",
        seen.said.len()
    );
    assert!(
        seen.memory < OVERHEAD,
        "it grew to {} MiB",
        seen.memory / MIB
    );
    assert!(seen.state < 4 * MIB, "{} MiB of state", seen.state / MIB);
}

#[test]
fn endless_output_that_nobody_reads() {
    let bundle = Bundle::new()
        .shell("exec yes")
        .set("/linux/resources/memory", json!({ "limit": 256 * MIB }));
    let mut container = Container::new(bundle);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut create = container.create_command();
    let mut created = Running::spawn(create.stdout(writer));
    assert!(created.exit().success());
    container.stderr = created.stderr.take();
    let pid = container.state().pid;

    let _ = container.start().ok();
    std::thread::sleep(Duration::from_secs(3)); // in which it could fill memory

    assert!(peak_memory(pid) < GUEST_MEMORY + OVERHEAD);
    assert_eq!(container.state().status, "running");
    drop(reader);
}
