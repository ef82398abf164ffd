//! Machines that really run, with guests of a few instructions written by hand. They need a /dev/kvm,
//! for which a paravirtual one without VMX or SVM is enough; where there is none, they say so and pass.

use std::io::{self, Read, Seek};
use std::num::NonZeroU8;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hull_vmm::jail::PrivateFdTable;
use hull_vmm::virtio::rng::Rng;
use hull_vmm::{
    Console, ConsoleLimits, Machine, MachineConfig, MachineError, RunningMachine, StopReason,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const LOAD_ADDRESS: u64 = 0x10_0000;

/// An ELF file with one segment of code.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 120];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0]); // executable, x86-64
    put(24, &LOAD_ADDRESS.to_le_bytes()); // entry
    put(32, &64u64.to_le_bytes()); // program headers
    put(54, &[56, 0, 1, 0]); // their size and number
    put(64, &1u32.to_le_bytes()); // PT_LOAD
    put(72, &120u64.to_le_bytes()); // offset
    put(88, &LOAD_ADDRESS.to_le_bytes()); // physical address
    put(96, &(code.len() as u64).to_le_bytes()); // in the file
    put(104, &(code.len() as u64).to_le_bytes()); // in memory
    [&file, code].concat()
}

/// Instructions that send a byte to a port.
fn out(port: u16, byte: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, byte, 0xee] // mov dx, port; mov al, byte; out dx, al
}

fn print(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out(0x3f8, byte)).collect()
}

fn reset() -> Vec<u8> {
    out(0x64, 0xfe)
}

const LOOP_FOREVER: [u8; 2] = [0xeb, 0xfe]; // jmp to itself

/// A machine, or `None` with the reason printed where this host can't have one.
fn machine(code: &[u8], vcpus: u8) -> Option<Machine> {
    let kernel = elf(code);
    let config = MachineConfig {
        vcpus: NonZeroU8::new(vcpus).expect("at least one"),
        memory_mib: 32,
        hotplug_mib: 0,
        kernel: kernel[..].into(),
        initramfs: b""[..].into(),
        cmdline: "",
    };
    match Machine::new(&config) {
        Err(MachineError::Kvm(error)) => {
            eprintln!("skipped: {error}");
            None
        }
        machine => Some(machine.expect("a machine")),
    }
}

struct Log(std::fs::File);

impl Log {
    fn new() -> Self {
        Self(tempfile::tempfile().expect("a temporary file"))
    }

    fn console(&self) -> Console {
        let file = self.0.try_clone().expect("another descriptor");
        Console::new(file.into(), ConsoleLimits::default())
    }

    fn text(mut self) -> String {
        let mut text = String::new();
        self.0.rewind().expect("a file");
        self.0.read_to_string(&mut text).expect("ASCII");
        text
    }
}

fn await_stop(machine: &RunningMachine) {
    let mut fds = [PollFd::from_borrowed_fd(machine.stopped(), PollFlags::IN)];
    let timeout = Timespec::try_from(Duration::from_secs(20)).expect("in range");
    let ready = poll(&mut fds, Some(&timeout)).expect("poll");
    assert_eq!(ready, 1, "waited 20 s for the machine to stop by itself");
}

/// Runs code to its end, and returns how that was and what it printed.
fn run(code: &[u8]) -> Option<(StopReason, String)> {
    let log = Log::new();
    let running = machine(code, 1)?
        .start_vcpu_threads(log.console(), |_| Ok(PrivateFdTable::default()))
        .expect("started")
        .start_guest();
    await_stop(&running);
    let reason = running.stop().expect("ended");
    Some((reason, log.text()))
}

#[test]
fn a_guest_prints_and_resets() {
    let Some((reason, text)) = run(&[print("hello\n"), reset()].concat()) else {
        return;
    };
    assert_eq!(reason, StopReason::Reset);
    assert!(reason.is_orderly());
    assert_eq!(text, "hello\n");
}

#[test]
fn what_was_printed_before_a_crash_is_kept() {
    let undefined_instruction = [0x0f, 0x0b]; // without an IDT: a triple fault
    let Some((reason, text)) = run(&[&print("dying")[..], &undefined_instruction].concat()) else {
        return;
    };
    assert_eq!(reason, StopReason::Shutdown);
    assert_eq!(text, "dying\n");
}

#[test]
fn the_guest_finds_its_devices() {
    let mut code = Vec::new();
    // Map the devices' registers to 0x3fe0_0000, by the last entry of the page directory at 0x5000.
    code.extend([0x48, 0xb8]); // mov rax, ...
    code.extend((0xd000_0000u64 | 0x93).to_le_bytes()); // 2 MiB, uncached, writable, present
    code.extend([0x48, 0xa3]); // mov [...], rax
    code.extend(0x5ff8u64.to_le_bytes());
    code.extend([0xa1]); // mov eax, [...]
    code.extend(0x3fe0_0000u64.to_le_bytes());
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    for _ in 0..4 {
        code.extend([0xee, 0xc1, 0xe8, 8]); // out dx, al; shr eax, 8
    }
    code.extend(reset());

    let Some(mut machine) = machine(&code, 1) else {
        return;
    };
    let rng = Arc::new(Mutex::new(Rng::new().expect("a device")));
    machine.attach(rng).expect("attached");
    let log = Log::new();
    let held = machine
        .start_vcpu_threads(log.console(), |_| Ok(PrivateFdTable::default()))
        .expect("started");
    let running = held.start_guest();
    await_stop(&running);
    assert_eq!(running.stop().expect("ended"), StopReason::Reset);
    assert_eq!(log.text(), "virt\n");
}

#[test]
fn a_guest_that_never_ends_is_stopped() {
    for vcpus in [1, 2] {
        let Some(machine) = machine(&LOOP_FOREVER, vcpus) else {
            return;
        };
        let running = machine
            .start_vcpu_threads(Log::new().console(), |_| Ok(PrivateFdTable::default()))
            .expect("started")
            .start_guest();
        assert_eq!(running.stop_reason(), None);
        assert_eq!(running.stop().expect("ended"), StopReason::Stopped);
    }
}

#[test]
fn no_guest_code_runs_unconfined() {
    let Some(machine) = machine(&print("I ran\n"), 2) else {
        return;
    };
    let log = Log::new();
    let calls = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&calls);
    let result = machine.start_vcpu_threads(log.console(), move |_| {
        let mut calls = counter.lock().expect("no panic");
        *calls += 1;
        if *calls == 2 {
            return Err(io::Error::other("no filter"));
        }
        Ok(PrivateFdTable::default())
    });
    assert!(matches!(result, Err(MachineError::Confine(_))));
    assert_eq!(
        *calls.lock().expect("no panic"),
        2,
        "each vCPU was to be confined"
    );
    assert_eq!(log.text(), "");
}

#[test]
fn there_are_no_performance_counters_to_read() {
    // xor ecx, ecx; rdpmc: counter 0, which AMD's processors have without CPUID telling of it.
    let mut code = vec![0x31, 0xc9, 0x0f, 0x33];
    code.extend(print("counted\n"));
    code.extend(reset());
    let Some((reason, text)) = run(&code) else {
        return;
    };
    assert_eq!((reason, &*text), (StopReason::Shutdown, ""), "a fault");
}

#[test]
fn no_guest_code_runs_before_the_guest_is_started() {
    let Some(machine) = machine(&print("I ran\n"), 2) else {
        return;
    };
    let log = Log::new();
    let held = machine
        .start_vcpu_threads(log.console(), |_| Ok(PrivateFdTable::default()))
        .expect("started");
    drop(held);
    assert_eq!(log.text(), "", "the threads have ended without running it");
}

#[test]
fn bad_configurations_are_refused_by_name() {
    let code = elf(&LOOP_FOREVER);
    let config = MachineConfig {
        vcpus: NonZeroU8::MIN,
        memory_mib: 32,
        hotplug_mib: 0,
        kernel: code[..].into(),
        initramfs: b""[..].into(),
        cmdline: "",
    };
    if let Err(MachineError::Kvm(error)) = Machine::new(&config) {
        return eprintln!("skipped: {error}");
    }
    let text = |config: MachineConfig<'_>| {
        let machine = Machine::new(&config);
        let started = machine.and_then(|machine| {
            machine.start_vcpu_threads(Log::new().console(), |_| Ok(PrivateFdTable::default()))
        });
        started.expect_err("refused").to_string()
    };
    let vcpus = NonZeroU8::new(200).expect("not zero");
    assert!(text(MachineConfig { vcpus, ..config }).contains("200 vCPUs"));
    let memory_mib = 1;
    assert!(
        text(MachineConfig {
            memory_mib,
            ..config
        })
        .contains("1 MiB")
    );
    let kernel = b"#!/bin/sh"[..].into();
    assert!(text(MachineConfig { kernel, ..config }).contains("vmlinux"));
    let zeros = vec![0; 40 << 20];
    let initramfs = zeros[..].into();
    assert!(
        text(MachineConfig {
            initramfs,
            ..config
        })
        .contains("more memory")
    );
    let cmdline = &"word ".repeat(1000);
    assert!(text(MachineConfig { cmdline, ..config }).contains("command line"));
}
