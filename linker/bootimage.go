package linker

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"unlucky/arch"
	"unlucky/host"
	"unlucky/linker/kbuild"
)

// A boot image that is not flat is made of vmlinux by kbuild's own makefiles, which write into the
// folder boot of the architecture, arch/x86/boot: a worker for one has a copy of that
// folder, and real folders above it.

// bootFolder gives the worker such a folder of its own.
func (w *Worker) bootFolder() error {
	p := w.kernel
	if _, err := os.Stat(filepath.Join(p.Objtree, p.BootFile())); err != nil {
		return host.Hint(fmt.Errorf("the build has no %s: %w", p.Image, err), "run make %s in it, or use image: %s", p.Image, arch.VMLinux)
	}
	from, to := p.Objtree, w.dir
	names := strings.Split(filepath.Dir(p.BootFile()), "/")
	for _, name := range names[:len(names)-1] {
		from, to = filepath.Join(from, name), filepath.Join(to, name)
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		if err := kbuild.LinkFarm(from, to); err != nil {
			return err
		}
	}
	boot := names[len(names)-1]
	if err := os.RemoveAll(filepath.Join(to, boot)); err != nil {
		return err
	}
	return os.CopyFS(filepath.Join(to, boot), os.DirFS(filepath.Join(from, boot)))
}

// bootImage makes what is booted of the worker's vmlinux and returns its path.
func (w *Worker) bootImage(ctx context.Context) (string, error) {
	p := w.kernel
	if p.flat {
		return w.flatImage()
	}
	steps := [][]string{{"-f", filepath.Join(p.Srctree, "scripts/Makefile.build"), "obj=" + filepath.Dir(p.BootFile()), p.BootFile()}}
	// To 6.14 the relocations are taken out of vmlinux behind the link.
	if post := filepath.Join(p.Srctree, p.Arch.Folder(), "Makefile.postlink"); exists(filepath.Join(w.dir, post)) {
		steps = append([][]string{{"-f", post, "vmlinux"}}, steps...)
	}
	for _, args := range steps {
		var log bytes.Buffer
		argv := slices.Concat([]string{"make", "-rR", "--silent", "--no-print-directory"}, compressors, args)
		if _, err := w.run(ctx, firstLimit, p.Environment, &log, argv...); err != nil {
			return "", fmt.Errorf("making the %s: %w%s", p.Image, err, host.LastLines(log.Bytes(), 8))
		}
	}
	return filepath.Join(w.dir, p.BootFile()), nil
}

// compressors have make compress as fast as the kernel's own format allows, as what a boot
// loader unpacks is the same: they leave out the level that scripts/Makefile.lib asks for.
// xz has options there that the kernel's reader depends on, and is left alone.
var compressors = []string{
	`KGZIP=sh -c "exec gzip -n -1"`,
	`KBZIP2=sh -c "exec bzip2 -1"`,
	`LZMA=sh -c "exec lzma -1"`,
	`KLZOP=sh -c "exec lzop -1"`,
	`LZ4=sh -c "exec lz4 -l -1 - -"`,
	`ZSTD=sh -c "exec zstd -1"`,
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
