# Two targets do everything: make sweep and make test. Each installs what is
# missing (as root, or with sudo), which takes a minute or two the first time.

GO ?= go
NEEDS := llvm qemu-system-x86 linux-source-6.12 busybox make python3 flex bison bc patch tar xz libelf libssl
TEST_NEEDS := linux-source-6.1 git chromium slurm munge zsh fish groff mandoc
SEEDS ?= 1:32

.PHONY: sweep test test-trees short bench hunt fuzz lint install install-test unlucky clean

# Hunt for the real bug of kcfi-seal: some 4 minutes the first time, behind the
# packages; less than one later.
sweep: install unlucky
	./unlucky sweep kcfi-seal -seeds $(SEEDS)

# Every test, with the race detector, which wants a C compiler; and each fuzz target
# for a moment. Five kernels are built, and six from copies of them. Some 55 minutes.
# Each test tells how long it took, and what was not tested stands at the end.
test: install-test lint
	CC=$$(ls /usr/bin/clang /usr/bin/clang-[0-9]* | sort -V | tail -n 1) CGO_ENABLED=1 \
		$(GO) tool gotestsum --format testname -- -race -timeout 80m ./...
	./fuzz.sh 5s

# The tests that need no kernel build: some two minutes.
short: install
	$(GO) test -short ./...

# Kernel trees that are at hand, each swept: make test-trees LINUX="DIR..."
test-trees: install
	@test -n "$(LINUX)" || { echo 'make test-trees LINUX="DIR..." sweeps these kernel trees'; exit 2; }
	UNLUCKY_TREES="$(LINUX)" $(GO) test -v -timeout 0 -run '^TestTrees$$' ./e2e

# Layouts an hour: by hand, by a sweep, and the least that they can cost; before
# that the parts, each by itself. Some 7 minutes, once the kernel is prepared.
bench: install unlucky
	$(GO) test -run '^$$' -bench . ./...
	./unlucky bench

# Layouts to the first crash of many kinds of bugs, by strategy, and a sample of
# that booted. Some 6 minutes, once the kernel is prepared.
hunt: install unlucky
	./unlucky hunt -bugs 1000 -boot 32

# Each fuzz target for FUZZTIME. The ELF inputs are those of go-fuzz-corpus.
FUZZTIME ?= 30s
fuzz: install
	./fuzz.sh $(FUZZTIME)

# The tools are pinned in go.mod. govulncheck asks vuln.go.dev, which not every
# machine can reach: that is said, and is no failure.
lint:
	test -z "$$(gofmt -l .)"
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@$(GO) tool govulncheck ./... >govulncheck.log 2>&1 || grep 'fetching vulnerabilities' govulncheck.log || { cat govulncheck.log; exit 1; }
	@! grep -q 'fetching vulnerabilities' govulncheck.log || echo "NOT CHECKED for known vulnerabilities: their database cannot be reached"
	@rm govulncheck.log

unlucky:
	$(GO) build -o $@ .

install:
	@host/install.sh $(NEEDS)

install-test:
	@host/install.sh $(NEEDS) $(TEST_NEEDS)

# The binary; `unlucky clean` removes the prepared kernels.
clean:
	rm -f unlucky
