//! Guests without an operating system: ELF images that hull boots in place of its kernel.
//!
//! They are entered as Linux is by its 64-bit boot protocol: in long mode, with the first GiB mapped
//! onto itself. What they do is hand-written, since all of it is wrong on purpose.
#![allow(unsafe_code)] // the images' bytes are between two symbols of the assembler

use std::arch::global_asm;

/// Where the images are linked to: 16 MiB, as Linux is.
const ADDRESS: u64 = 0x100_0000;

/// A guest that says `no agent here` on its serial port, and then does nothing for ever.
pub fn mute() -> Vec<u8> {
    // SAFETY: the symbols enclose the bytes that the assembler put there, in a constant section.
    elf(unsafe { between(&raw const guest_mute, &raw const guest_mute_end) })
}

/// A guest that ends at once, by a fault that it can't handle.
pub fn faulting() -> Vec<u8> {
    elf(&[0x0f, 0x0b]) // ud2, with no table of interrupts
}

/// A guest that writes to its serial port for ever.
pub fn shouting() -> Vec<u8> {
    // SAFETY: as in `mute`.
    elf(unsafe { between(&raw const guest_shouting, &raw const guest_shouting_end) })
}

/// A guest that writes to every page of the four GiB from 4 GiB on, again and again: where memory is that could be
/// plugged in, whether it was or not.
pub fn greedy() -> Vec<u8> {
    // SAFETY: as in `mute`.
    elf(unsafe { between(&raw const guest_greedy, &raw const guest_greedy_end) })
}

/// A guest that for ever writes garbage to the registers of every device, and garbage into queues
/// that it set up properly before. The seed chooses the garbage. It needs 128 MiB of memory.
pub fn scribbling(seed: u64) -> Vec<u8> {
    // SAFETY: as in `mute`.
    let code = unsafe { between(&raw const guest_scribbling, &raw const guest_scribbling_end) };
    // The code's last 8 bytes are the state of its random numbers, which must not be 0.
    let mut code = code.to_vec();
    let state = code.len() - 8;
    code[state..].copy_from_slice(&(seed | 1).to_le_bytes());
    elf(&code)
}

/// # Safety
/// `start` and `end` must enclose readable bytes that never change.
unsafe fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: by this function's own condition.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// An executable with one segment, entered at its first byte (ELF-64 object file format, 1.5).
fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 64 + 56;
    const READ_WRITE_EXECUTE: u32 = 7;
    let size = code.len() as u64;
    let mut image = Vec::with_capacity(HEADERS + code.len());
    image.extend(b"\x7fELF\x02\x01\x01"); // 64 bits, little-endian, version 1
    image.resize(16, 0);
    for half in [2u16, 62] {
        image.extend(half.to_le_bytes()); // executable, x86-64
    }
    image.extend(1u32.to_le_bytes()); // version
    for word in [ADDRESS, 64, 0] {
        image.extend(word.to_le_bytes()); // entry, program headers, no section headers
    }
    image.extend(0u32.to_le_bytes()); // flags
    for half in [64u16, 56, 1, 64, 0, 0] {
        image.extend(half.to_le_bytes()); // header sizes and counts
    }
    for half in [1u32, READ_WRITE_EXECUTE] {
        image.extend(half.to_le_bytes()); // PT_LOAD
    }
    for word in [HEADERS as u64, ADDRESS, ADDRESS, size, size, 0x1000] {
        image.extend(word.to_le_bytes());
    }
    image.extend(code);
    image
}

unsafe extern "C" {
    static guest_mute: u8;
    static guest_mute_end: u8;
    static guest_shouting: u8;
    static guest_shouting_end: u8;
    static guest_greedy: u8;
    static guest_greedy_end: u8;
    static guest_scribbling: u8;
    static guest_scribbling_end: u8;
}

global_asm!(
    ".pushsection .rodata.guest, \"a\"",
    "guest_mute:",
    "    cli",
    "    lea rsi, [rip + 3f]",
    "    mov dx, 0x3f8",
    "1:  lodsb",
    "    test al, al",
    "    jz 2f",
    "    out dx, al",
    "    jmp 1b",
    "2:  hlt",
    "    jmp 2b",
    "3:  .asciz \"no agent here\\n\"",
    "guest_mute_end:",
    "",
    // Four page directories at 2 MiB, into the table at 0x4000, whose first entry alone is set.
    "guest_greedy:",
    "    cli",
    "    xor r8d, r8d",
    "1:  mov rdi, r8",
    "    shl rdi, 12",
    "    add rdi, 0x200000",
    "    lea rax, [rdi + 3]",
    "    mov [r8 * 8 + 0x4020], rax",
    "    lea rax, [r8 + 4]",
    "    shl rax, 30",
    "    or rax, 0x83",
    "    mov ecx, 512",
    "2:  mov [rdi], rax",
    "    add rdi, 8",
    "    add rax, 0x200000",
    "    dec ecx",
    "    jnz 2b",
    "    inc r8",
    "    cmp r8, 4",
    "    jb 1b",
    "3:  mov edi, 1",
    "    shl rdi, 32",
    "    mov ecx, 0x100000",
    "4:  mov byte ptr [rdi], 1",
    "    add rdi, 0x1000",
    "    dec ecx",
    "    jnz 4b",
    "    jmp 3b",
    "guest_greedy_end:",
    "",
    "guest_shouting:",
    "    cli",
    "    mov dx, 0x3f8",
    "1:  mov ecx, 60",
    "    mov al, 'x'",
    "2:  out dx, al",
    "    dec ecx",
    "    jnz 2b",
    "    mov al, 10",
    "    out dx, al",
    "    jmp 1b",
    "guest_shouting_end:",
    ".popsection",
);

// Registers by offset: virtio 1.3, 4.2.2. Throughout, r12 is the device's address, r14d a queue's
// number, rbx that queue's memory; `random` returns in rax and changes nothing else but r15.
global_asm!(
    ".pushsection .rodata.guest, \"a\"",
    "guest_scribbling:",
    "    cli",
    "    mov rsp, 0x1f00000",
    "    mov r15, [rip + 90f]",
    // Map the fourth GiB, where the devices are, onto itself, uncached, by pages of 2 MiB.
    "    mov edi, 0x8000",
    "    mov eax, 0xc0000093",
    "    mov ecx, 512",
    "1:  mov [rdi], rax",
    "    add rdi, 8",
    "    add rax, 0x200000",
    "    dec ecx",
    "    jnz 1b",
    "    mov rbx, cr3",
    "    and rbx, -4096",
    "    mov rbx, [rbx]",
    "    and rbx, -4096",
    "    mov qword ptr [rbx + 24], 0x8003",
    "    mov rax, cr3",
    "    mov cr3, rax",
    // For ever: choose one of 8 devices; three times of four set it up first; then 64 times garbage.
    "2:  call 80f",
    "    mov r12d, eax",
    "    and r12d, 7",
    "    shl r12d, 12",
    "    add r12d, 0xd0000000",
    "    test eax, 0x30000",
    "    jz 3f",
    "    call 10f",
    "3:  mov r13d, 64",
    "4:  call 50f",
    "    dec r13d",
    "    jnz 4b",
    "    jmp 2b",
    // Set up the device: reset, acknowledge, accept all features, three queues, go.
    "10: mov dword ptr [r12 + 0x70], 0",
    "    mov dword ptr [r12 + 0x70], 1",
    "    mov dword ptr [r12 + 0x70], 3",
    "    xor ecx, ecx",
    "11: mov [r12 + 0x14], ecx",
    "    mov eax, [r12 + 0x10]",
    "    mov [r12 + 0x24], ecx",
    "    mov [r12 + 0x20], eax",
    "    inc ecx",
    "    cmp ecx, 2",
    "    jb 11b",
    "    mov dword ptr [r12 + 0x70], 11",
    "    xor r14d, r14d",
    "12: call 20f",
    "    inc r14d",
    "    cmp r14d, 3",
    "    jb 12b",
    "    mov dword ptr [r12 + 0x70], 15",
    "    mov dword ptr [r12 + 0x50], 0",
    "    mov dword ptr [r12 + 0x50], 1",
    "    mov dword ptr [r12 + 0x50], 2",
    "    ret",
    // Set up a queue over garbage: descriptors at 64 MiB + 64 KiB x its number, then the rings.
    "20: mov ebx, r14d",
    "    shl ebx, 16",
    "    add ebx, 0x4000000",
    "    mov [r12 + 0x30], r14d",
    "    mov eax, [r12 + 0x34]",
    "    cmp eax, 256",
    "    jbe 21f",
    "    mov eax, 256",
    "21: mov [r12 + 0x38], eax",
    "    mov [r12 + 0x80], ebx",
    "    mov dword ptr [r12 + 0x84], 0",
    "    lea eax, [ebx + 0x4000]",
    "    mov [r12 + 0x90], eax",
    "    mov dword ptr [r12 + 0x94], 0",
    "    lea eax, [ebx + 0x8000]",
    "    mov [r12 + 0xa0], eax",
    "    mov dword ptr [r12 + 0xa4], 0",
    // descriptor: address in 64..128 MiB or (1 of 16) anywhere, length below 64 KiB or (1 of 16)
    // any, three flags, the next below 256
    "    mov ecx, 256",
    "22: call 80f",
    "    test al, 15",
    "    jz 23f",
    "    and eax, 0x3ffffff",
    "    add eax, 0x4000000",
    "23: mov [rbx], rax",
    "    call 80f",
    "    test al, 15",
    "    jz 24f",
    "    and eax, 0xffff",
    "24: mov [rbx + 8], eax",
    "    call 80f",
    "    and eax, 0xff0007",
    "    mov [rbx + 12], eax",
    "    add ebx, 16",
    "    dec ecx",
    "    jnz 22b",
    // available ring, 0x3000 behind the descriptors' end: any index, entries below 256
    "    add ebx, 0x3000",
    "    call 80f",
    "    and eax, 0xffff0001",
    "    mov [rbx], eax",
    "    mov ecx, 256",
    "25: call 80f",
    "    and eax, 0xff",
    "    mov [rbx + rcx * 2 + 2], ax",
    "    dec ecx",
    "    jnz 25b",
    "    mov dword ptr [r12 + 0x44], 1",
    // and small numbers into 64 KiB of what descriptors may point to
    "    mov edi, 0x5000000",
    "    mov ecx, 0x4000",
    "26: call 80f",
    "    and eax, 0x3f",
    "    mov [rdi], eax",
    "    add edi, 4",
    "    dec ecx",
    "    jnz 26b",
    "    ret",
    // One access of any kind: eight kinds, any register, any value or (one of two) a small one.
    "50: call 80f",
    "    mov edx, eax",
    "    shr edx, 8",
    "    and edx, 0x1ff",
    "    mov ecx, eax",
    "    and ecx, 7",
    "    bt eax, 3",
    "    jc 51f",
    "    and edx, 0xfc",
    "51: add rdx, r12",
    "    call 80f",
    "    bt rax, 40",
    "    jc 52f",
    "    and eax, 0xff",
    "52: cmp ecx, 1",
    "    jb 61f",
    "    je 62f",
    "    cmp ecx, 3",
    "    jb 63f",
    "    je 64f",
    "    cmp ecx, 5",
    "    jb 65f",
    "    je 66f",
    "    mov [rdx], eax",
    "    ret",
    "61: mov [rdx], al",
    "    ret",
    "62: mov [rdx], ax",
    "    ret",
    "63: mov [rdx], rax",
    "    ret",
    "64: mov al, [rdx]",
    "    ret",
    "65: mov eax, [rdx]",
    "    ret",
    "66: mov rax, [rdx]",
    "    ret",
    // xorshift64
    "80: mov rax, r15",
    "    shl rax, 13",
    "    xor r15, rax",
    "    mov rax, r15",
    "    shr rax, 7",
    "    xor r15, rax",
    "    mov rax, r15",
    "    shl rax, 17",
    "    xor r15, rax",
    "    mov rax, r15",
    "    ret",
    "90: .quad 1",
    "guest_scribbling_end:",
    ".popsection",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_their_headers_and_code() {
        for image in [mute(), shouting(), scribbling(7)] {
            assert_eq!(&image[..4], b"\x7fELF");
            assert!(image.len() > 64 + 56 + 8);
            assert_eq!(image[64 + 56], 0xfa, "the first instruction is cli");
        }
        assert!(scribbling(7).ends_with(&7u64.to_le_bytes()));
    }
}
