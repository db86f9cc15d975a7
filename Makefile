# The two commands of the README are `make example` and `make test`; `make help` lists the rest.

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
OBX         := .build/obx

# The agents of virtual machines are embedded in obx: for these systems, with this compiler, from these settings, so that
# the same sources give the same bytes.
AGENTS := linux-amd64 linux-arm64 linux-riscv64 openbsd-amd64 windows-amd64
AGENT_DIR := executor/qemu/agents
AGENT_FILES := $(AGENTS:%=$(AGENT_DIR)/%.gz)
AGENT_SOURCES := go.mod $(shell find cas executor layers -regex '.*\.\(go\|s\|h\)' ! -name '*_test.go')
AGENT_BUILD := env GOTOOLCHAIN=go1.26.8 CGO_ENABLED=0 GOFLAGS= GOAMD64=v1 GOARM64=v8.0 GORISCV64=rva20u64 GOEXPERIMENT= \
	go build -trimpath -buildvcs=false -ldflags '-s -w -buildid='

# build-agent SYSTEM-ARCHITECTURE,FILE
build-agent = GOOS=$(firstword $(subst -, ,$(1))) GOARCH=$(lastword $(subst -, ,$(1))) $(AGENT_BUILD) -o $(2) ./executor/qemu/agent

export CGO_ENABLED ?= 0

TIME ?= 10m

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

build: $(OBX) $(OBX)-containerd ## build .build/obx, and .build/obx-containerd beside it

$(OBX): $(AGENT_FILES) FORCE
	go build -trimpath -o $@ ./cmd/obx

$(OBX)-containerd: $(AGENT_FILES) FORCE
	go build -trimpath -tags containerd -o $@ ./cmd/obx

# install NEEDED: installs Debian packages; TOOL:PACKAGE and FILE:PACKAGE pairs name what to look for.
define install
	@missing=; PATH=$$PATH:/usr/sbin:/sbin; \
	for need in $(1); do command -v $${need%%:*} >/dev/null || test -e $${need%%:*} || missing="$$missing $${need##*:}"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
		$$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; \
	fi
endef

TEST_CACHE := $${XDG_CACHE_HOME:-$$HOME/.cache}/obx-test

# foreign ARCH,SUITE,PACKAGE: unpacks the kernel that a package depends on, of an architecture that this machine's lists
# do not have. Debian 12 has no riscv64: its kernel is 13's.
define foreign
	@test -n "$$(ls "$(TEST_CACHE)/kernel-$(1)"/boot/vmlinu* 2>/dev/null)" || { dir="$(TEST_CACHE)/lists-$(1)" && mkdir -p "$$dir/lists/partial" "$$dir/archives/partial" && \
	echo "deb $$(apt-get indextargets --format '$$(REPO_URI)' | head -1) $(2) main" >"$$dir/sources.list" && \
	apt="-q -o Dir::Etc::SourceList=$$dir/sources.list -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$$dir/lists -o Dir::Cache=$$dir \
		-o APT::Architecture=$(1) -o APT::Architectures=$(1) -o APT::Sandbox::User=root" && \
	apt-get $$apt update && name=$$(apt-cache $$apt depends --important $(3) | sed -n 's/^ *Depends: \(linux-image-[^:]*\).*/\1/p' | head -1) && \
	cd "$$dir" && apt-get $$apt download $$name && dpkg-deb -x linux-image*.deb root && if [ -d root/usr/lib/modules ]; then mkdir -p root/lib && mv root/usr/lib/modules root/lib/; fi && \
	rm -rf root/usr "$(TEST_CACHE)/kernel-$(1)" && mv root "$(TEST_CACHE)/kernel-$(1)" && rm -rf "$$dir"; }
endef

# test-disks makes the tests of disk images run, with OBX_TEST_MACHINES=all; benchmarks boot the disk too.
test-disks: test-deps ## make the disk with Debian that tests of disk images boot
	$(call install,syslinux:syslinux /usr/lib/syslinux/mbr/mbr.bin:syslinux-common mkfs.vfat:dosfstools ssh-keygen:openssh-client)
	@test -e "$(TEST_CACHE)/debian.qcow2" || conformance/testdata/debian-disk "$(TEST_CACHE)"

# kernel PACKAGE,ARCH: unpacks the kernel that a Debian package depends on, without installing it.
define kernel
{ tmp=$$(mktemp -d) && cd $$tmp && \
	name=$$(apt-cache depends --important $(1):$(2) | sed -n 's/^ *Depends: \(linux-image-[^:]*\).*/\1/p' | head -1) && \
	apt-get -q -o APT::Sandbox::User=root download $$name:$(2) && dpkg-deb -x *.deb root && rm -rf root/usr && \
	mkdir -p "$(TEST_CACHE)" && rm -rf "$(TEST_CACHE)/kernel-$(2)" && mv root "$(TEST_CACHE)/kernel-$(2)" && rm -rf $$tmp; }
endef

deps: ## install what builds need and this machine lacks (Debian, Ubuntu)
	$(call install,busybox:busybox-static $(if $(filter 0,$(shell id -u)),,newuidmap:uidmap))

CONTAINERD := github.com/containerd/containerd/v2
CONTAINERD_VERSION = $(shell go list -m -f '{{.Version}}' $(CONTAINERD))

# Tests run against two registries: Debian's, and the current one of the distribution project; a current containerd, which has
# btrfs only with cgo; and the OCI's runtimetest.
test-deps: deps ## install what tests need beside that
	$(call install,newuidmap:uidmap runc:runc docker-registry:docker-registry mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs skopeo:skopeo umoci:umoci buildah:buildah gcc:gcc ip:iproute2 mkfs.btrfs:btrfs-progs qemu-system-x86_64:qemu-system-x86 qemu-system-aarch64:qemu-system-arm qemu-system-riscv64:qemu-system-misc qemu-img:qemu-utils mcopy:mtools sfdisk:fdisk apparmor_parser:apparmor)
	$(call install,/usr/share/ovmf/OVMF.fd:ovmf /usr/share/qemu-efi-aarch64/QEMU_EFI.fd:qemu-efi-aarch64 /usr/lib/u-boot/qemu-riscv64_smode/u-boot.bin:u-boot-qemu)
	@test -n "$$(ls "$(TEST_CACHE)"/kernel-amd64/boot/vmlinuz-* 2>/dev/null)" || $(call kernel,linux-image-cloud-amd64,amd64)
	$(call foreign,arm64,bookworm,linux-image-cloud-arm64)
	$(call foreign,riscv64,trixie,linux-image-riscv64)
	@dir="$${XDG_CACHE_HOME:-$$HOME/.cache}/obx-test"; test -x "$$dir/registry" || \
		GOBIN="$$dir" go install github.com/distribution/distribution/v3/cmd/registry@v3.1.2
	@dir="$${XDG_CACHE_HOME:-$$HOME/.cache}/obx-test"; test -x "$$dir/runtimetest" || \
		{ cd conformance/testdata/runtimetest && GOBIN="$$dir" CGO_ENABLED=0 go install github.com/opencontainers/runtime-tools/cmd/runtimetest; }
	@dir="$${XDG_CACHE_HOME:-$$HOME/.cache}/obx-test"; test -x "$$dir/containerd-shim-runc-v2" || \
		GOBIN="$$dir" CGO_ENABLED=1 go install $(CONTAINERD)/cmd/containerd@$(CONTAINERD_VERSION) \
		$(CONTAINERD)/cmd/containerd-shim-runc-v2@$(CONTAINERD_VERSION)

example: $(OBX) deps ## install what is missing, and run examples/hello twice
	cp "$$(command -v busybox)" examples/hello/busybox
	$(OBX) run examples/hello/hello.sexp examples/hello --secret token=examples/hello/token
	$(OBX) run examples/hello/hello.sexp examples/hello --secret token=examples/hello/token --output type=tar,dest=.build/hello.tar
	@echo "the result's files are in .build/hello.tar"

test: test-deps agents ## install what is missing, and run all tests with the race detector
	CGO_ENABLED=1 go test -race -timeout 45m ./...

machines: test-disks agents ## run the long tests of virtual machines too: all of the suite, disk images, all that OBuilder was recorded to do
	OBX_TEST_MACHINES=all go test -timeout 45m ./executor/qemu/...
	OBX_TEST_MACHINES=all go test -timeout 45m -run 'TestMachines|TestDisk' ./conformance
	OBX_GOLDEN=qemu go test -run TestGolden ./conformance

long: test-deps ## run 10,000 random chains of layers through obx and umoci, and 10,000 steps
	OBX_TEST_SEQUENCES=10000 go test -timeout 1h -run TestSequences ./layers
	OBX_TEST_STEPS=10000 go test -timeout 1h -v -run TestSoak ./executor/overlay

wine: test-deps agents ## run what has to be right on Windows as Windows programs, under Wine
	conformance/wine.sh

agents: $(AGENT_FILES) ## build the agents of virtual machines

$(AGENT_DIR)/%.gz: $(AGENT_SOURCES)
	@echo "agent $*"
	@$(call build-agent,$*,$@.tmp)
	@gzip -9nc $@.tmp >$@.new && rm $@.tmp && mv $@.new $@

check-agents: agents ## see whether the agents are the same when they are built once more
	@tmp=$$(mktemp -d) && $(foreach a,$(AGENTS),$(call build-agent,$(a),$$tmp/agent) && \
		{ gzip -dc $(AGENT_DIR)/$(a).gz | cmp - $$tmp/agent || { echo "the agent $(a) differs when it is built again"; exit 1; }; } &&) rm -r $$tmp

lint: ## gofmt, go vet (for Linux and Windows, and of obx-containerd), staticcheck
	@out=$$(gofmt -l .); test -z "$$out" || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	go vet ./...
	GOOS=windows go vet ./...
	go vet -tags containerd ./cmd/obx
	go run $(STATICCHECK) ./...

cross: agents ## build for the other systems
	@for t in linux/arm64 windows/amd64 windows/arm64 darwin/arm64 freebsd/amd64; do \
		echo "build $$t"; GOOS=$${t%/*} GOARCH=$${t#*/} go build -o /dev/null ./cmd/obx || exit 1; \
	done
	GOOS=linux GOARCH=arm64 go build -tags containerd -o /dev/null ./cmd/obx

bench: test-disks agents ## run the benchmarks, with their floors, on a fresh file system
	go test -run '^$$' -bench . -benchtime 3x -timeout 30m ./...

# Inputs that find something new are made smaller by few tries: what several goroutines do is not the same each time, and a minute of tries for
# each such input would be all that a fuzzer does. A failure is kept in testdata/fuzz, and is then a test.
fuzz: ## run all fuzzers, TIME=10m each, up to the first failure
	@go list ./... | while read -r pkg; do \
		list=$$(go test -run '^$$' -list '^Fuzz' "$$pkg") || { echo "$$list"; exit 1; }; \
		for f in $$(echo "$$list" | grep '^Fuzz'); do \
			echo "$$f in $$pkg"; \
			go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(TIME) -fuzzminimizetime 100x -timeout 0 "$$pkg" </dev/null || { echo "$$f in $$pkg has failed"; exit 1; }; \
		done || exit 1; \
	done

clean: ## remove what was built
	rm -rf .build examples/hello/busybox $(AGENT_DIR)/*.gz*

FORCE:
.PHONY: help build deps test-deps test-disks example test machines long agents check-agents wine lint cross bench fuzz clean FORCE
