package linker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unlucky/host"
	"unlucky/layout"
)

// slow leaves a test out with -short, and with nothing else.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("NOT TESTED with -short: it prepares and links kernels in small for ten seconds and more")
	}
}

// writeLinker writes a file that can be run at once: a child that is forked
// while it is open for writing would hold it so until it runs something itself,
// and "text file busy" is what the kernel says to that.
func writeLinker(path string, data []byte, mode os.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, data, mode)
}

// wrapLinker puts a shell script before the kernel's linker, which $real is.
// It is run for as long as the file that is returned exists.
func wrapLinker(t *testing.T, k *Kernel, script string) (armed string) {
	t.Helper()
	dir, real := t.TempDir(), k.Linker()
	armed = filepath.Join(dir, "armed")
	tools, err := os.ReadDir(k.Toolchain.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range tools {
		if err := os.Symlink(filepath.Join(k.Toolchain.Dir, tool.Name()), filepath.Join(dir, tool.Name())); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf("#!/bin/sh\nreal=%s\n[ -e %s ] || exec $real \"$@\"\n%s\n", real, armed, script)
	path := filepath.Join(dir, "ld.lld")
	if err := errors.Join(os.Remove(path), writeLinker(path, []byte(text), 0o755), os.WriteFile(armed, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	old, env := k.Toolchain.Dir, slices.Clone(k.Env)
	k.Toolchain.Dir = dir
	for i, v := range k.Env {
		if strings.HasPrefix(v, "PATH=") {
			k.Env[i] = "PATH=" + k.PATH()
		}
	}
	relink := func() {
		if one := k.onePass.how; one != nil {
			for _, argv := range one.links {
				argv[0] = k.Linker()
			}
		}
	}
	relink()
	t.Cleanup(func() {
		k.Toolchain.Dir, k.Env = old, env
		relink()
	})
	return armed
}

// outputOf sets $out to the linker's -o.
const outputOf = `n=0; for a; do [ "$n" = 1 ] && out=$a; n=0; [ "$a" = -o ] && n=1; done
`

// What happens to lld, in one pass and in the whole script: what is a fault of
// the layout has that as its error, what is one of the machine another, with a
// hint; an image that is not whole is not taken; and the next link is as if
// nothing had been.
func TestLinkerFaults(t *testing.T) {
	slow(t)
	k, notes := tinyKernel(t, "")
	k.Env = append(k.Env, "LLVM_DISABLE_SYMBOLIZATION=1") // takes seconds
	want := digests(t, k, 3)
	pid := filepath.Join(t.TempDir(), "pid")
	for _, test := range []struct {
		name, script, want, Hint string
		layout                   bool // the fault is the layout's
	}{
		{"killed", `kill -KILL $$`, "was killed", "-j", false},
		{"killed in the middle", outputOf + `head -c 9000 /dev/zero >"$out"; kill -KILL $$`, "was killed", "-j", false},
		{"a page of the image that can't be had", `kill -BUS $$`, "bus error: no space left", "make room there", false},
		{"dies of itself", `exec $real -r --randomize-section-padding=1 -o ` + os.DevNull + ` vmlinux.o`, "", "", true}, // in its own words, or else the shell's
		{"dies at once", `kill -SEGV $$`, "Segmentation fault", "", true},
		{"writes half", outputOf + `$real "$@" && truncate -s -1000 "$out"`, "llvm-nm: error: vmlinux: section header table goes past the end", "", false},
		{"writes zeros", outputOf + `$real "$@" && head -c 9000 /dev/zero >"$out"`, "no whole image", "", false},
		{"writes nothing", `exit 0`, "vmlinux: No such file", "", false},
		{"hangs", `sleep 1000 & echo $! >` + pid + `; wait`, "hangs: ended after", "leave that seed out", false},
		{"hangs in a loop", `echo $$ >` + pid + `; while :; do :; done`, "hangs: ended after", "leave that seed out", false},
	} {
		for _, whole := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, whole script %v", test.name, whole), func(t *testing.T) {
				k.onePass.refused, *notes = [kinds]int{}, nil
				one := k.onePass.how
				if whole {
					k.onePass.how = nil
				} else if one == nil || !k.onePass.proven[padded] {
					t.Fatal("one pass is not made")
				}
				defer func() { k.onePass.how = one }()
				armed := wrapLinker(t, k, test.script)
				w, err := k.NewWorker()
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				old, err := os.ReadFile(filepath.Join(k.Objtree, "vmlinux"))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(w.vmlinux(), old, 0o755); err != nil { // an old image: never taken for the new
					t.Fatal(err)
				}
				limit, took, begin := shortestLimit, k.took.Load(), time.Now()
				if strings.HasPrefix(test.name, "hangs") {
					shortestLimit = 2 * time.Second
					k.took.Store(1)
				}
				_, err = w.Link(t.Context(), pad16(2))
				shortestLimit = limit
				k.took.Store(took)
				var failed *LinkError
				if err == nil || errors.As(err, &failed) != test.layout || test.layout && !failed.LayoutFault() || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("error %v, want %q, of the layout: %v", err, test.want, test.layout)
				}
				if strings.HasPrefix(test.name, "writes") && !whole && !strings.Contains(fmt.Sprint(*notes), "the linker left no whole image") {
					t.Errorf("of one pass: notes %q", *notes)
				}
				var h *host.HintError
				if test.Hint != "" && (!errors.As(err, &h) || !strings.Contains(h.Hint, test.Hint)) {
					t.Errorf("error %v has not the hint %q", err, test.Hint)
				}
				if strings.HasPrefix(test.name, "hangs") {
					if took := time.Since(begin); took > 30*time.Second {
						t.Errorf("a link that hangs was ended after %v", took)
					}
					gone(t, pid)
				}
				left, _ := filepath.Glob(filepath.Join(w.dir, "*vmlinux[.0-9]*"))
				if i := slices.IndexFunc(left, func(path string) bool { return filepath.Ext(path) != ".o" }); i >= 0 {
					t.Errorf("left: %q", left)
				}
				if err := os.Remove(armed); err != nil {
					t.Fatal(err)
				}
				if image, err := w.Link(t.Context(), pad16(2)); err != nil || digestOf(t, image) != want[2] {
					t.Errorf("the next link: %v, image %.12s, want %.12s", err, digestOf(t, image), want[2])
				}
			})
		}
	}
}

// gone checks that the process whose id a file holds does not run any more.
func gone(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
		if err != nil || strings.Contains(string(stat), ") Z ") { // waits for init
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("process %d still runs", id)
	syscall.Kill(id, syscall.SIGKILL)
}

// smallDisk is a file system in memory of so many MiB; it is "" where none can
// be mounted.
func smallDisk(t *testing.T, mib int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dM", mib)); err != nil {
		t.Logf("NOT TESTED: a full disk: no file system can be mounted here: %v", err)
		return ""
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill leaves so many bytes free on a disk, and returns the file that fills it.
func fill(t *testing.T, dir string, leave uint64) (ballast string) {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	ballast = filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, s.Bavail*uint64(s.Bsize)-leave), 0o644); err != nil {
		t.Fatal(err)
	}
	return ballast
}

// A disk that fills up, at each point of a link: the error says where, what was
// linked before is whole, and when there is room again the same worker links
// the same image.
func TestDiskFull(t *testing.T) {
	slow(t)
	k, notes := tinyKernel(t, "")
	k.Env = append(k.Env, "LLVM_DISABLE_SYMBOLIZATION=1") // takes seconds
	want := digests(t, k, 3)
	disk := smallDisk(t, 8)
	if disk == "" {
		return
	}
	old, cache := host.MemoryDir, k.Dir
	t.Cleanup(func() { host.MemoryDir, k.Dir = old, cache })
	for _, where := range []string{"memory", "disk"} {
		for _, whole := range []bool{false, true} {
			seen := map[string]bool{}
			for _, leave := range []uint64{0, 64 << 10, 128 << 10, 192 << 10, 256 << 10, 1 << 20} {
				host.MemoryDir, k.Dir = disk, cache
				if where == "disk" {
					host.MemoryDir, k.Dir = "/nonexistent", disk
				}
				w, err := k.NewWorker()
				if err != nil {
					t.Fatal(err)
				}
				if !strings.HasPrefix(w.dir, disk) {
					t.Fatalf("the worker is in %s, not on the small disk", w.dir)
				}
				one := k.onePass.how
				if one == nil {
					t.Fatalf("one pass is no longer made: %q", *notes)
				}
				if whole {
					k.onePass.how = nil
				}
				first, err := w.Link(t.Context(), layout.Plan{}) // of the build's own object
				if err != nil {
					t.Fatal(err)
				}
				before := digestOf(t, first)
				ballast := fill(t, disk, leave)
				second, err := w.Link(t.Context(), pad16(1))
				var h *host.HintError
				switch {
				case err == nil && digestOf(t, second) != want[1]:
					t.Errorf("%s, %d bytes free: image %.12s, want %.12s", where, leave, digestOf(t, second), want[1])
				case err != nil && (!errors.As(err, &h) || !strings.Contains(h.Hint, "make room there") || !strings.Contains(err.Error(), disk) || errors.As(err, new(*LinkError))):
					t.Errorf("%s, %d bytes free: error %v", where, leave, err)
				case err != nil:
					step, _, _ := strings.Cut(err.Error(), " in ")
					seen[step] = true
				default:
					seen["linked"] = true
				}
				if digest := digestOf(t, first); digest != before {
					t.Errorf("%s, %d bytes free: what was linked before: %.12s", where, leave, digest)
				}
				if err := os.Remove(ballast); err != nil {
					t.Fatal(err)
				}
				if third, err := w.Link(t.Context(), pad16(2)); err != nil || digestOf(t, third) != want[2] {
					t.Errorf("%s, %d bytes free, then room: %v, image %.12s, want %.12s", where, leave, err, digestOf(t, third), want[2])
				}
				k.onePass.how = one
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			}
			if !seen["padding vmlinux.o"] || !seen["linking"] || !seen["linked"] {
				t.Errorf("%s, whole script %v: seen only %v", where, whole, seen)
			}
		}
	}
	if len(*notes) > 0 {
		t.Errorf("notes %q", *notes)
	}
}

// An object whose edit failed half way, its section headers in the new order and
// its symbols in the old, is made anew.
func TestHalfEdited(t *testing.T) {
	k, _ := tinyKernel(t, "")
	disk := smallDisk(t, 8)
	if disk == "" {
		return
	}
	old := host.MemoryDir
	host.MemoryDir = disk
	t.Cleanup(func() { host.MemoryDir = old })
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	i := slices.IndexFunc(sections, func(s layout.Section) bool { return s.Group > 0 }) + 10
	plan := layout.Plan{Order: []string{sections[i+1].Name, sections[i].Name}, Paddings: []layout.Padding{{Section: sections[i+5].Name, Bytes: 64}}}
	image, err := w.Link(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	want := digestOf(t, image)
	symbols := w.object.sections[w.object.index[".symtab"]]
	const page = 4096
	from := (symbols.Offset + page - 1) / page * page
	to := (symbols.Offset + symbols.Size) / page * page
	if from >= to {
		t.Fatalf("the symbols are at %d to %d: no whole page", symbols.Offset, symbols.Offset+symbols.Size)
	}
	if err := unix.Fallocate(int(w.object.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(from), int64(to-from)); err != nil {
		t.Fatal(err)
	}
	ballast := fill(t, disk, 0)
	if _, err := w.Link(t.Context(), pad16(0)); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "padding vmlinux.o") {
		t.Fatalf("error %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if again, err := w.Link(t.Context(), plan); err != nil || digestOf(t, again) != want {
		t.Errorf("the next link: %v, image %.12s, want %.12s", err, digestOf(t, again), want)
	}
}
