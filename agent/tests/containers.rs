//! End-to-end tests of the agent's service without a VM: the agent runs in namespaces of its own, with UNIX sockets
//! for its vsock ports, and containers of busybox.
//!
//! They need root, cgroup2 with its controllers, and a static busybox, and are skipped with a message without these:
//! `tests/host/run` has them.

mod support;

use std::process::Command;
use std::time::Duration;

use hull_protocol::agent::{Interface, Network, SeccompFilter};
use serde_json::{Value, json};
use support::{Guest, Process, config, process};
use ttrpc::Code;

#[tokio::test]
async fn a_container_runs_and_its_exit_code_is_reported() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut made = guest
        .create(
            "c1",
            &config(&["sh", "-c", "echo out; echo err >&2; exit 7"]),
        )
        .await;
    assert!(made.pid > 1);
    guest.start_container("c1").await.expect("start");
    assert_eq!(made.wait().await, 7);
    assert_eq!(made.output().await, "out\n");
    assert_eq!(made.errors().await, "err\n");
    guest.delete("c1", false).await.expect("delete");
    assert_eq!(guest.delete("c1", false).await, Err(Code::NOT_FOUND));
}

#[tokio::test]
async fn megabytes_pass_from_stdin_to_stdout_unchanged() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut cat = guest.create("c2", &config(&["cat"])).await;
    guest.start_container("c2").await.expect("start");
    let sent: Vec<u8> = (0..8_u32 << 20)
        .map(|i| (i ^ (i >> 9)).to_le_bytes()[0])
        .collect();
    let received = cat.write_and_read(&sent).await;
    assert!(
        received == sent,
        "{} bytes came back of {}",
        received.len(),
        sent.len()
    );
    assert_eq!(cat.wait().await, 0);
}

#[tokio::test]
async fn a_process_that_closes_its_stdin_goes_on() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut made = guest
        .create(
            "c3",
            &config(&["sh", "-c", "exec <&-; sleep 0.2; echo still here"]),
        )
        .await;
    guest.start_container("c3").await.expect("start");
    made.write_stdin(&[b'x'; 200_000]).await;
    assert_eq!(made.wait().await, 0);
    assert_eq!(made.output().await, "still here\n");
}

#[tokio::test]
async fn a_missing_program_is_reported_as_by_runc() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let tell = async |id: &str, args: &[&str]| guest.try_create(id, &config(args)).await.err();
    let missing = "exec: \"nosuchbin\": executable file not found in $PATH".to_owned();
    assert_eq!(
        tell("c4", &["nosuchbin"]).await,
        Some((Code::NOT_FOUND, missing))
    );
    let missing = "exec: \"/nosuch\": stat /nosuch: no such file or directory".to_owned();
    assert_eq!(
        tell("c4", &["/nosuch"]).await,
        Some((Code::NOT_FOUND, missing))
    );
    let forbidden = "exec: \"/etc/passwd\": permission denied".to_owned();
    assert_eq!(
        tell("c4", &["/etc/passwd"]).await,
        Some((Code::PERMISSION_DENIED, forbidden))
    );
    // Nothing is left of the three: the id is free.
    let _made = guest.create("c4", &config(&["true"])).await;
    guest
        .delete("c4", false)
        .await
        .expect("delete what was created");
}

#[tokio::test]
async fn a_file_that_cannot_be_executed_ends_the_container_after_start() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut made = guest.create("c5", &config(&["/bin/garbage"])).await;
    guest.start_container("c5").await.expect("start");
    assert_eq!(made.wait().await, 255);
    assert_eq!(
        made.errors().await,
        "exec /bin/garbage: exec format error\n"
    );
}

#[tokio::test]
async fn signals_reach_one_process_or_all_and_give_128_plus_the_signal() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut made = guest
        .create(
            "c6",
            &config(&[
                "sh",
                "-c",
                "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done",
            ]),
        )
        .await;
    guest.start_container("c6").await.expect("start");
    made.read_line().await;
    guest.signal("c6", "", 15, false).await.expect("TERM");
    assert_eq!(made.wait().await, 9);
    assert_eq!(
        guest.signal("c6", "", 15, false).await,
        Err(Code::NOT_FOUND)
    );

    let mut made = guest.create("c7", &config(&["sleep", "1000"])).await;
    guest.start_container("c7").await.expect("start");
    guest.signal("c7", "", 9, true).await.expect("KILL to all");
    assert_eq!(made.wait().await, 137);
}

#[tokio::test]
async fn a_signal_kills_a_created_container_which_can_be_deleted() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut made = guest.create("c8", &config(&["true"])).await;
    guest.signal("c8", "", 15, false).await.expect("TERM");
    assert_eq!(made.wait().await, 137);
    assert_eq!(
        guest.start_container("c8").await,
        Err(Code::FAILED_PRECONDITION)
    );
    guest.delete("c8", false).await.expect("delete");
}

#[tokio::test]
async fn a_running_container_is_deleted_only_by_force() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut made = guest.create("c9", &config(&["sleep", "1000"])).await;
    guest.start_container("c9").await.expect("start");
    assert_eq!(
        guest.delete("c9", false).await,
        Err(Code::FAILED_PRECONDITION)
    );
    guest.delete("c9", true).await.expect("delete --force");
    assert_eq!(made.wait().await, 137);
}

#[tokio::test]
async fn ten_further_processes_at_once_have_their_own_stdio_and_exit_codes() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let _made = guest.create("c10", &config(&["sleep", "1000"])).await;
    guest.start_container("c10").await.expect("start");
    let mut running = Vec::new();
    for i in 0..10 {
        let script = format!("read word; echo $word {i}; exit {i}");
        running.push(
            guest
                .exec("c10", &format!("e{i}"), &process(&["sh", "-c", &script]))
                .await,
        );
    }
    for (i, process) in running.iter_mut().enumerate() {
        assert_eq!(
            process.write_and_read(b"hello\n").await,
            format!("hello {i}\n").into_bytes()
        );
        assert_eq!(process.wait().await, i32::try_from(i).expect("small"));
    }
    let missing = guest
        .try_exec("c10", "e", &process(&["nosuchbin"]))
        .await
        .err();
    let words = "exec: \"nosuchbin\": executable file not found in $PATH".to_owned();
    assert_eq!(missing, Some((Code::NOT_FOUND, words)));
    guest.delete("c10", true).await.expect("delete");
}

#[tokio::test]
async fn a_further_process_is_confined_like_the_first() {
    let Some(mut guest) = Guest::start().await else {
        return;
    };
    let mut spec = config(&[
        "sh",
        "-c",
        "grep -E '^(Cap|Seccomp:|NoNewPrivs|Groups)' /proc/self/status; ulimit -n; id -u; umask; readlink /proc/self/ns/net; cat; mkdir /tmp/x",
    ]);
    let confined = serde_json::json!({
        "user": {"uid": 1000, "gid": 1000, "additionalGids": [5, 6], "umask": 0o27},
        "capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"],
                         "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 100}],
        "noNewPrivileges": true});
    support::merge(&mut spec["process"], &confined);
    guest.seccomp = Some(without_mkdir());
    for privileged_load in [false, true] {
        let id = format!("c11-{privileged_load}");
        spec["process"]["noNewPrivileges"] = (!privileged_load).into();
        let mut first = guest.create(&id, &spec).await;
        guest.start_container(&id).await.expect("start");
        let mut further = guest.exec(&id, "e", &spec["process"]).await;
        let seen = String::from_utf8(further.write_and_read(b"").await).expect("text");
        assert!(
            further.errors().await.contains("not supported"),
            "seccomp refuses mkdir"
        );
        let expected = String::from_utf8(first.write_and_read(b"").await).expect("text");
        assert_eq!(seen, expected);
        assert!(seen.contains("CapEff:\t0000000000000020"), "{seen}");
        assert!(seen.contains("CapBnd:\t0000000000000021"), "{seen}");
        assert!(
            seen.contains("Seccomp:\t2") && seen.contains("\n99\n1000\n0027\n"),
            "{seen}"
        );
        guest.delete(&id, true).await.expect("delete");
    }
}

/// A filter that refuses mkdir(2) and mkdirat(2) with EOPNOTSUPP.
fn without_mkdir() -> SeccompFilter {
    let number = |call: libc::c_long| u32::try_from(call).expect("a call's number");
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP.unsigned_abs();
    // struct sock_filter: code, jumps if true and if false, k
    let steps: [(u16, u8, u8, u32); 5] = [
        (0x20, 0, 0, 0), // load the call's number
        (0x15, 2, 0, number(libc::SYS_mkdir)),
        (0x15, 1, 0, number(libc::SYS_mkdirat)),
        (0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
        (0x06, 0, 0, refuse),
    ];
    let instruction = |(code, yes, no, k): (u16, u8, u8, u32)| {
        u64::from(code) | u64::from(yes) << 16 | u64::from(no) << 24 | u64::from(k) << 32
    };
    SeccompFilter {
        instructions: steps.map(instruction).to_vec(),
        ..Default::default()
    }
}

#[tokio::test]
async fn home_is_added_to_the_environment() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut spec = config(&[
        "sh",
        "-c",
        "echo $HOME; echo again > /dev/stdout; env | sort | grep -v -E '^(PWD|SHLVL)'",
    ]);
    spec["process"]["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
    spec["process"]["env"] = serde_json::json!(["PATH=/bin", "A=1", "A=2"]);
    let mut made = guest.create("c12", &spec).await;
    guest.start_container("c12").await.expect("start");
    assert_eq!(made.wait().await, 0);
    assert_eq!(
        made.output().await,
        "/home/user\nagain\nA=2\nHOME=/home/user\nPATH=/bin\n"
    );
}

#[tokio::test]
async fn the_owners_exit_status_is_sent_after_its_output() {
    let Some(mut guest) = Guest::start().await else {
        return;
    };
    guest.sandbox_owner = true;
    let mut made = guest
        .create(
            "c13",
            &config(&["sh", "-c", "yes | head -c 300000; kill -9 $$; exit 3"]),
        )
        .await;
    guest.start_container("c13").await.expect("start");
    made.read(300_000).await;
    assert_eq!(
        guest.exit_status().await,
        3,
        "PID 1 of a namespace ignores its own SIGKILL"
    );
}

#[tokio::test]
async fn the_owners_output_ends_with_the_sandbox_unless_it_closes_it() {
    let Some(mut guest) = Guest::start().await else {
        return;
    };
    guest.sandbox_owner = true;
    let script = "echo out; exec 1>&-; echo err >&2; read wait";
    let mut made = guest.create("c17", &config(&["sh", "-c", script])).await;
    guest.start_container("c17").await.expect("start");
    assert_eq!(made.output().await, "out\n", "it is closed");

    made.write_stdin(b"\n").await;
    assert_eq!(guest.exit_status().await, 0);
    let errors = tokio::time::timeout(Duration::from_millis(200), made.errors());
    assert!(
        errors.await.is_err(),
        "the host is to know the status first"
    );
}

#[tokio::test]
async fn processes_that_the_owner_leaves_behind_are_killed() {
    let Some(mut guest) = Guest::start().await else {
        return;
    };
    guest.sandbox_owner = true;
    let script = "sleep 1000 & echo out; read wait; exit 3";
    let mut spec = config(&["sh", "-c", script]);
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    namespaces.expect("namespaces").remove(0);
    let mut made = guest.create("c18", &spec).await;
    guest.start_container("c18").await.expect("start");
    assert_eq!(made.read_line().await, "out\n");
    let sleep = process(&["sleep", "1000"]);
    let mut further = guest.exec("c18", "e", &sleep).await;

    made.write_stdin(b"\n").await;

    let status = tokio::time::timeout(Duration::from_secs(20), guest.exit_status());
    assert_eq!(status.await.ok(), Some(3));
    assert_eq!(further.wait().await, 137);
}

#[tokio::test]
async fn every_container_ends_with_the_owner() {
    let Some(mut guest) = Guest::start().await else {
        return;
    };
    let mut further = guest.create("c20", &config(&["sleep", "1000"])).await;
    guest.start_container("c20").await.expect("start");
    guest.sandbox_owner = true;
    let mut owner = guest
        .create("c19", &config(&["sh", "-c", "read wait; exit 3"]))
        .await;
    guest.start_container("c19").await.expect("start");

    owner.write_stdin(b"\n").await;

    let status = tokio::time::timeout(Duration::from_secs(20), guest.exit_status());
    assert_eq!(status.await.ok(), Some(3));
    assert_eq!(further.wait().await, 137);
}

#[tokio::test]
async fn a_grandchild_that_keeps_the_output_open_does_not_delay_the_exit_status() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let _made = guest.create("c14", &config(&["sleep", "1000"])).await;
    guest.start_container("c14").await.expect("start");
    let mut process = guest
        .exec("c14", "e", &process(&["sh", "-c", "sleep 100 & echo done"]))
        .await;
    let status = tokio::time::timeout(Duration::from_secs(20), process.wait()).await;
    assert_eq!(status.ok(), Some(0));
    assert_eq!(process.read_line().await, "done\n");
    guest.delete("c14", true).await.expect("delete");
}

#[tokio::test]
async fn a_process_gets_a_terminal() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut spec = config(&["sh", "-c", "tty; stty size; read line; echo got $line"]);
    spec["process"]["terminal"] = true.into();
    spec["process"]["consoleSize"] = serde_json::json!({"height": 33, "width": 44});
    let mut made: Process = guest.create("c15", &spec).await;
    guest.start_container("c15").await.expect("start");
    let seen = String::from_utf8(made.write_and_read_terminal(b"word\n").await).expect("text");
    assert!(seen.contains("/dev/pts/0\r\n33 44\r\n"), "{seen:?}");
    assert!(seen.ends_with("got word\r\n"), "{seen:?}");
    assert_eq!(made.wait().await, 0);

    let mut spec = config(&["sleep", "1000"]);
    spec["process"]["terminal"] = false.into();
    let _made = guest.create("c16", &spec).await;
    guest.start_container("c16").await.expect("start");
    let mut process = process(&["sh", "-c", "tty; read line; echo got $line"]);
    process["terminal"] = true.into();
    let mut further = guest.exec("c16", "e", &process).await;
    let seen = String::from_utf8(further.write_and_read_terminal(b"word\n").await).expect("text");
    assert!(
        seen.contains("/dev/pts/0\r\n") && seen.ends_with("got word\r\n"),
        "{seen:?}"
    );
    guest.delete("c16", true).await.expect("delete");
}

#[tokio::test]
async fn a_mount_that_fails_is_named_by_its_index() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let tell = async |mount: Value| {
        let mut spec = config(&["true"]);
        spec["mounts"].as_array_mut().expect("mounts").push(mount);
        guest.try_create("c19", &spec).await.err()
    };
    let tmpfs = json!({"destination": "/a/b", "type": "tmpfs", "options": ["nosuid", "size=much"]});
    let why =
        "config.json: mounts[4]: /a/b: cannot mount tmpfs: option \"size=much\": invalid argument";
    assert_eq!(
        tell(tmpfs).await,
        Some((Code::INVALID_ARGUMENT, why.to_owned()))
    );
    let bind = json!({"destination": "/etc/passwd/x", "source": "/proc", "options": ["bind"]});
    let why = "config.json: mounts[4]: /etc/passwd/x: cannot bind it there: not a directory";
    assert_eq!(
        tell(bind).await,
        Some((Code::INVALID_ARGUMENT, why.to_owned()))
    );
}

#[tokio::test]
async fn a_user_namespace_has_its_ids_its_devices_and_its_time() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let script = "cat /proc/self/uid_map /proc/self/gid_map /proc/self/timens_offsets; id -u;
        echo gone >/dev/null && head -c 3 /dev/zero | wc -c; cat /proc/sys/kernel/msgmax;
         echo $(($(cut -d. -f1 /proc/uptime) > 1000000)); readlink /proc/self/ns/time; exec sleep 1000";
    let mut spec = config(&["sh", "-c", script]);
    let map = json!([{"containerID": 0, "hostID": 0, "size": 1},
                     {"containerID": 1, "hostID": 100_000, "size": 9}]);
    let fields = json!({"uidMappings": map, "gidMappings": map, "sysctl": {"kernel.msgmax": "4567"},
        "timeOffsets": {"boottime": {"secs": 1_000_000, "nanosecs": 7}}});
    support::merge(&mut spec["linux"], &fields);
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    namespaces
        .expect("namespaces")
        .extend([json!({"type": "user"}), json!({"type": "time"})]);
    let mut made = guest.create("c20", &spec).await;
    guest.start_container("c20").await.expect("start");
    let mut output = String::new();
    for _ in 0..11 {
        output += &made.read_line().await;
    }
    let words: Vec<_> = output.split_whitespace().collect();
    let map = ["0", "0", "1", "1", "100000", "9"];
    assert_eq!(words[..6], map, "{output}");
    assert_eq!(words[6..12], map, "{output}");
    let rest = ["monotonic", "0", "0", "boottime", "1000000", "7"];
    assert_eq!(words[12..18], rest, "{output}");
    assert_eq!(words[18..22], ["0", "3", "4567", "1"], "{output}");
    let mut further = guest
        .exec(
            "c20",
            "e",
            &process(&["sh", "-c", "exec readlink /proc/self/ns/time"]),
        )
        .await;
    assert_eq!(further.output().await.trim(), words[22]);
    guest.delete("c20", true).await.expect("delete");
}

#[tokio::test]
async fn mount_points_and_cwd_are_made_before_mounts_become_read_only() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let script = "pwd; for d in / /data /data/below /dev; do echo x >$d/x || echo $d; done";
    let mut spec = config(&["sh", "-c", script]);
    spec["root"]["readonly"] = true.into();
    spec["process"]["cwd"] = "/new/directory".into();
    let tmpfs = |destination, option| json!({"destination": destination, "type": "tmpfs", "options": [option]});
    let mounts = spec["mounts"].as_array_mut().expect("mounts");
    mounts[1]["options"] = json!(["ro", "mode=755"]);
    mounts.extend([tmpfs("/link/../data", "ro"), tmpfs("/data/below", "nosuid")]);
    let mut made = guest.create("c21", &spec).await;
    guest.start_container("c21").await.expect("start");
    assert_eq!(made.output().await, "/new/directory\n/\n/data\n/dev\n");
    assert_eq!(made.wait().await, 0);
}

#[tokio::test]
async fn a_container_has_its_interfaces_before_it_starts_and_gives_the_nics_back() {
    let Some(mut guest) = Guest::start().await else {
        return;
    };
    // The guest's own network namespace is this machine's.
    let ip = |arguments: &str| {
        let output = Command::new("ip").args(arguments.split(' ')).output();
        output.is_ok_and(|output| output.status.success())
    };
    let add = |kind| {
        ip(&format!(
            "link add hull-nic0 address 02:00:00:00:00:77 type {kind}"
        ))
    };
    if !["dummy", "ifb"].into_iter().any(add) {
        eprintln!("skipped: it needs iproute2, and a kernel with dummy or ifb links");
        return;
    }
    let name_here = || {
        let links = Command::new("ip").args(["-o", "link"]).output();
        let links = String::from_utf8(links.expect("ip").stdout).expect("UTF-8");
        let link = links
            .lines()
            .find(|line| line.contains("02:00:00:00:00:77"));
        link.and_then(|line| line.split(": ").nth(1).map(str::to_owned))
    };
    let mut interface = Interface {
        name: "eth7".into(),
        mac: vec![2, 0, 0, 0, 0, 0x77],
        host_index: 7,
        ..Default::default()
    };
    let network = |interface: &Interface| {
        Some(Network {
            interfaces: vec![interface.clone()],
            ..Default::default()
        })
    };
    interface.mac.pop();
    guest.network = network(&interface);
    let refused = guest.try_create("net", &config(&["true"])).await.err();
    let expected = "network: interfaces[eth7]: mac: it has 5 bytes, not 6".to_owned();
    assert_eq!(refused, Some((Code::INVALID_ARGUMENT, expected)));

    interface.mac.push(0x77);
    guest.network = network(&interface);
    let count = "grep -c eth7: /proc/net/dev; read line; grep -c eth7: /proc/net/dev";
    let mut made = guest.create("net", &config(&["sh", "-c", count])).await;
    guest.start_container("net").await.expect("start");
    assert_eq!(made.read_line().await, "1\n");
    guest.update_network("net", None).await.expect("removed");
    assert!(name_here().is_some());
    guest
        .update_network("net", network(&interface))
        .await
        .expect("added again");
    made.write_stdin(b"\n").await;
    assert_eq!(made.read_line().await, "1\n");
    made.wait().await;
    // When the container is deleted it comes back, with a name that is free.
    assert_eq!(name_here(), None);
    guest.delete("net", false).await.expect("delete");
    let name = name_here().expect("it is back");
    assert!(ip(&format!("link del {name}")));
}
