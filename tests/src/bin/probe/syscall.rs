//! System calls as such, to see what a seccomp filter makes of them.
#![allow(unsafe_code)] // bare system calls, which tests choose to be harmless

use std::arch::asm;
use std::io::Error;

/// Makes the system call of this number with one argument, and prints its result, or `errno N`.
pub fn native(number: libc::c_long, argument: u64) {
    // SAFETY: as harmless as the caller's choice.
    match unsafe { libc::syscall(number, argument, 0, 0, 0) } {
        -1 => println!(
            "errno {}",
            Error::last_os_error().raw_os_error().unwrap_or(0)
        ),
        result => println!("{result}"),
    }
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
    match result as i32 {
        error @ -4095..0 => println!("errno {}", -error),
        result => println!("{result}"),
    }
}

/// Sends a process signals without a pause between them.
pub fn signal(pid: i32, signals: &[i32]) {
    for signal in signals {
        // SAFETY: kill takes no pointers.
        unsafe { libc::kill(pid, *signal) };
    }
}
