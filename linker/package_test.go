package linker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"unlucky/host"
	"unlucky/linker/kbuild"
	"unlucky/scenarios"
)

// tinyPackage makes testdata/tiny a Debian source package, whose version the
// file that it returns holds.
func tinyPackage(t *testing.T) (version string) {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(dir, "linux-source-0.1")
	if err := os.CopyFS(tree, os.DirFS("testdata/tiny")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(tree, "scripts/link-vmlinux.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-cJf", tree+".tar.xz", "-C", dir, "linux-source-0.1").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	old := kbuild.PackageDir
	kbuild.PackageDir = dir
	t.Cleanup(func() { kbuild.PackageDir = old })
	version = filepath.Join(dir, "version")
	if err := os.WriteFile(version, []byte("0.1.1-1"), 0o644); err != nil {
		t.Fatal(err)
	}
	// The real dpkg knows no such package.
	fake := filepath.Join(dir, "bin", "dpkg-query")
	if err := errors.Join(os.Mkdir(filepath.Dir(fake), 0o755), writeLinker(fake, []byte("#!/bin/sh\nexec cat "+version+"\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Dir(fake)+":"+os.Getenv("PATH"))
	return version
}

// A package is built once and then taken as it is, until its version changes
// or somebody damages it.
func TestPreparePackage(t *testing.T) {
	slow(t)
	version, cache := tinyPackage(t), t.TempDir()
	spec := scenarios.Kernel{Package: "linux-source-0.1", Arch: "x86_64", Config: "tinyconfig", Image: "vmlinux"}
	steps := map[string]bool{}
	prepare := func() *Kernel {
		t.Helper()
		clear(steps)
		k, err := Prepare(t.Context(), cache, spec, func(step string, _, _ int64) { steps[step] = true })
		if err != nil {
			t.Fatal(err)
		}
		k.Close()
		return k
	}
	first := prepare()
	if len(steps) < 3 {
		t.Errorf("the first time told only %v", steps)
	}
	if again := prepare(); again.Digest != first.Digest || len(steps) != 0 {
		t.Errorf("the second time did %v", steps)
	}
	damage := func(what string, do func(dir string) error) {
		t.Helper()
		if err := do(first.Objtree); err != nil {
			t.Fatal(err)
		}
		if again := prepare(); again.Digest != first.Digest || len(steps) == 0 {
			t.Errorf("%s: it went unseen: %v", what, steps)
		}
	}
	damage("truncated vmlinux.o", func(dir string) error { return os.Truncate(filepath.Join(dir, "vmlinux.o"), 5000) })
	damage("no vmlinux.o", func(dir string) error { return os.Remove(filepath.Join(dir, "vmlinux.o")) })
	damage("no .vmlinux.cmd", func(dir string) error { return os.Remove(filepath.Join(dir, ".vmlinux.cmd")) })
	damage("no build", os.RemoveAll)
	damage("no source", func(dir string) error { return os.RemoveAll(filepath.Dir(dir)) })
	damage("garbage state", func(string) error { return os.WriteFile(filepath.Join(first.Dir, "prepared.json"), []byte("{"), 0o644) })
	damage("a build that was interrupted", func(dir string) error {
		return errors.Join(first.Forget(), os.Remove(filepath.Join(dir, "main.o")))
	})
	if err := os.WriteFile(version, []byte("0.1.2-1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if newer := prepare(); newer.Dir == first.Dir {
		t.Error("another version of the package is taken for the same kernel")
	}
}

// A kernel with a patch more is made from a prepared one without it: only what
// the patch touches is compiled, and vmlinux.o is the one that is made from
// scratch.
func TestPreparePatched(t *testing.T) {
	slow(t)
	tinyPackage(t)
	spec := scenarios.Kernel{Package: "linux-source-0.1", Arch: "x86_64", Config: "tinyconfig", Image: "vmlinux"}
	head, err := os.ReadFile("testdata/tiny/head.S")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(head), "\n"), "\n")
	text := fmt.Sprintf("--- a/head.S\n+++ b/head.S\n@@ -%[1]d +%[1]d,3 @@\n %[2]s\n+.globl mended\n+mended = 1\n", len(lines), lines[len(lines)-1])
	absent := scenarios.Patch{File: "head.patch", Want: "absent", Text: text}
	applied := scenarios.Patch{File: "head.patch", Want: "applied", Text: text}
	prepare := func(cache string, patches ...scenarios.Patch) (k *Kernel, log string, err error) {
		t.Helper()
		s := spec
		s.Patches = patches
		if k, err = Prepare(t.Context(), cache, s, nil); err != nil {
			return nil, "", err
		}
		k.Close()
		data, err := os.ReadFile(filepath.Join(k.Dir, "build.log"))
		return k, string(data), err
	}
	compiled := func(log string) bool { return strings.Contains(log, "CC      main.o") }
	cache := t.TempDir()
	base, log, err := prepare(cache, absent)
	if err != nil || !compiled(log) {
		t.Fatalf("error %v, %s", err, log)
	}
	mended, log, err := prepare(cache, absent, applied)
	if err != nil {
		t.Fatal(err)
	}
	if compiled(log) || !strings.Contains(log, "AS      head.o") {
		t.Errorf("what the patch does not touch was compiled again:\n%s", log)
	}
	scratch, log, err := prepare(t.TempDir(), absent, applied)
	if err != nil || !compiled(log) {
		t.Fatalf("error %v, %s", err, log)
	}
	if mended.Digest != scratch.Digest || mended.Digest == base.Digest {
		t.Errorf("vmlinux.o is %.12s, from scratch %.12s, without the patch %.12s", mended.Digest, scratch.Digest, base.Digest)
	}
	other, wrong := absent, applied
	other.Text = strings.ReplaceAll(text, "mended", "other")
	wrong.Text = "--- a/head.S\n+++ b/head.S\n@@ -1 +1 @@\n-no such line\n+x\n"
	// A kernel that is damaged is not gone on from.
	if err := os.Truncate(filepath.Join(base.Objtree, "vmlinux.o"), 100); err != nil {
		t.Fatal(err)
	}
	if k, log, err := prepare(cache, absent, applied, other); err != nil || k.Digest != mended.Digest || compiled(log) {
		t.Errorf("one patch more: error %v, %s", err, log)
	}
	if err := os.RemoveAll(mended.Dir); err != nil {
		t.Fatal(err)
	}
	if k, log, err := prepare(cache, absent, applied); err != nil || k.Digest != mended.Digest || !compiled(log) {
		t.Errorf("from one that is damaged: error %v, %s", err, log)
	}
	if _, _, err := prepare(cache, absent, wrong); err == nil || !strings.Contains(err.Error(), "head.patch (wanted: applied) does not fit this kernel") {
		t.Errorf("a patch that does not fit: %v", err)
	}
}

func TestPrepareCancelled(t *testing.T) {
	tinyPackage(t)
	ctx, cancel := context.WithCancel(t.Context())
	spec := scenarios.Kernel{Package: "linux-source-0.1", Arch: "x86_64", Config: "tinyconfig", Image: "vmlinux"}
	cache := t.TempDir()
	_, err := Prepare(ctx, cache, spec, func(step string, _, _ int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	k, err := Prepare(t.Context(), cache, spec, nil)
	if err != nil {
		t.Fatal("after an interrupted preparation: ", err)
	}
	k.Close()
}

// A missing tool is told before minutes have gone into a build.
func TestPrepareWithoutTools(t *testing.T) {
	slow(t)
	tools, err := kbuild.FindToolchain(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range kbuild.Needs {
		if line := host.Install(n.Package); strings.HasPrefix(line, "install ") {
			t.Errorf("package host does not know %s", n.Package)
		}
	}
	t.Setenv("PATH", tools.Dir)
	tree, err := filepath.Abs("testdata/tiny")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Prepare(t.Context(), t.TempDir(), scenarios.Kernel{Dir: tree, Arch: "x86_64", Config: "tinyconfig", Image: "vmlinux"}, nil)
	var h *host.HintError
	if err == nil || !strings.Contains(err.Error(), "make, flex, bison") || !errors.As(err, &h) || !strings.Contains(h.Hint, "install make flex bison") {
		t.Errorf("error %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := kbuild.FindToolchain(t.Context(), ""); !errors.As(err, &h) || !strings.Contains(h.Hint, "lld") {
		t.Errorf("without clang: error %v", err)
	}
}
