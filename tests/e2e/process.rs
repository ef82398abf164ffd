//! What the container's process is: its user, folder, environment, limits and privileges.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use hull_tests::{Bundle, Container};
use serde_json::{Value, json};

fn identity(bundle: Bundle) -> Value {
    let done = Container::new(bundle.probe(&["identity"])).run().ok();
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn is_what_config_json_says() {
    let nothing = json!([]);
    let some = json!(["CAP_KILL", "CAP_SYS_TIME"]);
    let found = identity(
        Bundle::new()
            .set(
                "/process/user",
                json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027 }),
            )
            .set("/process/cwd", json!("/tmp"))
            .push("/process/env", json!("COLOR=deep green"))
            .push("/process/env", json!("EMPTY="))
            .set("/hostname", json!("cabin"))
            .set("/process/noNewPrivileges", json!(false))
            .set(
                "/process/rlimits",
                json!([
                    { "type": "RLIMIT_NOFILE", "soft": 512, "hard": 512 },
                    { "type": "RLIMIT_CORE", "soft": 1000, "hard": 2000 },
                ]),
            )
            .set(
                "/process/capabilities",
                json!({
                    "bounding": some, "permitted": some, "effective": some,
                    "inheritable": some, "ambient": nothing,
                }),
            ),
    );

    assert_eq!(found["pid"], 1);
    assert_eq!(found["uid"], json!([1000, 1000, 1000, 1000]));
    assert_eq!(found["gid"], json!([1001, 1001, 1001, 1001]));
    assert_eq!(found["groups"], json!([5, 6]));
    assert_eq!(found["umask"], "0027");
    assert_eq!(found["cwd"], "/tmp");
    assert_eq!(found["env"]["COLOR"], "deep green");
    assert_eq!(found["env"]["EMPTY"], "");
    assert_eq!(found["env"]["HOME"], "/home", "from /etc/passwd");
    assert_eq!(found["hostname"], "cabin");
    assert_eq!(found["no_new_privs"], "0");
    assert_eq!(found["rlimits"]["nofile"], json!([512, 512]));
    assert_eq!(found["rlimits"]["core"], json!([1000, 2000]));
    let capabilities = &found["capabilities"];
    assert_eq!(capabilities["bounding"], "0000000002000020");
    assert_eq!(capabilities["inheritable"], "0000000002000020");
    // execve drops those of a user that isn't root
    assert_eq!(capabilities["effective"], "0000000000000000");
    assert_eq!(capabilities["ambient"], "0000000000000000");
}

#[test]
fn few_descriptors_are_no_fewer_than_a_program_needs() {
    let limits = json!([{ "type": "RLIMIT_NOFILE", "soft": 8, "hard": 8 }]);
    let bundle = Bundle::new().shell("echo ready; ulimit -n; exec sleep 3600");
    let container = Container::new(bundle.set("/process/rlimits", limits));
    let mut running = container.run_until_ready();
    assert_eq!(running.line(), "8");
    let done = container.exec_shell("ulimit -n; ulimit -Hn").ok();
    assert_eq!(done.out(), "8\n8");
}

#[test]
fn limits_in_a_user_namespace_may_be_above_the_kernels_own() {
    let limits = json!([{ "type": "RLIMIT_NOFILE", "soft": 5000, "hard": 65536 }]);
    let bundle = Bundle::new()
        .shell("ulimit -n; ulimit -Hn")
        .in_user_namespace(json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]));
    let container = Container::new(bundle.set("/process/rlimits", limits));
    assert_eq!(container.run().ok().out(), "5000\n65536");
}

#[test]
fn has_no_more_than_config_json_gives() {
    let found = identity(Bundle::new());

    assert_eq!(found["uid"], json!([0, 0, 0, 0]));
    assert_eq!(found["groups"], json!([]));
    assert_eq!(found["env"]["HOME"], "/root");
    assert_eq!(
        found["env"].as_object().unwrap().len(),
        3,
        "{}",
        found["env"]
    );
    assert_eq!(found["no_new_privs"], "1");
    for set in ["bounding", "permitted", "effective"] {
        assert_eq!(found["capabilities"][set], "0000000020000420", "{set}");
    }
    assert_eq!(found["capabilities"]["ambient"], "0000000000000000");
}

#[test]
fn ambient_capabilities_that_root_does_not_need_are_no_news() {
    let bundle = Bundle::new()
        .args(&["true"])
        .set("/process/capabilities/ambient", json!(["CAP_KILL"]));
    assert_eq!(Container::new(bundle).run().ok().err(), "");
}

#[test]
fn ambient_capabilities_reach_a_user_that_is_not_root() {
    let found = identity(
        Bundle::new()
            .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
            .ambient_capabilities(&["CAP_NET_BIND_SERVICE"]),
    );
    assert_eq!(found["capabilities"]["effective"], "0000000000000400");
    assert_eq!(found["capabilities"]["ambient"], "0000000000000400");
}

#[test]
fn a_read_only_root_stays_as_it_is() {
    let script = "touch /new; echo $?; echo x >>/etc/passwd; echo $?; rm /etc/group; echo $?;
                  touch /dev/shm/new && echo but not /dev/shm";
    let bundle = Bundle::new()
        .shell(script)
        .set("/root/readonly", json!(true));
    let container = Container::new(bundle);

    let done = container.run().ok();

    assert_eq!(done.out(), "1\n1\n1\nbut not /dev/shm");
    assert!(done.err().contains("Read-only file system"));
    assert!(!container.bundle.rootfs().join("new").exists());
    assert!(container.bundle.rootfs().join("etc/group").exists());
}

#[test]
fn sees_only_its_own_world() {
    let script = "ls -d /proc/[0-9]* | wc -l; ls /sys/class/net; ls /proc/kcore | wc -l;
                  head -c 1 /proc/kcore | wc -c; echo 1 >/proc/sys/vm/swappiness; echo $?;
                  cat /proc/self/cgroup";
    let done = Container::new(Bundle::new().shell(script)).run().ok();
    let out = done.out();
    let lines: Vec<_> = out.lines().collect();

    assert!(lines[0].parse::<u32>().unwrap() <= 3, "processes: {out}");
    assert_eq!(lines[1], "lo");
    assert_eq!(lines[3], "0", "/proc/kcore is masked");
    assert_eq!(lines[4], "1", "/proc/sys is read-only");
    assert!(lines[5].ends_with(":/"), "a cgroup namespace: {out}");
}

#[test]
fn read_only_and_masked_paths_keep_all_but_what_they_are_for() {
    let script = "echo >new 2>/dev/null || echo ro; cd /; echo >/dev/null && echo devices; busybox true && echo programs;
                  touch /bin/new 2>/dev/null || echo ro; echo >link/new 2>/dev/null || echo ro;
                  echo >new 2>/dev/null || echo ro; ls -lan /home | wc -l; stat -c '%u %a' /home";
    let bundle = Bundle::new()
        .shell(script)
        .set("/process/cwd", json!("/var/lib"))
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        .set(
            "/linux/readonlyPaths",
            json!(["/bin", "/dev", "/var", "/link", "/none"]),
        )
        .set(
            "/linux/maskedPaths",
            json!(["/home", "/etc/passwd", "/none"]),
        );
    symlink("tmp", bundle.rootfs().join("link")).unwrap();
    fs::write(bundle.rootfs().join("home/secret"), "text").unwrap();
    fs::set_permissions(
        bundle.rootfs().join("var"),
        fs::Permissions::from_mode(0o777),
    )
    .unwrap();
    let done = Container::new(bundle).run().ok();
    let out: Vec<_> = done
        .stdout
        .split(|b| *b == b'\n')
        .map(String::from_utf8_lossy)
        .collect();
    assert_eq!(
        out,
        [
            "ro", "devices", "programs", "ro", "ro", "ro", "3", "0 1777", ""
        ],
        "{}",
        done.err()
    );
}

#[test]
fn its_working_folder_is_made_if_it_is_not_there() {
    let bundle = Bundle::new()
        .shell("pwd; stat -c '%u %a' . ..; ls -d /mnt/new/*")
        .set(
            "/process/user",
            json!({ "uid": 1000, "gid": 1000, "umask": 0o077 }),
        )
        .set("/process/cwd", json!("/mnt/new/one"))
        .push(
            "/mounts",
            json!({ "destination": "/mnt", "type": "tmpfs", "source": "tmpfs" }),
        )
        .set("/root/readonly", json!(true));
    let done = Container::new(bundle).run().ok();
    assert_eq!(done.out(), "/mnt/new/one\n0 755\n0 755\n/mnt/new/one");
}

#[test]
fn its_locked_memory_and_its_keyring_are_as_with_runc() {
    let bundle = Bundle::new()
        .shell("ulimit -l; grep -o ' 3f1b0000 .* _ses[^:]*' /proc/keys")
        .set("/linux/maskedPaths", json!([]));
    let container = Container::new(bundle);
    let out = container.run().ok().out();
    let (limit, keyring) = out.split_once('\n').unwrap();
    assert_eq!(limit, "8192", "the kernel's default");
    assert!(
        keyring.contains(" 0     0 keyring ") && keyring.contains(&container.id),
        "{out}"
    );
}

#[test]
fn an_empty_home_is_filled_in_where_it_is() {
    let bundle = Bundle::new()
        .args(&["/bin/cat", "/proc/self/environ"])
        .set("/process/env", json!(["A=1", "HOME=", "PATH=/bin"]));
    let out = Container::new(bundle).run().ok().out();
    assert_eq!(out, "A=1\0HOME=/root\0PATH=/bin\0");
}

#[test]
fn has_a_network_of_its_own_with_lo_up() {
    let look = "cat /sys/class/net/lo/flags /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let bundle = Bundle::new()
        .shell(&format!("{look}; echo ready; exec sleep 3600"))
        .set(
            "/linux/sysctl",
            json!({ "net.ipv4.ip_unprivileged_port_start": "99" }),
        );
    let container = Container::new(bundle);
    let mut running = container.start_run();

    // IFF_UP | IFF_LOOPBACK
    assert_eq!(running.line(), "0x9");
    assert_eq!(running.line(), "99");
    assert_eq!(running.line(), "ready");
    assert_eq!(container.exec_shell(look).ok().out(), "0x9\n99");
}

#[test]
fn in_a_user_namespace_the_network_is_that_namespaces() {
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    let bundle = Bundle::new()
        .shell("ls /sys/class/net; cat /proc/sys/net/ipv4/ip_unprivileged_port_start")
        .in_user_namespace(map)
        .set(
            "/linux/sysctl",
            json!({ "net.ipv4.ip_unprivileged_port_start": "99" }),
        );
    assert_eq!(Container::new(bundle).run().ok().out(), "lo\n99");
}

#[test]
fn seccomp_filters_bind_it_and_its_execs() {
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }],
    });
    let bundle = Bundle::new()
        .shell("mkdir /tmp/a 2>&1; grep ^Seccomp: /proc/self/status; echo ready; exec sleep 3600")
        .set("/linux/seccomp", seccomp);
    let container = Container::new(bundle);
    let mut running = container.start_run();

    assert!(running.line().contains("No space left on device"));
    assert_eq!(running.line(), "Seccomp:\t2");
    assert_eq!(running.line(), "ready");

    let exec = container
        .exec_shell("mkdir /tmp/b 2>&1; grep ^Seccomp: /proc/self/status")
        .ok();
    assert!(exec.out().contains("No space left on device"), "{exec:?}");
    assert!(exec.out().contains("Seccomp:\t2"), "{exec:?}");
}

#[test]
fn memory_may_be_reserved_beyond_the_limit() {
    let bytes = (300_u64 << 20).to_string();
    let limit = json!({ "limit": 96 << 20 });
    let bundle = Bundle::new().probe(&["reserve", &bytes]);
    let _ = Container::new(bundle.set("/linux/resources/memory", limit))
        .run()
        .ok();
}

#[test]
fn the_hosts_kernel_knows_how_readily_it_may_be_ended() {
    let bundle = Bundle::new().shell("echo ready; sleep 3600");
    let container = Container::new(bundle.set("/process/oomScoreAdj", json!(321)));
    let _running = container.run_until_ready();
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", container.state().pid));
    assert_eq!(score.unwrap().trim(), "321");
}
