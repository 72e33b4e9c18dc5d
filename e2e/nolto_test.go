package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"unlucky/linker"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/scenarios"
)

// ways are ways to compile a kernel without LTO, as what a scenario adds to boot.
var ways = []struct{ name, needs, kernel string }{
	{"clang", "clang", `
  set: [LTO_CLANG_THIN=n, LTO_NONE=y]`},
	{"gcc-os", "gcc", `
  compiler: gcc
  set: [LTO_CLANG_THIN=n, LTO_NONE=y, CFI_CLANG=n, X86_KERNEL_IBT=n]`},
	// What distributions have: sections that sorttable and pahole look into, too.
	{"gcc-o2", "pahole", `
  compiler: gcc
  set:
    - LTO_CLANG_THIN=n
    - LTO_NONE=y
    - CFI_CLANG=n
    - CC_OPTIMIZE_FOR_SIZE=n
    - CC_OPTIMIZE_FOR_PERFORMANCE=y
    - FTRACE=y
    - FUNCTION_TRACER=y
    - MODULES=y
    - BPF_SYSCALL=y
    - RELOCATABLE=y
    - RANDOMIZE_BASE=y
    - DEBUG_KERNEL=y
    - DEBUG_INFO_NONE=n
    - DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y
    - DEBUG_INFO_BTF=y`},
}

// withoutLTO writes a scenario that takes over another in one of the ways, of a
// package, and returns its path. It says loudly what is missing.
func withoutLTO(t *testing.T, way, from, pkg string) string {
	t.Helper()
	for _, w := range ways {
		if w.name != way {
			continue
		}
		if _, err := exec.LookPath(w.needs); err != nil && w.needs != "clang" {
			t.Skipf("NOT TESTED: a kernel by %s: %v", way, err)
		}
		text := fmt.Sprintf("from: %s\nname: %s-%s\nkernel:%s\n", from, from, way, w.kernel)
		if pkg != "" {
			text += "  package: " + pkg + "\n"
		}
		path := filepath.Join(t.TempDir(), way+".yaml")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Fatalf("there is no way %s", way)
	return ""
}

// needBuilds says loudly that a kernel is left out which make test-builds builds.
func needBuilds(t *testing.T) {
	t.Helper()
	if os.Getenv("UNLUCKY_BUILDS") == "" {
		t.Skipf("NOT TESTED: %s, which takes another build of some 4 minutes: make test-builds", t.Name())
	}
}

// Kernels without LTO, by clang and by GCC, are swept by function, by one pass of the
// linker, as ThinLTO's are.
func TestWithoutLTO(t *testing.T) {
	needKernels(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			needBuilds(t)
			sweepProven(t, withoutLTO(t, w.name, "boot", ""), 33, 48)
		})
	}
	t.Run("gcc, the newest", func(t *testing.T) {
		needBuilds(t)
		source, _ := kernelSource(t, "linux-source")
		sweepProven(t, withoutLTO(t, "gcc-os", "boot", source), 33, 48)
	})
}

// The planted bug in GCC's kernel is found, suspected first, and minimized to its
// function and residue.
func TestCanaryOfGCC(t *testing.T) {
	needKernels(t)
	needBuilds(t)
	dir := t.TempDir()
	r := sweepJSON(t, withoutLTO(t, "gcc-o2", "canary", ""), "-seeds", "1:128", "-accel", "tcg", "-o", dir)
	t.Log(count(r))
	if r.Finds() == 0 || len(r.Unlucky()) != 1 || r.Unlucky()[0].Title != "invalid opcode in canary_reboot" {
		t.Fatalf("%+v", r.Unlucky())
	}
	if code, out := unlucky(t, "suspects", dir); code != 0 || !strings.Contains(out, "\n  1  ") || !strings.HasSuffix(firstSuspect(out), " canary_victim") {
		t.Errorf("exit status %d: %s", code, out)
	}
	m := minimizeJSON(t, filepath.Join(r.Dir, r.Unlucky()[0].Layouts[0].Path), "-ablate=false")
	if c := m.culprits(); len(c) != 1 || c[0] != "canary_victim" || m.Minimized.Culprits[0].Modulus != 256 {
		t.Errorf("culprits %q: %+v", c, m.Minimized.Culprits)
	}
}

// firstSuspect is the line of the first suspect that unlucky suspects prints.
func firstSuspect(out string) string {
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "  1  ") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// A finished build of GCC and ld.bfd, whose functions have no sections of their own,
// is swept by object file. It is only read.
func TestFinishedBuild(t *testing.T) {
	needKernels(t)
	needBuilds(t)
	scenario, err := scenarios.Load(withoutLTO(t, "gcc-os", "boot", ""))
	if err != nil {
		t.Fatal(err)
	}
	k, err := linker.Prepare(t.Context(), kbuild.CacheDir(), scenario.Kernel, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	build := filepath.Join(t.TempDir(), "build")
	for _, argv := range [][]string{
		{"mkdir", build},
		{"cp", filepath.Join(k.Objtree, ".config"), build},
		{"make", "-s", "-C", k.Source, "O=" + build, "KCFLAGS=-w", "olddefconfig"},
		{"make", "-s", "-C", k.Source, "O=" + build, "KCFLAGS=-w", "-j2", "vmlinux"},
	} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", qemu.Quote(argv), err, out)
		}
	}
	before, err := kbuild.FileDigest(filepath.Join(build, "vmlinux.o"))
	if err != nil {
		t.Fatal(err)
	}
	r := sweepJSON(t, "boot", "-build", build, "-seeds", "1:16", "-strategy", "text", "-accel", "tcg", "-o", t.TempDir())
	t.Log(count(r))
	if r.Count(qemu.Pass) != 16 || r.OnePass < 14 {
		t.Errorf("%s, %d in one pass", count(r), r.OnePass)
	}
	if after, err := kbuild.FileDigest(filepath.Join(build, "vmlinux.o")); after != before || err != nil {
		t.Errorf("the build was written to: %v", err)
	}
}
