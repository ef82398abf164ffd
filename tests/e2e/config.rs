//! The configuration: its file, and what annotations may change of it.

use std::fs;

use hull_tests::{Bundle, Container, only_hull};
use serde_json::{Value, json};

/// A container whose runtime is configured by this file.
fn configured(bundle: Bundle, toml: &str) -> Container {
    let file = bundle.file("hull.toml", toml).display().to_string();
    Container::new(bundle).with_global(&["--config", &file])
}

/// The memory that a guest sees, in MiB.
fn guest_memory(container: &Container) -> u64 {
    let said = container.run().ok().out();
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words[0], "MemTotal:", "{said}");
    words[1].parse::<u64>().unwrap() >> 10
}

fn memory_bundle() -> Bundle {
    Bundle::new().args(&["grep", "MemTotal", "/proc/meminfo"])
}

#[test]
fn the_file_says_how_large_a_guest_is() {
    only_hull!("runc has no such file");
    let container = configured(
        memory_bundle(),
        "boot_timeout = 120\ndefault_memory = 256\n",
    );
    let memory = guest_memory(&container);
    assert!((160..256).contains(&memory), "{memory} MiB");
}

#[test]
fn an_annotation_that_is_allowed_changes_the_container() {
    only_hull!("runc has no such annotations");
    let bundle = memory_bundle().set("/annotations", json!({ "io.hull.default_memory": "512" }));
    let file = "boot_timeout = 120\ndefault_memory = 256\nannotations = [\"default_memory\"]\n";
    let memory = guest_memory(&configured(bundle, file));
    assert!((400..512).contains(&memory), "{memory} MiB");
}

#[test]
fn an_annotation_that_is_not_allowed_is_refused_by_name() {
    only_hull!("runc has no such annotations");
    for (name, why) in [
        ("io.hull.kernel_params", "does not allow"),
        ("io.hull.colour", "no such annotation"),
    ] {
        let bundle = Bundle::new().set("/annotations", json!({ name: "x" }));
        let container = configured(bundle, "annotations = [\"default_memory\"]\n");
        let done = container.run().exits(1).fails_saying(name);
        let _ = done.fails_saying(why);
    }
}

#[test]
fn the_configuration_in_force_is_printed() {
    only_hull!("runc has no configuration");
    let container = configured(Bundle::new(), "max_vcpus = 2\nboot_timeout = 9\n");
    let printed = container.call(&["config"]).ok().out();
    let again = container.bundle.file("again.toml", &printed);
    let again = again.display().to_string();

    let words = ["--config", &again, "--boot-timeout", "7"];
    let container = Container::new(Bundle::new()).with_global(&words);
    let printed = container.call(&["config", "--format", "json"]).ok();
    let config: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(config["max_vcpus"], 2);
    assert_eq!(config["boot_timeout"], 7, "the command line wins");
}

#[test]
fn what_is_wrong_is_named_by_file_line_and_key() {
    only_hull!("runc has no configuration");
    let container = configured(Bundle::new(), "# mine\n\nmax_vcpu = 2\n");
    let refused = container
        .run()
        .exits(1)
        .fails_saying("hull.toml, line 3: max_vcpu");
    assert_eq!(refused.err().lines().count(), 1, "{}", refused.err());

    let file = container.bundle.beside("hull.toml");
    fs::remove_file(file).unwrap();
    let _ = container
        .call(&["config"])
        .exits(1)
        .fails_saying("hull.toml");
}

#[test]
fn a_vm_may_have_its_cores_to_itself() {
    only_hull!("runc has no such file");
    let container = configured(Bundle::new().shell("echo done"), "core_scheduling = true\n");
    assert_eq!(container.run().ok().out(), "done");
}
