//! SIGKILL at random moments: nothing stays that `delete --force` doesn't clear.
//!
//! `HULL_E2E_KILLS` says how often (default 100, over all tests here), `HULL_E2E_SEED` repeats a run.

use std::time::{Duration, Instant};

use hull_tests::random::{self, Random};
use hull_tests::{Bundle, Container, Running, leaks, runtime};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::systemd::Systemd;

/// A fifth of all kills.
fn kills() -> u64 {
    let all = std::env::var("HULL_E2E_KILLS").ok();
    let all: u64 = all.and_then(|count| count.parse().ok()).unwrap_or(100);
    all.div_ceil(5)
}

/// One container that comes and goes under the same id, while somebody kills.
struct Storm {
    container: Container,
    random: Random,
    seed: u64,
    /// How many processes were killed.
    hits: u64,
}

impl Storm {
    fn new() -> Self {
        Self::over(Container::new(bundle()))
    }

    fn over(container: Container) -> Self {
        let seed = random::seed();
        eprintln!("HULL_E2E_SEED={seed}");
        Self {
            container,
            random: Random::new(seed),
            seed,
            hits: 0,
        }
    }

    /// How long a verb takes when nobody kills.
    fn time_of(&self, verb: impl Fn(&Container) -> Running) -> Duration {
        let start = Instant::now();
        let mut running = verb(&self.container);
        assert!(running.exit().success());
        start.elapsed()
    }

    /// Kills one process of the container, any but ours, `delay` from now; says which.
    fn kill_after(&mut self, delay: Duration) -> String {
        std::thread::sleep(delay);
        let processes = leaks::processes(self.container.bundle.token());
        if processes.is_empty() {
            return "nobody".to_owned();
        }
        let chosen = self.random.below(processes.len() as u64) as usize;
        let (pid, trace) = &processes[chosen];
        // it may have ended meanwhile
        if kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).is_ok() {
            self.hits += 1;
        }
        format!("{pid}, known by its {trace}")
    }

    /// Whatever happened, `delete --force` must clear it.
    fn clear(&self, what: &str) {
        let deleted = self.container.delete_force();
        let told = format!("seed {}: {what}", self.seed);
        assert!(
            deleted.status.success(),
            "{told}: delete --force fails: {}",
            deleted.err()
        );
        // runc leaves its cgroup when it dies between making it and writing that down
        let left: Vec<_> = self
            .container
            .leaks()
            .into_iter()
            .filter(|path| runtime::is_hull() || !path.starts_with("/sys/fs/cgroup"))
            .collect();
        assert!(left.is_empty(), "{told}: left behind: {left:#?}");
    }

    /// The storm is over, and was one: most kills hit somebody.
    fn is_over(&self) {
        eprintln!("{} of {} kills hit a process", self.hits, kills());
        assert!(
            self.hits * 2 >= kills(),
            "{} of {} kills hit",
            self.hits,
            kills()
        );
        self.lives_on();
    }

    /// The id can be used as if nothing had been.
    fn lives_on(&self) {
        let mut run = self.container.run_until_ready();
        let _ = self.container.kill("KILL").ok();
        assert_eq!(run.exit().code(), Some(137));
    }
}

fn bundle() -> Bundle {
    Bundle::new().shell("echo ready; exec sleep 3600")
}

fn create(container: &Container) -> Running {
    Running::spawn(&mut container.create_command())
}

#[test]
fn during_create() {
    let mut storm = Storm::new();
    let usual = storm.time_of(create);
    storm.clear("no kill");

    for round in 0..kills() {
        let delay = storm.random.moment(usual + usual / 4);
        let mut verb = create(&storm.container);
        let victim = storm.kill_after(delay);
        // whoever was killed, the command must come to an end
        let _ = verb.exit();
        drop(verb);
        storm.clear(&format!("round {round}: after {delay:?} killed {victim}"));
    }

    storm.is_over();
}

#[test]
fn during_start() {
    let mut storm = Storm::new();
    let start =
        |container: &Container| Running::spawn(&mut container.command(&["start", &container.id]));
    storm.container.create();
    let usual = storm.time_of(start);
    storm.clear("no kill");

    for round in 0..kills() {
        storm.container.create();
        let delay = storm.random.moment(usual + usual / 4);
        let mut verb = start(&storm.container);
        let victim = storm.kill_after(delay);
        let _ = verb.exit();
        drop(verb);
        storm.clear(&format!("round {round}: after {delay:?} killed {victim}"));
    }

    storm.is_over();
}

/// The verbs of a container that runs, while somebody kills.
fn during_other_verbs(storm: &mut Storm) {
    let id = storm.container.id.clone();
    let verbs: [&[&str]; 3] = [
        &["exec", &id, "true"],
        &["update", "--pids-limit", "50", "--cpu-share", "512", &id],
        &["delete", "--force", &id],
    ];
    let usual = verbs.map(|verb| {
        storm.container.create();
        let _ = storm.container.start().ok();
        let usual = storm.time_of(|container| Running::spawn(&mut container.command(verb)));
        storm.clear("no kill");
        usual
    });
    for round in 0..kills() {
        storm.container.create();
        let _ = storm.container.start().ok();
        let which = round as usize % verbs.len();
        let (verb, usual) = (verbs[which], usual[which]);
        let delay = storm.random.moment(usual + usual / 4);
        let mut running = Running::spawn(&mut storm.container.command(verb));
        let victim = storm.kill_after(delay);
        let _ = running.exit();
        drop(running);
        let name = verb[0];
        storm.clear(&format!(
            "round {round}: {name}: after {delay:?} killed {victim}"
        ));
    }
    storm.is_over();
}

#[test]
fn in_a_cgroup_that_another_container_shares() {
    let mut other = Container::new(bundle());
    other.create();
    let path = format!("/{}", other.bundle.token());
    let sharing = bundle().set("/linux/cgroupsPath", json!(path));
    let mut storm = Storm::over(Container::new(sharing));

    during_other_verbs(&mut storm);

    assert_eq!(other.state().status, "created");
    let _ = other.delete_force().ok();
    assert_eq!(other.leaks(), [""; 0]);
}

#[test]
fn in_a_scope_of_systemds() {
    let systemd = Systemd::start();
    let mut storm = Storm::over(systemd.container(bundle()));
    during_other_verbs(&mut storm);
}

#[test]
fn during_run() {
    let mut storm = Storm::new();
    let begun = Instant::now();
    storm.lives_on();
    let usual = begun.elapsed();

    for round in 0..kills() {
        let delay = storm.random.moment(usual + usual / 4);
        let mut run = storm.container.start_run();
        let victim = storm.kill_after(delay);
        // if it was an innocent one, the container is deleted while it runs
        let _ = storm.container.delete_force();
        let _ = run.exit();
        drop(run);
        storm.clear(&format!("round {round}: after {delay:?} killed {victim}"));
    }

    storm.is_over();
}
