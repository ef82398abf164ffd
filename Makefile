# The front door. `make demo` shows a container in a microVM, `make test` passes the tests; both install
# what is missing (Debian 12, as root) and build everything first. `make help` lists the rest.

TRIPLE    := x86_64-unknown-linux-gnu
RELEASE   := target/$(TRIPLE)/release
KERNEL    := target/guest-kernel/vmlinux
AGENT     := target/$(TRIPLE)/agent/hull-agent
INITRAMFS := target/initramfs/initramfs.cpio
HULL      := $(RELEASE)/hull
STEP      := .ci/step
PREFIX    ?= /usr/local

# What build.rs of the runtime embeds.
export HULL_KERNEL    = $(CURDIR)/$(KERNEL)
export HULL_INITRAMFS = $(CURDIR)/$(INITRAMFS)

.DEFAULT_GOAL := help
.PHONY: help build kernel agent initramfs hull packages rootfs demo test bench conformance engines fuzz lint install dist clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build rootfs ## Run a Debian userland in a microVM, from an ordinary bundle
	@.ci/packages host
	@$(STEP) "run the demo" tests/demo/run

test: build rootfs lint ## Pass the lints, the unit and end-to-end tests, and a sample of others' suites
	@.ci/packages host conformance engines
	@tests/run

bench: build rootfs ## Measure hull beside runc, crun and gVisor on the counting clock; FRESH=1
	@.ci/packages host bench
	@tests/bench/run $(if $(FRESH),--fresh)

conformance: build rootfs ## Pass others' suites, and 500 bundles as runc does; ONLY=suite[:regex], FRESH=1
	@.ci/packages host conformance
	@status=0; \
	[ '$(ONLY)' = differential ] || \
		tests/conformance/run $(if $(ONLY),--only '$(ONLY)') $(if $(FRESH),--fresh) || status=1; \
	[ '$(or $(ONLY),differential)' != differential ] || tests/differential/run $(if $(FRESH),--fresh) || status=1; \
	exit $$status

engines: build rootfs ## Drive podman, docker, buildah and containerd with hull and a control; ONLY=engine[:regex], FRESH=1
	@.ci/packages host engines
	@tests/conformance/run --collection engines $(if $(ONLY),--only '$(ONLY)') $(if $(FRESH),--fresh)

fuzz: ## Fuzz whatever reads the guest's bytes, SECONDS (600) each target
	@.ci/packages build fuzz
	@for target in $$(vmm/fuzz/run --list); do \
		$(STEP) "fuzz $$target" vmm/fuzz/run $$target $(or $(SECONDS),600) || exit 1; \
	done

lint: ## Check formatting, lints, documentation, scripts, dependencies and layers
	@.ci/packages build lint
	@.ci/lint

build: packages kernel initramfs hull ## Build target/…/release/hull with its guest inside

packages:
	@.ci/packages build kernel
	@.ci/crates restore

kernel: packages
	@$(STEP) "build the guest kernel" guest-kernel/build --output $(KERNEL)

agent: packages
	@$(STEP) "build the agent" cargo build --profile agent --quiet -p hull-agent

initramfs: agent
	@$(STEP) "build the initramfs" cargo run --release --quiet -p hull-rootfs-builder -- \
		initramfs --agent $(AGENT) --output $(INITRAMFS)

hull: kernel initramfs
	@$(STEP) "build hull" cargo build --release --quiet -p hull
	@$(HULL) --version >/dev/null

rootfs:
	@.ci/packages rootfs
	@$(STEP) "make the root file systems" tests/rootfs/build

install: build ## Install hull to PREFIX/bin (/usr/local)
	install -D -m 755 $(HULL) $(DESTDIR)$(PREFIX)/bin/hull

dist: build ## Pack a release: target/dist gets a tarball and a Debian package
	@$(STEP) "pack a release" runtime/dist/pack $(HULL)

clean: ## Remove everything built in this clone; caches stay
	rm -rf target
