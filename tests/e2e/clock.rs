//! The wall clock: a container's is the host's, whatever becomes of that.

use std::process::Command;
use std::time::{Duration, SystemTime};

use hull_tests::{Container, skip};

use crate::lifecycle::waiting;

/// How long a container's clock may take to follow.
const LAG: Duration = Duration::from_secs(1);

/// Sets the host's clock, and back when dropped.
struct Step(i64);

impl Step {
    fn by(seconds: i64) -> Self {
        set_by(seconds);
        Self(seconds)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        set_by(-self.0);
    }
}

fn set_by(seconds: i64) {
    let to = format!("@{}", now() + seconds);
    let set = Command::new("date").args(["-s", &to]).output().unwrap();
    assert!(set.status.success(), "{set:?}");
}

fn now() -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    now.as_secs().cast_signed()
}

/// How far the container's clock is from the host's in seconds, by two readings of the host's around it.
fn off_by(container: &Container) -> i64 {
    let before = now();
    let theirs: i64 = container.exec_shell("date +%s").ok().out().parse().unwrap();
    (before - theirs).max(theirs - now()).max(0)
}

#[test]
fn a_container_follows_the_hosts_clock() {
    if std::env::var_os("HULL_EMULATED_HOST").is_none() {
        skip!("it sets the host's clock, which is for a host of the test's own");
    }
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    assert!(off_by(&container) <= 1);
    let uptime = || container.exec_shell("cut -d. -f1 /proc/uptime").ok().out();
    let up: i64 = uptime().parse().unwrap();

    // The second step often comes while the guest still asks for the time after the first.
    for _ in 0..10 {
        drop(Step::by(3600));
        std::thread::sleep(LAG);
        assert!(off_by(&container) <= 1, "after two steps in a row");
    }
    for seconds in [3600, -3600] {
        let _step = Step::by(seconds);
        std::thread::sleep(LAG);
        assert!(off_by(&container) <= 1, "after a step by {seconds} s");
        // One is given its time by the host, the other by the guest.
        for file in [format!("/new{seconds}"), format!("/dev/shm/new{seconds}")] {
            let not_later = format!("[ $(stat -c %Y {file}) -le $(($(date +%s) + 1)) ]");
            let _ = container
                .exec_shell(&format!("echo >{file}; {not_later}"))
                .ok();
        }
    }
    let up = uptime().parse::<i64>().unwrap() - up;
    assert!(up < 1800, "the clock that can't be set went on by {up} s");
}
