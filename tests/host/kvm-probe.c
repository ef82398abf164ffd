/*
 * Runs three instructions in a virtual machine: what an opened /dev/kvm does not
 * prove. Prints "kvm works" and exits 0, or says which call failed and exits 1.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static int must(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

int main(void)
{
	/* mov al, 42; out 0x10, al; hlt */
	static const unsigned char code[] = { 0xb0, 42, 0xe6, 0x10, 0xf4 };
	int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int version = must(ioctl(kvm, KVM_GET_API_VERSION, 0), "KVM_GET_API_VERSION");
	if (version != KVM_API_VERSION) {
		fprintf(stderr, "KVM_GET_API_VERSION: %d\n", version);
		return 1;
	}
	int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	unsigned char *memory = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(memory == MAP_FAILED ? -1 : 0, "mmap");
	memcpy(memory, code, sizeof code);
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = 0x1000, .memory_size = 0x1000, .userspace_addr = (unsigned long)memory,
	};
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	int vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	must(run == MAP_FAILED ? -1 : 0, "mmap of the vCPU");

	struct kvm_sregs sregs;
	must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");

	must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
	unsigned char *data = (unsigned char *)run + run->io.data_offset;
	if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0x10 || *data != 42) {
		fprintf(stderr, "KVM_RUN: exit reason %u instead of the guest's output\n", run->exit_reason);
		return 1;
	}
	must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
	if (run->exit_reason != KVM_EXIT_HLT) {
		fprintf(stderr, "KVM_RUN: exit reason %u instead of a halt\n", run->exit_reason);
		return 1;
	}
	puts("kvm works");
	return 0;
}
