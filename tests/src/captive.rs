//! A thread of another process, made to do system calls: what somebody who has that thread in hand can do,
//! under the filter, the capabilities and with the descriptors that it has. It takes root and ptrace(2), from
//! outside of the process.

use std::ffi::CStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use libc::user_regs_struct;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// What it returned.
    Done(i64),
    /// The kernel's error number.
    Failed(i32),
    /// The thread is no more; the signal that ended its process.
    Killed(Signal),
}

/// A thread that waits to be told what to call. When it is dropped, the thread goes on with what it did.
#[derive(Debug)]
pub struct Captive {
    thread: Pid,
    /// How it was found; none when it is no more.
    found: Option<user_regs_struct>,
    /// Its process's memory.
    memory: File,
}

/// How far below the stack pointer a text is put: beyond what a function keeps there without moving it.
const BELOW_STACK: u64 = 4096;

/// `syscall`, the instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

impl Captive {
    /// Takes a thread captive, and lets it run to the end of a system call.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn take(tid: i32) -> Self {
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{tid}/mem"))
            .expect("its memory");
        let thread = Pid::from_raw(tid);
        ptrace::seize(thread, ptrace::Options::empty()).expect("a thread to trace");
        ptrace::interrupt(thread).expect("a thread to stop");
        assert_eq!(end_of(thread), None, "the thread has ended");
        let mut captive = Self {
            thread,
            found: None,
            memory,
        };
        while !captive.is_behind_a_call() {
            ptrace::syscall(thread, None).expect("a thread to go on");
            assert_eq!(end_of(thread), None, "the thread has ended");
        }
        captive.found = Some(captive.registers());
        captive
    }

    fn is_behind_a_call(&self) -> bool {
        let mut code = [0; 2];
        let before = self.registers().rip.saturating_sub(2);
        self.memory.read_exact_at(&mut code, before).is_ok() && code == SYSCALL
    }

    fn registers(&self) -> user_regs_struct {
        ptrace::getregs(self.thread).expect("its registers")
    }

    /// Puts a text into its memory, and returns where. The next one takes its place.
    pub fn text(&self, text: &CStr) -> u64 {
        let to = self.found.expect("a living thread").rsp - BELOW_STACK;
        let written = self.memory.write_all_at(text.to_bytes_with_nul(), to);
        written.expect("its stack");
        to
    }

    /// What it has open by this number.
    pub fn has_open(&self, number: i64) -> PathBuf {
        let link = format!("/proc/{0}/task/{0}/fd/{number}", self.thread);
        fs::read_link(link).expect("an open file")
    }

    /// Has it do a system call.
    pub fn call(&mut self, number: i64, arguments: &[u64]) -> Called {
        let Some(found) = self.found else {
            panic!("the thread is no more");
        };
        let argument = |n: usize| arguments.get(n).copied().unwrap_or(0);
        let registers = user_regs_struct {
            rip: found.rip - 2,
            rax: number.cast_unsigned(),
            // What it was in is not begun again now.
            orig_rax: u64::MAX,
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            ..found
        };
        ptrace::setregs(self.thread, registers).expect("its registers");
        ptrace::step(self.thread, None).expect("a thread to go on");
        if let Some(signal) = end_of(self.thread) {
            self.found = None;
            return Called::Killed(signal);
        }
        let returned = self.registers().rax.cast_signed();
        match returned {
            -4095..0 => Called::Failed(i32::try_from(-returned).expect("an error number")),
            _ => Called::Done(returned),
        }
    }
}

impl Drop for Captive {
    fn drop(&mut self) {
        if let Some(found) = self.found {
            // They may fail when the process has been killed meanwhile.
            let _ = ptrace::setregs(self.thread, found);
            let _ = ptrace::detach(self.thread, None);
        }
    }
}

/// Waits until the thread stops, or ends: by which signal.
fn end_of(thread: Pid) -> Option<Signal> {
    match waitpid(thread, Some(WaitPidFlag::__WALL)).expect("a thread to wait for") {
        WaitStatus::Signaled(_, signal, _) => Some(signal),
        WaitStatus::Exited(_, status) => panic!("the thread has exited with {status}"),
        _ => None,
    }
}
