# The two commands of the README are `make example` and `make test`; `make help` lists the rest.

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
OBX         := bin/obx

export CGO_ENABLED ?= 0

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

build: $(OBX) ## build bin/obx

$(OBX): FORCE
	go build -trimpath -o $@ ./cmd/obx

# install NEEDED: installs Debian packages; TOOL:PACKAGE pairs name what to look for.
define install
	@missing=; PATH=$$PATH:/usr/sbin:/sbin; \
	for need in $(1); do command -v $${need%%:*} >/dev/null || missing="$$missing $${need##*:}"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
		$$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; \
	fi
endef

deps: ## install what builds need and this machine lacks (Debian, Ubuntu)
	$(call install,runc:runc busybox:busybox-static)

CONTAINERD := github.com/containerd/containerd/v2
CONTAINERD_VERSION = $(shell go list -m -f '{{.Version}}' $(CONTAINERD))

# Tests run against two registries: Debian's, and the current one of the distribution project; and a current containerd,
# which has btrfs only with cgo.
test-deps: deps ## install what tests need beside that
	$(call install,docker-registry:docker-registry mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs skopeo:skopeo umoci:umoci buildah:buildah gcc:gcc ip:iproute2 mkfs.btrfs:btrfs-progs)
	@dir="$${XDG_CACHE_HOME:-$$HOME/.cache}/obx-test"; test -x "$$dir/registry" || \
		GOBIN="$$dir" go install github.com/distribution/distribution/v3/cmd/registry@v3.1.2
	@dir="$${XDG_CACHE_HOME:-$$HOME/.cache}/obx-test"; test -x "$$dir/containerd-shim-runc-v2" || \
		GOBIN="$$dir" CGO_ENABLED=1 go install $(CONTAINERD)/cmd/containerd@$(CONTAINERD_VERSION) \
		$(CONTAINERD)/cmd/containerd-shim-runc-v2@$(CONTAINERD_VERSION)

example: $(OBX) deps ## install what is missing, and run examples/hello twice
	cp "$$(command -v busybox)" examples/hello/busybox
	$(OBX) run examples/hello/hello.sexp examples/hello --secret token=examples/hello/token
	$(OBX) run examples/hello/hello.sexp examples/hello --secret token=examples/hello/token --output type=tar,dest=bin/hello.tar
	@echo "the result's files are in bin/hello.tar"

test: test-deps ## install what is missing, and run all tests with the race detector
	CGO_ENABLED=1 go test -race -timeout 20m ./...

wine: test-deps ## run what has to be right on Windows as Windows programs, under Wine
	conformance/wine.sh

lint: ## gofmt, go vet (for Linux and Windows), staticcheck
	@out=$$(gofmt -l .); test -z "$$out" || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	go vet ./...
	GOOS=windows go vet ./...
	go run $(STATICCHECK) ./...

cross: ## build for the other systems
	@for t in linux/arm64 windows/amd64 windows/arm64 darwin/arm64 freebsd/amd64; do \
		echo "build $$t"; GOOS=$${t%/*} GOARCH=$${t#*/} go build -o /dev/null ./cmd/obx || exit 1; \
	done

bench: test-deps ## run the benchmarks, with their floors, on a fresh file system
	go test -run '^$$' -bench . -benchtime 3x -timeout 30m ./...

clean: ## remove what was built
	rm -rf bin examples/hello/busybox

FORCE:
.PHONY: help build deps test-deps example test wine lint cross bench clean FORCE
