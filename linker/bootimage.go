package linker

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"unlucky/host"
	"unlucky/linker/kbuild"
)

// A bzImage is made of vmlinux by kbuild's own makefiles, which write into
// arch/x86/boot: a worker for one has a copy of that folder, and real folders
// above it.
var bootDir = []string{"arch", "x86", "boot"}

// bootFolder gives the worker an arch/x86/boot of its own.
func (w *Worker) bootFolder() error {
	from, to := w.kernel.Objtree, w.dir
	for _, name := range bootDir {
		from, to = filepath.Join(from, name), filepath.Join(to, name)
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		if name == bootDir[len(bootDir)-1] {
			if _, err := os.Stat(filepath.Join(from, "bzImage")); err != nil {
				return host.Hint(fmt.Errorf("the build has no bzImage: %w", err), "run make bzImage in it, or use image: vmlinux")
			}
			return os.CopyFS(to, os.DirFS(from))
		}
		if err := kbuild.LinkFarm(from, to); err != nil {
			return err
		}
	}
	return nil
}

// compress makes a bzImage of the worker's vmlinux and returns its path.
func (w *Worker) compress(ctx context.Context) (string, error) {
	p := w.kernel
	steps := [][]string{{"-f", filepath.Join(p.Srctree, "scripts/Makefile.build"), "obj=arch/x86/boot", "arch/x86/boot/bzImage"}}
	// To 6.14 the relocations are taken out of vmlinux behind the link.
	if post := filepath.Join(p.Srctree, "arch/x86/Makefile.postlink"); exists(filepath.Join(w.dir, post)) {
		steps = append([][]string{{"-f", post, "vmlinux"}}, steps...)
	}
	for _, args := range steps {
		var log bytes.Buffer
		argv := append([]string{"make", "-rR", "--silent", "--no-print-directory"}, args...)
		if _, err := w.run(ctx, firstLimit, p.Environment, &log, argv...); err != nil {
			return "", fmt.Errorf("making the bzImage: %w%s", err, host.LastLines(log.Bytes(), 8))
		}
	}
	return filepath.Join(w.dir, "arch/x86/boot/bzImage"), nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
