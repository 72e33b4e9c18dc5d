# Two targets do everything: make sweep and make test, and make test-all the rest of
# the tests. Each installs what is missing (as root, or with sudo), which takes a
# minute or two the first time.

GO ?= go
NEEDS := llvm qemu-system-x86 linux-source-6.12 busybox make python3 flex bison bc patch tar xz libelf libssl
TEST_NEEDS := qemu-system-arm linux-source-6.1 gcc pahole git chromium slurm munge zsh fish groff mandoc
SEEDS ?= 1:32

.PHONY: sweep test test-all test-builds test-trees short bench hunt fuzz lint vulncheck install install-test unlucky clean

# Hunt for the real bug of kcfi-seal: some 4 minutes the first time, behind the
# packages; less than one later.
sweep: install unlucky
	./unlucky sweep kcfi-seal -seeds $(SEEDS)

GOTESTSUM := $(GO) tool -modfile=$(CURDIR)/tools/go.mod gotestsum --format testname
# What the tests say that they did not test, each once; not what a script would say.
UNTESTED = @grep -hv '"Output":" *\\u003e ' $(1) | grep -o 'NOT TESTED\([^"\\]\|\\"\)*' | sed 's/\\"/"/g' | sort -u
# The one real kernel of make test.
KERNEL := ^(TestKCFISeal|TestShortcut)$$

# The tests to wait for, a quarter of an hour on two CPUs: lint; all that needs no
# kernel; and one real kernel, that of make sweep, built, swept, replayed and
# minimized, and linked by one pass of the linker as by its whole script. Each test
# tells how long it took, and what was not tested stands at the end.
test: install lint short
	$(GOTESTSUM) --jsonfile tests-kernel.json -- -vet=off -count=1 -timeout 40m -run '$(KERNEL)' ./e2e
	$(call UNTESTED,tests-short.json tests-kernel.json)

# All others, some 40 minutes: the packages that have goroutines with the race
# detector, which wants a C compiler, but for statistics and floods, of which make test
# has all; so some of the command line; real kernels without it, as boots and links are
# most of them; each fuzz target for a moment; the example for Kubernetes. A kernel that
# differs from another by a patch is a copy, so kcfi-seal of make test comes first.
RACE = CC=$$(ls /usr/bin/clang /usr/bin/clang-[0-9]* 2>/dev/null | sort -V | tail -n 1) CGO_ENABLED=1 $(GOTESTSUM)
RACY := ./cli ./fuzz/... ./host ./linker/... ./qemu
WITHOUT_RACE := ^Test(SuspectsTied|SuspectsTouch|SuspectsFalseAlarms|LongLine|ReadCpioEndless)$$
test-all: install-test
	$(RACE) --jsonfile tests-race.json -- -race -vet=off -count=1 -timeout 40m -run '^Test' -skip '$(WITHOUT_RACE)' $(RACY)
	$(RACE) --jsonfile tests-scripts.json -- -race -vet=off -count=1 -timeout 40m -run '^(TestScripts|TestTwoAtOnce)$$/^(sweep|minimize|merge|autopsy)$$' ./e2e
	$(GOTESTSUM) --jsonfile tests.json -- -vet=off -count=1 -timeout 70m -skip '$(KERNEL)|^TestTwoAtOnce$$' ./scenarios ./e2e
	cd examples/kubernetes && $(GO) vet . && $(GOTESTSUM) --jsonfile ../../tests-kubernetes.json -- -count=1 .
	./fuzz.sh 5s
	@$(MAKE) -s vulncheck
	$(call UNTESTED,tests-race.json tests-scripts.json tests.json tests-kubernetes.json)

# More builds of a kernel than make test-all takes time for: without LTO by clang and
# GCC, of 6.12 and the newest, for arm64, a finished build, and one made twice; and what
# autopsies name in kernels that patch themselves more, and in more layouts; and more images by delta. Some 80
# minutes.
test-builds: install-test
	@host/install.sh aarch64-linux-gnu-gcc
	UNLUCKY_BUILDS=1 $(GOTESTSUM) -- -vet=off -count=1 -timeout 120m -run '^(TestDelta|TestWithoutLTO|TestCanaryOfGCC|TestFinishedBuild|TestARM64OfGCC|TestReproducible|TestPatched|TestMutated|TestHashAutopsies)$$' ./e2e

# The tests that need no kernel build: some two minutes.
short: install
	$(GOTESTSUM) --jsonfile tests-short.json -- -short -vet=off -count=1 -timeout 40m ./...

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
# that booted; and the boots that minimize takes for each kind, without booting. Some 12
# minutes, once the kernel is prepared.
hunt: install unlucky
	./unlucky hunt -bugs 1000 -minimize 8 -boot 32

# Each fuzz target for FUZZTIME. The ELF inputs are those of go-fuzz-corpus.
FUZZTIME ?= 30s
fuzz: install
	./fuzz.sh $(FUZZTIME)

# The tools are pinned in tools/go.mod.
lint:
	test -z "$$(gofmt -l .)"
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...

# govulncheck asks vuln.go.dev, which not every machine can reach: that is said, and
# is no failure.
vulncheck:
	@$(GO) tool -modfile=tools/go.mod govulncheck ./... >govulncheck.log 2>&1 || grep 'fetching vulnerabilities' govulncheck.log || { cat govulncheck.log; exit 1; }
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
