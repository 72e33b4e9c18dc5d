package cli

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"github.com/google/renameio/v2"

	"unlucky/layout"
	"unlucky/linker"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/report"
)

// What a kernel file holds beside the kernel.
const (
	packedScenario = "scenario.yaml"
	packedInitrd   = "initrd"
)

// packed is what prepare prints.
type packed struct {
	Path   string `json:"path"`
	Bytes  int64  `json:"bytes"`
	Object string `json:"object"` // digest of vmlinux.o
	Clang  string `json:"clang"`
	LLD    string `json:"lld"`
}

func prepare(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("prepare", flag.ContinueOnError)
	o := newSetup(f)
	var (
		path   = f.String("o", "", "`file` to write (default NAME.kernel.tar.zst)")
		asJSON = f.Bool("json", false, "print what was written as JSON")
	)
	rest, err := parse(f, args, out, "prepare SCENARIO [flags]", 1, 1)
	if err != nil {
		return err
	}
	scenario, err := o.load(rest)
	if err != nil {
		return err
	}
	if *path == "" {
		*path = scenario.Name + ".kernel.tar.zst"
	}
	scr := newScreen(os.Stderr)
	b, err := openSession(ctx, scenario, scr)
	if err != nil {
		return err
	}
	defer b.Close()
	p := packed{Path: *path, Object: b.Digest, Clang: b.Clang, LLD: b.LLD}
	p.Bytes, err = b.pack(ctx, *path, scr)
	scr.done()
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(out).Encode(p)
	}
	fmt.Fprintf(out, "%s: %s, vmlinux.o %.12s\none pass of lld gives the images of link-vmlinux.sh: the baseline, padded, in another order\n"+
		"\nnext, on any machine with lld %s and QEMU, for example:\n  unlucky sweep -kernel %s\n",
		report.Printable(p.Path), humanize.IBytes(uint64(p.Bytes)), p.Object, p.LLD, report.Printable(qemu.Quote([]string{p.Path})))
	return nil
}

// pack writes the rig as a kernel file, once it is proven that this links the
// same images, and returns its size in bytes.
func (b *session) pack(ctx context.Context, path string, scr *screen) (int64, error) {
	b.FullScript = true // to compare with
	scenario, err := b.template.Scenario.Marshal()
	if err != nil {
		return 0, err
	}
	initrd, err := os.ReadFile(b.guest.Machine.Initrd)
	if err != nil {
		return 0, err
	}
	file, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o644))
	if err != nil {
		return 0, err
	}
	defer file.Cleanup() // does nothing after the rename
	if err := b.Pack(ctx, file, map[string][]byte{packedScenario: scenario, packedInitrd: initrd}, scr.progress); err != nil {
		return 0, err
	}
	unpacked, err := linker.Unpack(ctx, kbuild.CacheDir(), file.Name(), scr.progress)
	if err != nil {
		return 0, err
	}
	defer unpacked.Close()
	sections, err := b.Layout(ctx)
	if err != nil {
		return 0, err
	}
	scr.progress("comparing its images with those of link-vmlinux.sh", 0, 0)
	if err := b.Prove(ctx, unpacked, []layout.Plan{layout.Text.Plan(1, sections), layout.Shuffle.Plan(1, sections)}); err != nil {
		return 0, err
	}
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), file.CloseAtomicallyReplace()
}
