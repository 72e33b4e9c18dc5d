package linker_test

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/linker/kbuild"
	"unlucky/scenarios"
)

// tinyTree copies testdata/tiny, a kernel tree in small.
func tinyTree(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tiny")
	if err := os.CopyFS(dir, os.DirFS("testdata/tiny")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "scripts/link-vmlinux.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tinyBuild builds it by plain make, as a user would.
func tinyBuild(t testing.TB, tree, objdir string) {
	t.Helper()
	tools, err := kbuild.FindToolchain(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("make", "-C", tree, "O="+objdir, "vmlinux")
	cmd.Env = append(os.Environ(), "PATH="+tools.Dir+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func tinySpec(dir string) scenarios.Kernel {
	return scenarios.Kernel{Dir: dir, Arch: "x86_64", Config: "tinyconfig", Image: "vmlinux"}
}

func prepare(t testing.TB, cache string, k scenarios.Kernel) *linker.Kernel {
	t.Helper()
	kernel, err := linker.Prepare(t.Context(), cache, k, func(string, int64, int64) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kernel.Close() })
	return kernel
}

// snapshot is every file below dir with its content, mode and time.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil || d.IsDir() {
			files[path] = "folder"
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = info.Mode().String() + info.ModTime().String() + string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func same(t *testing.T, what string, before, after map[string]string) {
	t.Helper()
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s: %s changed", what, path)
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok {
			t.Errorf("%s: %s is new", what, path)
		}
	}
}

func link(t testing.TB, k *linker.Kernel, plan layout.Plan) (linker.Image, []byte) {
	t.Helper()
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	image, err := w.Link(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(image.Path)
	if err != nil {
		t.Fatal(err)
	}
	return image, data
}

// address is that of a symbol in an image.
func address(t testing.TB, image []byte, name string) uint64 {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range symbols {
		if s.Name == name {
			return s.Value
		}
	}
	t.Fatalf("the image has no symbol %s", name)
	return 0
}

// The four ways to come by a kernel give the same one, and none of them
// writes to what the user has.
func TestPrepareSources(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED with -short: the ways to come by a kernel, each built")
	}
	t.Parallel()
	clean := tinyTree(t)
	cleanBefore := snapshot(t, clean)
	kernel := prepare(t, t.TempDir(), tinySpec(clean))
	_, baseline := link(t, kernel, layout.Plan{})
	same(t, "clean tree", cleanBefore, snapshot(t, clean))

	t.Run("built by plain make", func(t *testing.T) {
		tree := tinyTree(t)
		build := filepath.Join(tree, "build")
		tinyBuild(t, tree, build)
		before := snapshot(t, tree)
		adopted := prepare(t, t.TempDir(), scenarios.Kernel{Build: build, Arch: "x86_64", Image: "vmlinux"})
		_, data := link(t, adopted, layout.Plan{})
		want, err := os.ReadFile(filepath.Join(build, "vmlinux"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(data, want) {
			t.Error("the baseline is not the vmlinux that make linked")
		}
		if !bytes.Equal(data, baseline) {
			t.Error("the build of plain make gives another image than the tree")
		}
		same(t, "build folder", before, snapshot(t, tree))
	})
	t.Run("built in place", func(t *testing.T) {
		tree := tinyTree(t)
		git(t, tree, "init", "-q")
		git(t, tree, "add", ".")
		tinyBuild(t, tree, tree)
		if err := os.WriteFile(filepath.Join(tree, ".config"), []byte("CONFIG_TINY=y\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		before := snapshot(t, tree)
		copied := prepare(t, t.TempDir(), tinySpec(tree))
		if _, data := link(t, copied, layout.Plan{}); !bytes.Equal(data, baseline) {
			t.Error("the copy of the tracked files gives another image than the tree")
		}
		adopted := prepare(t, t.TempDir(), scenarios.Kernel{Build: tree, Arch: "x86_64", Image: "vmlinux"})
		if _, data := link(t, adopted, layout.Plan{}); !bytes.Equal(data, baseline) {
			t.Error("the build in place gives another image than the tree")
		}
		same(t, "tree", before, snapshot(t, tree))
	})
	t.Run("built in place, no git", func(t *testing.T) {
		tree := tinyTree(t)
		tinyBuild(t, tree, tree)
		os.WriteFile(filepath.Join(tree, ".config"), nil, 0o644)
		_, err := linker.Prepare(t.Context(), t.TempDir(), tinySpec(tree), nil)
		var h *host.HintError
		if !errors.As(err, &h) || !strings.Contains(h.Hint, "-build") {
			t.Errorf("error %v, want a hint at -build", err)
		}
	})
	t.Run("a build folder of the user's in it", func(t *testing.T) {
		tree := tinyTree(t)
		tinyBuild(t, tree, filepath.Join(tree, "build"))
		before := snapshot(t, tree)
		if _, data := link(t, prepare(t, t.TempDir(), tinySpec(tree)), layout.Plan{}); !bytes.Equal(data, baseline) {
			t.Error("the tree gives another image than one without the folder")
		}
		same(t, "tree", before, snapshot(t, tree))
	})
	t.Run("built in place, and cleaned, and built", func(t *testing.T) {
		tree, cache := tinyTree(t), t.TempDir()
		git(t, tree, "init", "-q")
		git(t, tree, "add", ".")
		hello := []string{"hello", "hallo", "hullo"}
		for i := range hello {
			if i > 0 {
				git(t, tree, "grep", "-q", hello[i-1], "main.c")
				if err := os.WriteFile(filepath.Join(tree, "main.c"), bytes.ReplaceAll(read(t, filepath.Join(tree, "main.c")), []byte(hello[i-1]), []byte(hello[i])), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if config := filepath.Join(tree, ".config"); i == 1 {
				os.Remove(config)
			} else if err := os.WriteFile(config, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			k := prepare(t, cache, tinySpec(tree))
			if _, data := link(t, k, layout.Plan{}); !bytes.Contains(data, []byte("tiny: "+hello[i])) {
				t.Errorf("step %d: an older source was built", i)
			}
			k.Close()
		}
	})
	t.Run("patched", func(t *testing.T) {
		spec := tinySpec(clean)
		spec.Patches = []scenarios.Patch{{File: "hello.patch", Want: "applied", Text: diff(t, clean, "main.c", "tiny: hello", "tiny: hallo")}}
		git(t, clean, "init", "-q")
		git(t, clean, "add", ".")
		before := snapshot(t, clean)
		if _, data := link(t, prepare(t, t.TempDir(), spec), layout.Plan{}); !bytes.Contains(data, []byte("tiny: hallo")) {
			t.Error("the patch is not in the image")
		}
		spec.Patches[0].Want = "absent"
		if _, data := link(t, prepare(t, t.TempDir(), spec), layout.Plan{}); !bytes.Equal(data, baseline) {
			t.Error("a patch that is wanted absent, and is, changed the image")
		}
		spec.Patches[0].Text = strings.ReplaceAll(spec.Patches[0].Text, "tiny: ", "no such line: ")
		spec.Patches[0].Tested = "6.12.117"
		_, err := linker.Prepare(t.Context(), t.TempDir(), spec, nil)
		var h *host.HintError
		if !errors.As(err, &h) || !strings.Contains(err.Error(), "hello.patch") || !strings.Contains(h.Hint, "6.12.117") {
			t.Errorf("error %v, want one that names the patch and the last version", err)
		}
		same(t, "clean tree", before, snapshot(t, clean))
	})
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func git(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

// diff is the patch that replaces a text in a file.
func diff(t *testing.T, dir, name, from, to string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(changed, bytes.ReplaceAll(data, []byte(from), []byte(to)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, _ := exec.Command("diff", "-u", "--label", "a/"+name, "--label", "b/"+name, filepath.Join(dir, name), changed).Output()
	if len(out) == 0 {
		t.Fatal("no difference")
	}
	return string(out)
}

// A tree always goes through make; an unchanged one is not compiled again.
func TestPrepareTreeFollowsChanges(t *testing.T) {
	t.Parallel()
	tree, cache := tinyTree(t), t.TempDir()
	first := prepare(t, cache, tinySpec(tree))
	object := filepath.Join(first.Objtree, "main.o")
	before, err := os.Stat(object)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	second := prepare(t, cache, tinySpec(tree))
	if after, err := os.Stat(object); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("an unchanged tree was compiled again (%v)", err)
	}
	second.Close()
	data, err := os.ReadFile(filepath.Join(tree, "main.c"))
	if err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(2 * time.Second)
	path := filepath.Join(tree, "main.c")
	if err := errors.Join(os.WriteFile(path, bytes.ReplaceAll(data, []byte("hello"), []byte("hallo")), 0o644), os.Chtimes(path, later, later)); err != nil {
		t.Fatal(err)
	}
	third := prepare(t, cache, tinySpec(tree))
	if third.Digest == first.Digest {
		t.Error("a changed tree gives the same vmlinux.o")
	}
}

func TestPrepareErrors(t *testing.T) {
	t.Parallel()
	tree := tinyTree(t)
	for _, test := range []struct {
		name, want, Hint string
		spec             func(*scenarios.Kernel)
	}{
		{"dropped symbol", "NO_SUCH_SYMBOL=y (it is n)", "menuconfig", func(k *scenarios.Kernel) { k.Set = []string{"NO_SUCH_SYMBOL=y"} }},
		{"no tree", "no kernel tree", "Makefile", func(k *scenarios.Kernel) { k.Dir = t.TempDir() }},
		{"no build", "no finished kernel build", "vmlinux.o", func(k *scenarios.Kernel) { k.Dir, k.Build = "", t.TempDir() }},
		{"too old", "Linux 5.15.7, older than 6.1: its ", "unlucky patch", func(k *scenarios.Kernel) {
			k.Dir = tinyTree(t)
			script := filepath.Join(k.Dir, "scripts/link-vmlinux.sh")
			prepend(t, script, "#!/bin/sh\n${LD} -r -o vmlinux.o\n")
			prepend(t, filepath.Join(k.Dir, "Makefile"), "VERSION = 5\nPATCHLEVEL = 15\nSUBLEVEL = 7\n")
		}},
		{"source moved", "the source of the build in ", "run make with O=", func(k *scenarios.Kernel) {
			tree, build := tinyTree(t), t.TempDir()
			tinyBuild(t, tree, build)
			if err := os.Rename(tree, tree+"-2"); err != nil {
				t.Fatal(err)
			}
			k.Dir, k.Build = "", build
		}},
		{"newer object", "vmlinux.o is newer than ", "run make in ", func(k *scenarios.Kernel) {
			build := t.TempDir()
			tinyBuild(t, tinyTree(t), build)
			note := filepath.Join(build, ".vmlinux.o.cmd")
			if err := os.WriteFile(note, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(note, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
				t.Fatal(err)
			}
			k.Dir, k.Build = "", build
		}},
		{"another linker", "was made by lld 19.1.7, and the lld here is ", "install lld-19", func(k *scenarios.Kernel) {
			build := t.TempDir()
			tinyBuild(t, tinyTree(t), build)
			prepend(t, filepath.Join(build, ".config"), "CONFIG_LLD_VERSION=190107\n")
			k.Dir, k.Build = "", build
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := tinySpec(tree)
			test.spec(&k)
			_, err := linker.Prepare(t.Context(), t.TempDir(), k, nil)
			var h *host.HintError
			if err == nil || !strings.Contains(err.Error(), test.want) || !errors.As(err, &h) || !strings.Contains(h.Hint, test.Hint) {
				t.Errorf("error %v, want %q with a hint of %q", err, test.want, test.Hint)
			}
			if test.name == "dropped symbol" { // only kconfig knows
				return
			}
			foretold := stops(kbuild.Foresee(t.Context(), t.TempDir(), k, func(string, int64, int64) {}))
			if foretold == nil || !strings.Contains(foretold.Error(), test.want) || !errors.As(foretold, &h) || !strings.Contains(h.Hint, test.Hint) {
				t.Errorf("foretold %v", foretold)
			}
		})
	}
	t.Run("does not compile", func(t *testing.T) {
		tree := tinyTree(t)
		os.WriteFile(filepath.Join(tree, "main.c"), []byte("int broken = \"1\" 2;\n"), 0o644)
		_, err := linker.Prepare(t.Context(), t.TempDir(), tinySpec(tree), nil)
		var h *host.HintError
		if err == nil || !strings.Contains(err.Error(), "main.c:1:") || !errors.As(err, &h) || !strings.Contains(h.Hint, "build.log") {
			t.Errorf("error %v, want the compiler's line and the path of the log", err)
		}
	})
}

// prepend puts a text before that of a file, which need not be there.
func prepend(t *testing.T, path, text string) {
	t.Helper()
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append([]byte(text), old...), 0o755); err != nil {
		t.Fatal(err)
	}
}

// What can be damaged by hand in the cache is seen.
func TestDamagedObject(t *testing.T) {
	t.Parallel()
	tree := tinyTree(t)
	build := filepath.Join(tree, "build")
	tinyBuild(t, tree, build)
	object := filepath.Join(build, "vmlinux.o")
	data, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 10, 63, 64, 1000, len(data) / 2, len(data) - 1} {
		if err := os.WriteFile(object, data[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := linker.Prepare(t.Context(), t.TempDir(), scenarios.Kernel{Build: build, Arch: "x86_64", Image: "vmlinux"}, nil)
		if err == nil || !strings.Contains(err.Error(), object) {
			t.Errorf("%d of %d bytes: error %v, want one that names the file", n, len(data), err)
		}
	}
}

func TestLinkPlan(t *testing.T) {
	t.Parallel()
	kernel := prepare(t, t.TempDir(), tinySpec(tinyTree(t)))
	_, baseline := link(t, kernel, layout.Plan{})
	sections, err := kernel.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first := sections[slices.IndexFunc(sections, func(s layout.Section) bool { return s.Moves })]
	plan := layout.Plan{Paddings: []layout.Padding{{Section: first.Name, Bytes: 16}, {Section: ".text.victim", Bytes: 48}}}
	_, data := link(t, kernel, plan)
	if _, again := link(t, kernel, plan); !bytes.Equal(again, data) {
		t.Error("the same plan gives two images")
	}
	for name, want := range map[string]uint64{"start": 0, "_stext": 0, "fill110": 16, "fill359": 16, "victim": 64, "fill410": 64} {
		if got := address(t, data, name) - address(t, baseline, name); got != want {
			t.Errorf("%s moved by %d bytes, want %d", name, got, want)
		}
	}

	w, err := kernel.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for section, want := range map[string]string{
		".text.no_such":  "no such input section",
		".head.text":     "by hand",
		".text..by_hand": "by hand",
		".rodata":        "by hand",
	} {
		if _, err := w.Link(t.Context(), layout.Plan{Paddings: []layout.Padding{{Section: section, Bytes: 16}}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("padding before %s: error %v, want %q", section, err, want)
		}
	}
}

// A layout that does not link is a LinkError, and the next one links again.
func TestLinkFails(t *testing.T) {
	t.Parallel()
	tree := tinyTree(t)
	lds := filepath.Join(tree, "vmlinux.lds")
	script, err := os.ReadFile(lds)
	if err != nil {
		t.Fatal(err)
	}
	// A fixed offset is what padding breaks in the kernel's script.
	script = bytes.Replace(script, []byte("*(.text..by_hand)"), []byte(". = _stext + 0x4800; *(.text..by_hand)"), 1)
	if err := os.WriteFile(lds, script, 0o644); err != nil {
		t.Fatal(err)
	}
	kernel := prepare(t, t.TempDir(), tinySpec(tree))
	w, err := kernel.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, err = w.Link(t.Context(), layout.Plan{Paddings: []layout.Padding{{Section: ".text.victim", Bytes: 4096}}})
	var failed *linker.LinkError
	if !errors.As(err, &failed) || !failed.LayoutFault() || !strings.Contains(failed.Reason, "unable to move location counter") {
		t.Fatalf("error %v, want lld's own about the location counter", err)
	}
	if _, err := w.Link(t.Context(), layout.Plan{}); err != nil {
		t.Errorf("the baseline after a failed link: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Link(ctx, layout.Plan{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled link: error %v", err)
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	kernel := prepare(t, cache, tinySpec(tinyTree(t)))
	if removed, err := kbuild.Clean(cache, 0); err == nil || len(removed) > 0 {
		t.Errorf("a kernel in use was removed: %v, %v", removed, err)
	}
	if removed, err := kbuild.Clean(cache, 1<<40); err != nil || len(removed) > 0 {
		t.Errorf("a kernel below the limit was removed: %v, %v", removed, err)
	}
	kernel.Close()
	if removed, err := kbuild.Clean(cache, 1); err != nil || len(removed) != 1 || removed[0].Bytes == 0 {
		t.Errorf("removed %v, %v, want one of known size", removed, err)
	}
	if left, err := kbuild.CachedKernels(cache); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func BenchmarkLink(b *testing.B) {
	kernel := prepare(b, b.TempDir(), tinySpec(tinyTree(b)))
	w, err := kernel.NewWorker()
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	plan := layout.Plan{Paddings: []layout.Padding{{Section: ".text.victim", Bytes: 16}}}
	for b.Loop() {
		if _, err := w.Link(b.Context(), plan); err != nil {
			b.Fatal(err)
		}
	}
}
