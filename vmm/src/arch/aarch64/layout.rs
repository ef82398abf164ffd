//! The guest's physical address space.
//!
//! ```text
//! 0x4000_0000  1 GiB: virtio-mmio devices, 4 KiB each
//! 0x8000_0000  2 GiB: memory; it will start with the kernel, the initramfs and the device tree
//! ```

/// The start of memory. The kernel must be loaded relative to a multiple of 2 MiB.
pub const MEMORY_START: u64 = 2 << 30;

/// Room for the kernel's command line, with the NUL that ends it: `COMMAND_LINE_SIZE` of Linux on arm64.
pub const CMDLINE_SIZE: usize = 2048;

/// The size of Linux's memory sections: `SECTION_SIZE_BITS` of arch/arm64/include/asm/sparsemem.h,
/// with pages of 4 KiB.
pub const SECTION: u64 = 128 << 20;

/// The address of the first device's registers.
pub const DEVICES_START: u64 = 1 << 30;

/// There are no I/O ports.
pub const KICK_PORTS: Option<u16> = None;

/// The first interrupt line given to a device, counted from the GIC's first SPI as irqfds do.
pub const GSI_FIRST: u32 = 0;
/// The last interrupt line given to a device, which limits the number of devices.
pub const GSI_LAST: u32 = 31;

/// The most vCPUs, as on x86-64.
pub const MAX_VCPUS: u8 = 64;
