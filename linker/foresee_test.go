package linker_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"unlucky/linker/kbuild"
	"unlucky/scenarios"
)

// stops is what will stop a kernel, of what is foretold.
func stops(facts []kbuild.Fact) error {
	for _, f := range facts {
		if f.Err != nil {
			return f.Err
		}
	}
	return nil
}

// What is foretold of a tree and of a build, before and after they are prepared;
// nothing is written by that.
func TestForesee(t *testing.T) {
	t.Parallel()
	tree, build, cache := tinyTree(t), t.TempDir(), t.TempDir()
	prepend(t, filepath.Join(tree, "Makefile"), "VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\n")
	prepend(t, filepath.Join(tree, "arch/Kconfig"), "config CFI_CLANG\n\ttransitional\nconfig CFI\n")
	tinyBuild(t, tree, build)
	prepend(t, filepath.Join(build, ".config"), "CONFIG_LTO_CLANG_THIN=y\n")
	k := tinySpec(tree)
	k.Set, k.Try = []string{"LTO_CLANG_THIN=y", "CFI_CLANG=y", "A=n"}, []string{"FINEIBT=y"}
	k.Patches = []scenarios.Patch{{File: "x.patch", Want: "applied", Tested: "6.1.1"}}
	all := func(k scenarios.Kernel) (lines []string) {
		t.Helper()
		before := []map[string]string{snapshot(t, tree), snapshot(t, build)}
		for _, f := range kbuild.Foresee(t.Context(), cache, k, func(string, int64, int64) {}) {
			if f.Err != nil {
				t.Errorf("%s: %v", f.Name, f.Err)
			}
			lines = append(lines, f.Name+": "+f.Text)
		}
		for i, dir := range []string{tree, build} {
			same(t, dir, before[i], snapshot(t, dir))
		}
		return lines
	}
	want := func(k scenarios.Kernel, lines ...string) {
		t.Helper()
		got := all(k)
		for _, line := range lines {
			if !slices.ContainsFunc(got, func(l string) bool { return regexp.MustCompile(`\A(?:` + line + `)\z`).MatchString(l) }) {
				t.Errorf("no %q in\n%s", line, strings.Join(got, "\n"))
			}
		}
	}
	want(k, "source: .*, to be patched, so its files are copied", "version: 7.3.4", "set: LTO_CLANG_THIN=y CFI=y A=n", "renamed here: CFI_CLANG is CFI",
		"set if it can be: FINEIBT=y", "patch: x.patch, wanted applied, known to fit up to 6.1.1", "configuration: make tinyconfig",
		`compiler: clang \d.*, lld \d.*`, "what can move: each function by itself.*", "links: one pass of lld .*", `build: about \d+ min on \d+ CPUs`)
	want(tinySpec(tree), "source: .*, only links to it are made", "what can move: each function by itself: without LTO .* not the image that plain make would give", "links: one pass of lld .*")
	prepare(t, cache, tinySpec(tree))
	want(tinySpec(tree), "build: what has changed since the last one, vmlinux.o [0-9a-f]{12}")
	want(scenarios.Kernel{Build: build, Image: "vmlinux"}, "source: "+tree, "version: 7.3.4", `linked by: lld \d.*`, `vmlinux.o: there, with \d+ sections of functions`,
		"what can move: each function that has a section of its own", "links: one pass of lld .*", "build: none: .*")
	for config, want := range map[string]string{
		"allyesconfig":         "many hours",
		"x86_64_defconfig":     fmt.Sprintf("%d min", (70+runtime.NumCPU()-1)/runtime.NumCPU()),
		"CONFIG_A=y\nX is y\n": fmt.Sprintf("%d min", (7+runtime.NumCPU()-1)/runtime.NumCPU()),
	} {
		k := tinySpec(tree)
		k.Image, k.Config = "bzImage", config // never prepared
		if got := all(k); got[len(got)-1] != fmt.Sprintf("build: about %s on %d CPUs", want, runtime.NumCPU()) {
			t.Errorf("%s: %s", config, got[len(got)-1])
		}
	}
}
