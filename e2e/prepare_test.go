package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/adrg/xdg"

	"unlucky/linker"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// A real kernel in a file, opened where there are lld and QEMU and nothing else, and where
// there is QEMU alone, gives the images and verdicts of the build, in every order of its
// sections, into journals of the same header.
func TestPreparedFile(t *testing.T) {
	needKernels(t)
	s, err := scenarios.Load("canary")
	if err != nil {
		t.Fatal(err)
	}
	sweeps := []string{"-seeds 1:8", "-seeds 39:42 -strategy cover", "-seeds 1:4 -strategy shuffle"}
	records := func(from ...string) (out [][]seeds.Record, headers []string) {
		t.Helper()
		for _, flags := range sweeps {
			r := sweepJSON(t, append(append(from, "-accel", "tcg", "-j", "1", "-o", t.TempDir()), strings.Fields(flags)...)...)
			journal, err := os.ReadFile(filepath.Join(r.Dir, "sweep.journal"))
			if err != nil {
				t.Fatal(err)
			}
			for i := range r.Layouts {
				r.Layouts[i].Millis, r.Layouts[i].At = 0, time.Time{}
				if r.Layouts[i].Kind == qemu.Pass {
					r.Layouts[i].Path = "" // twins are those that pass first
				}
			}
			out, headers = append(out, r.Layouts), append(headers, strings.SplitN(string(journal), "\n", 3)[1])
		}
		return out, headers
	}
	file := filepath.Join(t.TempDir(), "canary.kernel.tar.zst")
	if code, _ := unlucky(t, "prepare", "canary", "-o", file); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	want, wantHeaders := records("canary")

	k, err := linker.Prepare(t.Context(), kbuild.CacheDir(), s.Kernel, nil)
	if err != nil {
		t.Fatal(err)
	}
	lld := filepath.Join(k.Toolchain.Dir, "ld.lld")
	k.Close()
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "unlucky-programs-") // nobody, as whom root's QEMU runs, may look into it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.Symlink(lld, filepath.Join(dir, "ld.lld")), os.Symlink(program, filepath.Join(dir, filepath.Base(program)))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(xdg.Reload) // after what follows is undone
	t.Setenv("PATH", dir)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	xdg.Reload()
	if kbuild.Prepared(t.Context(), kbuild.CacheDir(), s.Kernel) {
		t.Fatal("the kernel is there without the file")
	}
	for _, programs := range []string{"lld and QEMU", "QEMU"} {
		got, headers := records("-kernel", file)
		for i, flags := range sweeps {
			if headers[i] != wantHeaders[i] || !reflect.DeepEqual(got[i], want[i]) || len(want[i]) < 4 {
				t.Errorf("%s, with %s: of the file %s %+v\nof the build %s %+v", flags, programs, headers[i], got[i], wantHeaders[i], want[i])
			}
		}
		os.Remove(filepath.Join(dir, "ld.lld"))
	}
}
