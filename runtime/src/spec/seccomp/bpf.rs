//! The few instructions of classic BPF that are put around libseccomp's.

/// An instruction, as `struct sock_filter` lies in memory.
pub type Instruction = u64;

// <linux/bpf_common.h>
pub const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
pub const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
pub const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// `struct seccomp_data`: offsets of its members
pub const NUMBER: u32 = 0;
pub const ARCHITECTURE: u32 = 4;

// <linux/audit.h>
pub const X86_64: u32 = 0xc000_003e;
pub const X86: u32 = 0x4000_0003;

/// One instruction; the jumps are over so many of those that follow, if it holds and if not.
pub fn step(code: u16, holds: u8, not: u8, value: u32) -> Instruction {
    let [a, b] = code.to_ne_bytes();
    let [k, l, m, n] = value.to_ne_bytes();
    Instruction::from_ne_bytes([a, b, holds, not, k, l, m, n])
}

/// Skips so many instructions, of which the kernel takes 4096 in all, for a call that isn't x86's.
pub fn unless_x86_skip(count: usize) -> [Instruction; 3] {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    [
        step(LOAD, 0, 0, ARCHITECTURE),
        step(JUMP_EQUAL, 1, 0, X86),
        step(JUMP, 0, 0, count),
    ]
}
