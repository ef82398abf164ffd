//! `linux.resources.devices`: which accesses to which devices are allowed, as a program that the kernel calls for
//! each access (`BPF_PROG_TYPE_CGROUP_DEVICE`).
//!
//! Of the rules about a device, the last one that names an access decides about that access. If several accesses
//! are requested at once, all must be allowed: opening for reading and writing is both.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;

use oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceType};

use crate::bpf::{self, Kind, instruction};
use crate::error::Failure;

/// Accesses, `BPF_DEVCG_ACC_*` of linux/bpf.h.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// Types of devices, `BPF_DEVCG_DEV_*` of linux/bpf.h.
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// Rules that hold whatever config.json says, as with runc: nodes may be made, and the default devices, terminals
/// and /dev/net/tun may be used.
const ALWAYS: &[Rule] = &[
    Rule::allow(CHARACTER, None, None, MKNOD),
    Rule::allow(BLOCK, None, None, MKNOD),
    Rule::allow(CHARACTER, Some(1), Some(3), ALL), // null
    Rule::allow(CHARACTER, Some(1), Some(5), ALL), // zero
    Rule::allow(CHARACTER, Some(1), Some(7), ALL), // full
    Rule::allow(CHARACTER, Some(1), Some(8), ALL), // random
    Rule::allow(CHARACTER, Some(1), Some(9), ALL), // urandom
    Rule::allow(CHARACTER, Some(5), Some(0), ALL), // tty
    Rule::allow(CHARACTER, Some(5), Some(1), ALL), // console
    Rule::allow(CHARACTER, Some(5), Some(2), ALL), // ptmx
    Rule::allow(CHARACTER, Some(136), None, ALL),  // pts/*
    Rule::allow(CHARACTER, Some(10), Some(200), ALL), // net/tun
];

/// A set of devices of one type, by their numbers; `None` stands for every number. In their order, larger sets come
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Devices {
    numbers: usize,
    kind: u32,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Devices {
    const fn new(kind: u32, major: Option<u32>, minor: Option<u32>) -> Self {
        Self {
            numbers: major.is_some() as usize + minor.is_some() as usize,
            kind,
            major,
            minor,
        }
    }

    /// The devices that are in both sets.
    fn intersection(self, other: Self) -> Option<Self> {
        let both = |a: Option<u32>, b: Option<u32>| match (a, b) {
            (Some(a), Some(b)) if a != b => None,
            (a, b) => Some(a.or(b)),
        };
        let same_kind = self.kind == other.kind;
        let major = both(self.major, other.major).filter(|_| same_kind)?;
        Some(Self::new(self.kind, major, both(self.minor, other.minor)?))
    }
}

/// A rule about some devices.
#[derive(Clone, Copy, Debug)]
struct Rule {
    allow: bool,
    devices: Devices,
    access: u32,
}

impl Rule {
    const fn allow(kind: u32, major: Option<u32>, minor: Option<u32>, access: u32) -> Self {
        Self {
            allow: true,
            devices: Devices::new(kind, major, minor),
            access,
        }
    }

    /// A rule of config.json, unless it is about all devices.
    fn of(rule: &LinuxDeviceCgroup) -> Option<Self> {
        let number = |given: Option<i64>| given.and_then(|number| u32::try_from(number).ok());
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::B => BLOCK,
            LinuxDeviceType::C | LinuxDeviceType::U => CHARACTER,
            LinuxDeviceType::P | LinuxDeviceType::A => return None,
        };
        Some(Self {
            allow: rule.allow(),
            devices: Devices::new(kind, number(rule.major()), number(rule.minor())),
            access: accesses(rule.access().as_deref()),
        })
    }
}

/// The accesses of a rule; all of them if it names none. Unknown letters are ignored.
fn accesses(letters: Option<&str>) -> u32 {
    let letters = letters.filter(|letters| !letters.is_empty());
    letters.map_or(ALL, |letters| {
        letters.chars().fold(0, |all, letter| match letter {
            'm' => all | MKNOD,
            'r' => all | READ,
            'w' => all | WRITE,
            _ => all,
        })
    })
}

/// Has the kernel enforce a config.json's device rules in a cgroup.
///
/// # Errors
/// When the kernel refuses.
pub fn enforce(linux: &Linux, cgroup: BorrowedFd<'_>) -> Result<(), Failure> {
    let resources = linux.resources().as_ref();
    let given = resources.and_then(|resources| resources.devices().as_deref());
    let (mut rules, default_allow) = effective_rules(given.unwrap_or_default());
    rules.extend(ALWAYS);
    bpf::load(Kind::CgroupDevice, &program(&rules, default_allow))
        .and_then(|program| bpf::attach(&program, cgroup))
        .map_err(Failure::field("linux.resources.devices"))
}

/// The rules that are in effect, and whether everything else is allowed. As with runc, a rule about all devices
/// is about all accesses, and replaces the rules before it; without one, what no rule allows is denied.
fn effective_rules(given: &[LinuxDeviceCgroup]) -> (Vec<Rule>, bool) {
    let mut rules = Vec::new();
    let mut default_allow = false;
    for rule in given {
        match Rule::of(rule) {
            Some(rule) => rules.push(rule),
            None => {
                rules.clear();
                default_allow = rule.allow();
            }
        }
    }
    (rules, default_allow)
}

/// For each set of devices that rules are about, and each intersection of two, the accesses that are allowed. If a
/// device is in several of these sets, the last one applies.
fn resolve(rules: &[Rule], default_allow: bool) -> BTreeMap<Devices, u32> {
    let named: BTreeSet<_> = rules.iter().map(|rule| rule.devices).collect();
    let sets = named
        .iter()
        .flat_map(|a| named.iter().filter_map(|b| a.intersection(*b)));
    let may = |devices: Devices, access: u32| {
        let about = rules.iter().rev().find(|rule| {
            rule.access & access != 0 && rule.devices.intersection(devices) == Some(devices)
        });
        about.map_or(default_allow, |rule| rule.allow)
    };
    let allowed = |devices: Devices| {
        let accesses = [MKNOD, READ, WRITE].into_iter();
        let allowed = accesses.filter(|access| may(devices, *access));
        allowed.fold(0, |all, access| all | access)
    };
    sets.map(|devices| (devices, allowed(devices))).collect()
}

/// Registers of the program: the return value, the pointer to the context, and what is read from that.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
/// The accesses that are requested.
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Opcodes (Documentation/bpf/standardization/instruction-set.rst), all for 32 bits. `JNE32` takes a constant.
const LDXW: u8 = 0x61;
const AND32: u8 = 0x54;
const RSH32: u8 = 0x74;
const MOV32_IMM: u8 = 0xb4;
const MOV32_REG: u8 = 0xbc;
const JNE32: u8 = 0x56;
const EXIT: u8 = 0x95;

/// The program for these rules. It checks the smallest sets of devices first, and the first set that a device is in
/// decides. That keeps the paths through the program few, all of which the kernel's verifier follows.
fn program(rules: &[Rule], default_allow: bool) -> Vec<u64> {
    // struct bpf_cgroup_dev_ctx: type and accesses in one word, then the numbers.
    let mut program = vec![
        instruction(LDXW, TYPE, CONTEXT, 0, 0),
        instruction(AND32, TYPE, 0, 0, 0xffff),
        instruction(LDXW, ACCESS, CONTEXT, 0, 0),
        instruction(RSH32, ACCESS, 0, 0, 16),
        instruction(LDXW, MAJOR, CONTEXT, 4, 0),
        instruction(LDXW, MINOR, CONTEXT, 8, 0),
    ];
    for (devices, access) in resolve(rules, default_allow).into_iter().rev() {
        add_check(devices, access, &mut program);
    }
    program.extend(return_value(default_allow));
    program
}

fn return_value(yes: bool) -> [u64; 2] {
    [
        instruction(MOV32_IMM, RESULT, 0, 0, u32::from(yes)),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// Adds the check for a set of devices: whether only allowed accesses are requested.
fn add_check(devices: Devices, access: u32, program: &mut Vec<u64>) {
    let decide = match access {
        ALL => return_value(true).to_vec(),
        0 => return_value(false).to_vec(),
        _ => [
            instruction(MOV32_REG, RESULT, ACCESS, 0, 0),
            instruction(AND32, RESULT, 0, 0, !access),
            instruction(JNE32, RESULT, 0, 2, 0),
        ]
        .into_iter()
        .chain(return_value(true))
        .chain(return_value(false))
        .collect(),
    };
    let about = [
        (TYPE, Some(devices.kind)),
        (MAJOR, devices.major),
        (MINOR, devices.minor),
    ];
    let about = about.map(|(register, wanted)| wanted.map(|wanted| (register, wanted)));
    let count = about.iter().flatten().count();
    for (index, (register, wanted)) in about.into_iter().flatten().enumerate() {
        let rest = count - index - 1 + decide.len();
        // Less than ten for every rule.
        let rest = i16::try_from(rest).unwrap_or(i16::MAX);
        program.push(instruction(JNE32, register, 0, rest, wanted));
    }
    program.extend(decide);
}

#[cfg(test)]
mod tests {
    use super::super::DeviceNumber;
    use super::*;
    use serde_json::{Value, json};

    fn rule(allow: bool, text: &str, access: &str) -> Value {
        let [kind, numbers] = text.split(' ').collect::<Vec<_>>()[..] else {
            return json!({ "allow": allow, "access": access });
        };
        let (major, minor) = numbers.split_once(':').expect("two numbers");
        let number = |text: &str| text.parse::<i64>().unwrap_or(-1);
        json!({
            "allow": allow, "type": kind, "access": access,
            "major": number(major), "minor": number(minor),
        })
    }

    /// Whether the program for these rules alone allows all of `access` at once.
    fn may(rules: &[Value], block: bool, (major, minor): DeviceNumber, access: &str) -> bool {
        let rules: Vec<_> = (rules.iter().cloned())
            .map(|rule| serde_json::from_value(rule).expect("a rule"))
            .collect();
        let (rules, default_allow) = effective_rules(&rules);
        let kind = if block { BLOCK } else { CHARACTER };
        let asked = kind | accesses(Some(access)) << 16;
        let number = |number| u32::try_from(number).expect("a device's number");
        run(
            &program(&rules, default_allow),
            [asked, number(major), number(minor)],
        )
    }

    /// Runs a program as the kernel does.
    fn run(program: &[u64], asked: [u32; 3]) -> bool {
        let mut registers = [0_u32; 6];
        let mut next = 0;
        loop {
            let [code, names, offset, _, constant @ ..] = program[next].to_ne_bytes();
            let constant = u32::from_ne_bytes(constant);
            let (to, from) = (usize::from(names & 15), usize::from(names >> 4));
            let offset = usize::from(offset);
            next += 1;
            match code {
                LDXW => registers[to] = asked[offset / 4],
                AND32 => registers[to] &= constant,
                RSH32 => registers[to] >>= constant,
                MOV32_IMM => registers[to] = constant,
                MOV32_REG => registers[to] = registers[from],
                JNE32 if registers[to] != constant => next += offset,
                JNE32 => {}
                EXIT => return registers[usize::from(RESULT)] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    const FUSE: DeviceNumber = (10, 229);

    #[test]
    fn a_denied_access_is_denied_in_combination_too() {
        let rules = [rule(true, "c 10:229", "rwm"), rule(false, "c 10:229", "w")];
        assert!(may(&rules, false, FUSE, "r") && may(&rules, false, FUSE, "rm"));
        assert!(!may(&rules, false, FUSE, "w") && !may(&rules, false, FUSE, "rw"));
    }

    #[test]
    fn accesses_that_two_rules_allow_are_allowed_in_combination() {
        let rules = [rule(true, "c 10:*", "r"), rule(true, "c *:229", "w")];
        assert!(may(&rules, false, FUSE, "rw"));
        assert!(!may(&rules, false, FUSE, "m") && !may(&rules, true, FUSE, "r"));
        assert!(may(&rules, false, (10, 1), "r") && !may(&rules, false, (10, 1), "rw"));
    }

    #[test]
    fn a_rule_about_all_devices_replaces_those_before_it() {
        let all = |allow| json!({ "allow": allow });
        let before = [rule(true, "c 10:229", "rwm"), all(false)];
        assert!(!may(&before, false, FUSE, "r"));
        let hole = [
            all(true),
            rule(false, "c 10:*", ""),
            rule(true, "c 10:*", "ax"),
        ];
        assert!(!may(&hole, false, FUSE, "r") && may(&hole, false, (1, 1), "rw"));
        assert!(
            !may(&[], true, (8, 0), "r"),
            "denied by default, as by runc"
        );
    }

    #[test]
    fn default_devices_are_always_allowed() {
        let program = program(ALWAYS, false);
        let may = |kind, access, number: [u32; 2]| {
            let [major, minor] = number;
            run(&program, [kind | access << 16, major, minor])
        };
        assert!(may(CHARACTER, ALL, [1, 3]) && may(CHARACTER, READ | WRITE, [136, 7]));
        assert!(may(BLOCK, MKNOD, [8, 0]) && !may(BLOCK, MKNOD | READ, [8, 0]));
    }

    #[test]
    fn the_verifier_accepts_the_program() {
        // Only root may ask.
        if rustix::process::geteuid().is_root() {
            let partial = (0..100).map(|i| Rule {
                allow: i % 3 != 0,
                ..Rule::allow(BLOCK, Some(i % 9), (i % 4 != 0).then_some(i), READ)
            });
            let rules: Vec<_> = partial.chain(ALWAYS.iter().copied()).collect();
            bpf::load(Kind::CgroupDevice, &program(&rules, true)).expect("loaded");
        }
    }
}
