//! System calls as such, to see what a seccomp filter makes of them.
#![allow(unsafe_code)] // bare system calls, which tests choose to be harmless

use std::arch::asm;

/// Makes the system call of this number with one argument, and prints its result, or `errno N`.
pub fn native(number: u64, argument: u64) {
    let result: i64;
    // SAFETY: as harmless as the caller's choice; the registers are those of the x86-64 ABI.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") argument,
            in("rsi") 0_u64,
            in("rdx") 0_u64,
            in("r10") 0_u64,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    report(result);
}

/// The same by the 32-bit entry of the kernel, with its numbers.
pub fn of_32_bits(number: u64, argument: u64) {
    let result: i64;
    // SAFETY: as above; rbx is the compiler's own and is put back.
    unsafe {
        asm!(
            "xchg rbx, {argument}",
            "int 0x80",
            "xchg rbx, {argument}",
            argument = inout(reg) argument => _,
            inlateout("rax") number => result,
            in("rcx") 0_u64,
            in("rdx") 0_u64,
            lateout("r8") _,
            lateout("r9") _,
            lateout("r10") _,
            lateout("r11") _,
        );
    }
    report(i64::from(result as i32));
}

fn report(result: i64) {
    match result {
        -4095..0 => println!("errno {}", -result),
        _ => println!("{result}"),
    }
}
